"""The wiring of a model: its graph without names and widths.

Two models are wired alike if the same operations, called with the same options, are
joined in the same way.
"""

import dataclasses
from collections.abc import Callable, Hashable

from keras_fusion.models import graph as graphs
from keras_fusion.models.graph import Call, Graph
from keras_fusion.models.stock import stock_class


@dataclasses.dataclass(frozen=True)
class Wiring:
    """A graph without its names.

    Args:
        calls: the calls, from the inputs to the outputs.
        form: what each call computes and which calls feed it, then which tensors are
            the outputs; equal for models that are wired alike.
    """

    calls: tuple[Call, ...]
    form: tuple


def signature(call: Call) -> Hashable:
    """The computation of a call, apart from widths and weights."""
    operation = call.operation
    if graphs.is_plain(operation):
        kind = wiring(graphs.read(operation)).form
    elif isinstance(operation, str):
        kind = operation
    else:
        kind = stock_class(operation).__name__
    return kind, _without_tensors(call.args), _without_tensors(call.kwargs)


def _without_tensors(value):
    if graphs.is_tensor(value):
        return "tensor"
    if isinstance(value, dict):
        items = sorted(value.items(), key=lambda item: str(item[0]))
        return tuple((str(k), _without_tensors(v)) for k, v in items)
    if isinstance(value, (list, tuple)):
        return tuple(_without_tensors(item) for item in value)
    return repr(value)


def wiring(graph: Graph, kind: Callable[[Call], Hashable] = signature) -> Wiring:
    """The wiring of a graph.

    Args:
        graph: the graph.
        kind: function that tells what a call computes.

    Returns:
        A `Wiring`, whose calls come in an order that depends on nothing else.
    """
    places: dict[tuple[str, int], Hashable] = {
        key[:2]: ("input", i) for i, key in enumerate(graph.inputs)
    }
    calls, form = [], []
    stack = [tensor.key for tensor in reversed(graph.outputs)]
    while stack:  # Depth first; a call comes after those that feed it.
        key = stack[-1]
        call = graph.producer(key)
        if call is None or key[:2] in places:
            stack.pop()
            continue
        waiting = [t.key for t in call.inputs if t.key[:2] not in places]
        if waiting:
            stack += reversed(waiting)
            continue
        places[key[:2]] = len(calls)
        calls.append(call)
        fed_by = tuple((places[t.key[:2]], t.key[2]) for t in call.inputs)
        form.append((kind(call), fed_by))
    outputs = tuple((places[t.key[:2]], t.key[2]) for t in graph.outputs)
    return Wiring(tuple(calls), (*form, outputs))
