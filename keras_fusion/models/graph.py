"""A functional model's graph, read from its public config.

Keras keeps the graph in private nodes, but `get_config()` tells all of it: for each
call of each layer its input tensors (with shape and dtype) and its arguments.
"""

import copy
import dataclasses
import functools
import graphlib
import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import keras

from keras_fusion.models import private, rules

Key = tuple[str, int, int]  # (layer's name, which call of it, which output)


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A symbolic tensor: who made it, its shape and its dtype."""

    key: Key
    shape: tuple
    dtype: str

    @property
    def is_float(self) -> bool:
        """Whether the tensor holds features; ids and masks have no width."""
        return "float" in self.dtype


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a layer or operation.

    Args:
        name: the layer's name.
        index: which call of it this is.
        operation: the layer, or the class name of an operation without weights.
        inputs: the tensors among its arguments.
        args: its positional arguments, serialized.
        kwargs: the others.
        config: the layer's config.
        source: the layer or the operation itself.
    """

    name: str
    index: int
    operation: Any
    inputs: tuple[Tensor, ...]
    args: list
    kwargs: dict
    config: dict
    source: Any = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def key(self) -> tuple[str, int]:
        """The layer's name and which call of it this is."""
        return self.name, self.index

    @property
    def described(self) -> str:
        """What the call is, for a message."""
        kind = "Operation" if isinstance(self.operation, str) else "Layer"
        return f"{kind} {self.name!r} of class {self.class_name}"

    @property
    def class_name(self) -> str:
        """The name of the class of the layer or operation."""
        is_name = isinstance(self.operation, str)
        return self.operation if is_name else type(self.operation).__name__

    @property
    def features(self) -> tuple[Tensor, ...]:
        """The inputs that hold features."""
        return tuple(t for t in self.inputs if t.is_float)

    def moved(self, name: str, move: Callable[[Key], Key]) -> "Call":
        """The call as one of another layer, on other tensors.

        Args:
            name: the other layer's name.
            move: function from the key of each input to that of its replacement.
        """
        return dataclasses.replace(
            self,
            name=name,
            inputs=tuple(dataclasses.replace(t, key=move(t.key)) for t in self.inputs),
            args=_moved(self.args, move),
            kwargs=_moved(self.kwargs, move),
        )


@dataclasses.dataclass(frozen=True)
class Graph:
    """The calls of a functional model in topological order, and the model's ends.

    Args:
        calls: every call, after those that feed it.
        inputs: the keys of the model's inputs.
        outputs: the model's outputs.
        serialized: the config of the functional model that was read.
    """

    calls: tuple[Call, ...]
    inputs: tuple[Key, ...]
    outputs: tuple[Tensor, ...]
    serialized: dict = dataclasses.field(repr=False, compare=False)

    @functools.cached_property
    def tensors(self) -> dict[Key, Tensor]:
        """All tensors that are used, by key, in the order of their first use."""
        found = {t.key: t for call in self.calls for t in call.inputs}
        return found | {t.key: t for t in self.outputs}

    @functools.cached_property
    def users(self) -> dict[Key, tuple[Call, ...]]:
        """The calls that use each tensor, each call once; none for a mere output."""
        found = {key: {} for key in self.tensors}
        for call in self.calls:
            for tensor in call.inputs:
                found[tensor.key][call.key] = call
        return {key: tuple(calls.values()) for key, calls in found.items()}

    @functools.cached_property
    def _producers(self) -> dict[tuple[str, int], Call]:
        return {call.key: call for call in self.calls}

    @functools.cached_property
    def _made(self) -> dict[tuple[str, int], list[Tensor]]:
        found = {}
        for tensor in self.tensors.values():
            found.setdefault(tensor.key[:2], []).append(tensor)
        return found

    @functools.cached_property
    def _uses(self) -> Counter[Key]:
        found = Counter(t.key for call in self.calls for t in call.inputs)
        found.update(t.key for t in self.outputs)
        return found

    def producer(self, key: Key) -> Call | None:
        """The call that makes a tensor, or `None` for an input."""
        return self._producers.get(key[:2])

    def made_by(self, call: Call) -> tuple[Tensor, ...]:
        """The outputs of a call that are used, in the order of their first use."""
        return tuple(self._made.get(call.key, ()))

    def consumers(self, key: Key) -> int:
        """The number of uses of a tensor, as a model output too."""
        return self._uses[key]

    def config(self, origin: Mapping[str, str] = MappingProxyType({})) -> dict:
        """The config of a functional model with this graph, for `from_config`.

        Args:
            origin: which of the layers that were read each new layer is a copy of.

        Returns:
            The config; its inputs and outputs are flat lists.
        """
        read = {entry["name"]: entry for entry in self.serialized["layers"]}
        # Layers in the order of their calls: Keras goes through the list again for each
        # that comes before one that feeds it.
        names = dict.fromkeys([key[0] for key in self.inputs])
        names |= dict.fromkeys(call.name for call in self.calls)
        entries = {}
        for name in names:
            entry = copy.deepcopy(read[origin.get(name, name)])
            entry["name"] = entry["config"]["name"] = name
            entries[name] = entry | {"inbound_nodes": []}
        for call in sorted(self.calls, key=lambda call: call.index):
            node = {"args": call.args, "kwargs": call.kwargs}
            entries[call.name]["inbound_nodes"].append(copy.deepcopy(node))
        outputs = []
        for tensor in self.outputs:
            name, index, output = tensor.key
            call = self.producer(tensor.key)
            outputs.append([name, index + _own_nodes(call and call.operation), output])
        return self.serialized | {
            "layers": list(entries.values()),
            "input_layers": [list(key) for key in self.inputs],
            "output_layers": outputs,
        }


