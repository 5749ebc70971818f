"""A functional model's graph, read from its public config.

Keras keeps the graph in private nodes, but `get_config()` tells all of it: for each
call of each layer its input tensors (with shape and dtype) and its arguments.
"""

import dataclasses
from typing import Any

import keras

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
    """One call of a layer or operation."""

    name: str
    index: int
    operation: Any  # the layer, or the class name of an operation without weights
    inputs: tuple[Tensor, ...]
    args: list
    kwargs: dict
    config: dict

    @property
    def features(self) -> tuple[Tensor, ...]:
        """The inputs that hold features."""
        return tuple(t for t in self.inputs if t.is_float)


@dataclasses.dataclass(frozen=True)
class Graph:
    """Calls in topological order, and the keys of the model's ends."""

    calls: tuple[Call, ...]
    inputs: tuple[Key, ...]
    outputs: tuple[Tensor, ...]

    def producer(self, key: Key) -> Call | None:
        """The call that makes a tensor, or `None` for an input."""
        for call in self.calls:
            if (call.name, call.index) == key[:2]:
                return call
        return None

    def consumers(self, key: Key) -> int:
        """How often a tensor is used, as a model output too."""
        uses = sum(t.key == key for call in self.calls for t in call.inputs)
        return uses + sum(t.key == key for t in self.outputs)


def is_graph_model(layer: Any) -> bool:
    """Whether a layer is a model whose graph can be read (functional, Sequential)."""
    return isinstance(layer, keras.Model) and bool(getattr(layer, "outputs", None))


def as_functional(model: keras.Model) -> keras.Model:
    """A plain functional model over the same layers, without compile state."""
    return keras.Model(model.inputs, model.outputs, name=model.name)


def is_plain(model: keras.Model) -> bool:
    """Whether a graph model has no class of its own: functional or Sequential."""
    if not is_graph_model(model):
        return False
    return type(model) in (keras.Sequential, type(as_functional(model)))


def read(model: keras.Model) -> Graph:
    """Reads the graph of a functional or Sequential model.

    Args:
        model: a built model for which `is_graph_model` holds.

    Returns:
        Its `Graph`; nested models are calls in it.
    """
    functional = as_functional(model)
    config = functional.get_config()
    layers = {layer.name: layer for layer in functional.layers}
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
                )
            )
    outputs = tuple(
        Tensor(key, tuple(symbol.shape), symbol.dtype)
        for key, symbol in zip(
            _keys(config["output_layers"]), functional.outputs, strict=True
        )
    )
    return Graph(_sorted(calls), tuple(_keys(config["input_layers"])), outputs)


def _tensors(value):
    if isinstance(value, dict) and value.get("class_name") == "__keras_tensor__":
        spec = value["config"]
        key = tuple(spec["keras_history"])
        yield Tensor(key, tuple(spec["shape"]), spec["dtype"])
    elif isinstance(value, dict):
        # Sorted, as Keras flattens a dict of inputs.
        for name in sorted(value):
            yield from _tensors(value[name])
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _keys(value):
    """The `[name, node, tensor]` leaves of a nested structure."""
    if (
        len(value) == 3
        and isinstance(value, (list, tuple))
        and isinstance(value[0], str)
    ):
        return [tuple(value)]
    items = [value[k] for k in sorted(value)] if isinstance(value, dict) else value
    return [key for item in items for key in _keys(item)]


def _sorted(calls):
    """Calls in an order in which every tensor is made before it is used."""
    made = {(c.name, c.index) for c in calls}
    done, order, waiting = set(), [], list(calls)
    while waiting:
        ready = [
            c
            for c in waiting
            if all(t.key[:2] in done or t.key[:2] not in made for t in c.inputs)
        ]
        order += ready
        done |= {(c.name, c.index) for c in ready}
        waiting = [c for c in waiting if (c.name, c.index) not in done]
    return tuple(order)