def is_graph_model(layer: Any) -> bool:
    """Whether a layer is a model whose graph can be read (functional, Sequential)."""
    return isinstance(layer, keras.Model) and bool(getattr(layer, "outputs", None))


def as_functional(model: keras.Model) -> keras.Model:
    """A plain functional model over the same layers, without compile state."""
    return keras.Model(model.inputs, model.outputs, name=model.name)


@functools.cache
def functional_class() -> type:
    """The class that `keras.Model(inputs, outputs)` makes; Keras does not export it."""
    # Named, so that Keras's numbering of the user's own models does not move on.
    tensor = keras.Input((1,), name="input")
    return type(keras.Model(tensor, tensor, name="functional"))


def is_plain(model: Any) -> bool:
    """Whether a graph model is its graph and no more: functional or Sequential.

    It may be of a class that trains in a way of its own, as long as the class takes the
    graph as functional models do, and leaves their call and their config as they are.
    """
    if not is_graph_model(model) or type(model) in (
        keras.Sequential,
        functional_class(),
    ):
        return is_graph_model(model)
    return rules.find(model) is None and takes_a_graph(type(model))


def takes_a_graph(cls: type) -> bool:
    """Whether a class of models is made of inputs and outputs, and keeps to its graph."""
    base: Any = functional_class()
    if not issubclass(cls, base) or issubclass(cls, keras.Sequential):
        return False
    arguments = inspect.getfullargspec(cls.__init__)
    usual = inspect.getfullargspec(base.__init__).args
    takes = arguments.args == usual or bool(arguments.varargs and arguments.varkw)
    kept = ("call", "get_config", "from_config", "build")
    return takes and all(_function(cls, name) is _function(base, name) for name in kept)


def _function(cls: type, name: str) -> Any:
    method = getattr(cls, name)
    return getattr(method, "__func__", method)


def read(model: keras.Model) -> Graph:
    """Reads the graph of a functional or Sequential model.

    Args:
        model: a built model for which `is_graph_model` holds.

    Returns:
        Its `Graph`; nested models are calls in it.
    """
    functional = as_functional(model)
    config = private.graph_config(functional)
    layers = {layer.name: layer for layer in functional.layers}
    sources = {source.name: source for source in functional.operations}
    calls = []
    for entry in config["layers"]:
        operation = layers.get(entry["name"], entry["class_name"])
        for index, node in enumerate(entry["inbound_nodes"]):
            inputs = tuple(_tensors(node["args"])) + tuple(
                t for value in node["kwargs"].values() for t in _tensors(value)
            )
            calls.append(
                Call(
                    entry["name"],
                    index,
                    operation,
                    inputs,
                    node["args"],
                    node["kwargs"],
                    entry["config"],
                    sources.get(entry["name"]),
                )
            )
    outputs = []
    for key, symbol in zip(config["output_layers"], functional.outputs, strict=True):
        name, index, output = key
        index -= _own_nodes(layers.get(name))
        outputs.append(Tensor((name, index, output), tuple(symbol.shape), symbol.dtype))
    inputs = tuple(tuple(key) for key in config["input_layers"])
    return Graph(_sorted(calls), inputs, tuple(outputs), config)


def _own_nodes(operation):
    """The number of nodes that a layer has before its first call.

    A functional model has one, from its inputs to its outputs. Keras counts it where a
    config names the outputs, and not where it names the tensors of a call.
    """
    return int(isinstance(operation, functional_class()))


def is_tensor(value: Any) -> bool:
    """Whether a part of serialized arguments is a symbolic tensor."""
    return isinstance(value, dict) and value.get("class_name") == "__keras_tensor__"


def _tensors(value) -> Iterator[Tensor]:
    """The symbolic tensors in a call's serialized arguments, as Keras flattens them."""
    if is_tensor(value):
        spec = value["config"]
        key = tuple(spec["keras_history"])
        yield Tensor(key, tuple(spec["shape"]), spec["dtype"])
    elif isinstance(value, dict):
        for name in sorted(value):
            yield from _tensors(value[name])
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _moved(value, move):
    """Serialized arguments with other tensors."""
    if is_tensor(value):
        spec = value["config"]
        history = list(move(tuple(spec["keras_history"])))
        return value | {"config": spec | {"keras_history": history}}
    if isinstance(value, dict):
        return {name: _moved(item, move) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_moved(item, move) for item in value)
    return value


def _sorted(calls: list[Call]) -> tuple[Call, ...]:
    """Calls in an order in which every tensor is made before it is used.

    Calls that can be made at the same time keep their order, so that two models of equal
    wiring whose layers come in one order have their calls in one order.
    """
    places = {call.key: i for i, call in enumerate(calls)}
    feeding = (
        [places[t.key[:2]] for t in call.inputs if t.key[:2] in places]
        for call in calls
    )
    sorter = graphlib.TopologicalSorter(dict(enumerate(feeding)))
    sorter.prepare()
    order = []
    while sorter.is_active():
        ready = sorted(sorter.get_ready())
        order += [calls[i] for i in ready]
        sorter.done(*ready)
    return tuple(order)
