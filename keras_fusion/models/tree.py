"""Walks over models: their layers, and the variables that each layer owns.

Two builds of one architecture name their unnamed sub-layers differently, so layers
correspond by address (attribute or position), never by name or path.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import keras

from keras_fusion.errors import StructureError
from keras_fusion.models import rules
from keras_fusion.models.private.attributes import attributes
from keras_fusion.models.stock import stock_class


def skipped_attributes(layer: keras.Layer) -> tuple[str, ...]:
    """Attributes of a layer that are not part of the network (a tokenizer)."""
    rule = rules.find(layer)
    return rule.shared if rule is not None else ()


def children(layer: keras.Layer, *, list_layers: bool = True) -> dict[str, keras.Layer]:
    """Direct sub-layers by address, each once, in an order that two builds share.

    Args:
        layer: the layer or model.
        list_layers: bool. Whether a model's `layers` come first, by their positions.

    Returns:
        Dict from address (`"layers[2]"`, `"encoder"`) to layer.
    """
    skip, found = skipped_attributes(layer), {}
    if list_layers and isinstance(layer, keras.Model):
        _collect("layers", list(layer.layers), found)
    for name, value in attributes(layer, lists=list_layers):
        if name.lstrip("_") not in skip:
            _collect(name, value, found)
    if not list_layers and isinstance(layer, keras.Model):
        _collect("layers", {child.name: child for child in layer.layers}, found)
    skipped = {id(getattr(layer, name, None)) for name in skip}
    unique, seen = {}, {id(layer)} | skipped
    for address, child in found.items():
        if id(child) not in seen:
            seen.add(id(child))
            unique[address] = child
    return unique


def _collect(address: str, value: Any, found: dict[str, keras.Layer]) -> None:
    if isinstance(value, keras.layers.InputLayer):
        return  # It has no state, and a nested model may share it with the outer one.
    if isinstance(value, keras.Layer):
        found[address] = value
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            _collect(f"{address}[{i}]", item, found)
    elif isinstance(value, dict):
        for key, item in value.items():
            _collect(f"{address}[{key!r}]", item, found)


def walk(layer: keras.Layer) -> Iterator[tuple[str, keras.Layer]]:
    """Yields `(address, layer)` for a layer and all below it, each layer once.

    Args:
        layer: the layer or model to start from.
    """
    yield from _walk(layer, list_layers=True)


def by_attribute(layer: keras.Layer) -> Iterator[tuple[str, keras.Layer]]:
    """Yields like `walk`, with addresses that do not depend on the layers before.

    A layer that no attribute of a model holds is addressed by its name.
    """
    yield from _walk(layer, list_layers=False)


def _walk(
    layer: keras.Layer, *, list_layers: bool
) -> Iterator[tuple[str, keras.Layer]]:
    seen = {id(layer)}

    def descend(
        address: str, current: keras.Layer
    ) -> Iterator[tuple[str, keras.Layer]]:
        yield address, current
        for name, child in children(current, list_layers=list_layers).items():
            if id(child) not in seen:
                seen.add(id(child))
                yield from descend(f"{address}.{name}" if address else name, child)

    yield from descend("", layer)


def own_variables(layer: keras.Layer) -> list[keras.Variable]:
    """The variables that a layer holds itself, without those of its sub-layers."""
    below = {id(v) for child in children(layer).values() for v in child.variables}
    return [v for v in layer.variables if id(v) not in below]


def stable_name(variable: keras.Variable) -> str:
    """A variable's name, without the number that Keras gives to unnamed variables."""
    return re.sub(r"^variable_\d+$", "variable", variable.name)


def shared_variables(
    layers: Sequence[keras.Layer],
) -> list[tuple[keras.Variable, ...]]:
    """The corresponding own variables of corresponding layers, by position.

    A block norm's blend has no counterpart in the norm of Keras that it replaces.

    Raises:
        StructureError: if other variables differ.
    """
    stacks = [own_variables(layer) for layer in layers]
    if len({type(layer) for layer in layers}) > 1:
        common = set.intersection(*({v.name for v in stack} for stack in stacks))
        stacks = [[v for v in stack if v.name in common] for stack in stacks]
    names = [[stable_name(v) for v in stack] for stack in stacks]
    if any(n != names[0] for n in names):
        raise StructureError(
            f"The variables of {type(layers[0]).__name__} {layers[0].name!r} differ "
            f"between the models: {names}. Build them with the same options; if weights "
            "are tied by hand, which no config says, pass as `into` a bigger model that "
            "is tied as well."
        )
    return list(zip(*stacks, strict=True))


def at_path(layer: Any, path: str) -> Any:
    """What a layer holds at a path of attributes and, in lists, positions.

    Raises:
        LookupError: with the part of the path that leads nowhere.
    """
    held = layer
    for name in path.split("."):
        try:
            is_list = isinstance(held, (list, tuple))
            held = held[int(name)] if is_list else getattr(held, name)
        except (AttributeError, IndexError, ValueError) as error:
            raise LookupError(name) from error
    return held


def lockstep(
    models: Sequence[keras.Layer],
) -> Iterator[tuple[str, list[keras.Layer]]]:
    """Yields `(address, layers)` for the corresponding layers of several models.

    Raises:
        StructureError: if the models do not have the same layers; the message names
            the first place where they differ.
    """
    walks = [list(walk(model)) for model in models]
    for steps in zip(*walks, strict=False):
        address, layers = steps[0][0], [layer for _, layer in steps]
        if len({stock_class(layer) for layer in layers}) > 1:
            raise StructureError(
                f"The models differ at {address or 'the top'!r}: "
                f"{[type(layer).__name__ for layer in layers]}. Parents must be of one "
                "architecture and depth; only widths may differ."
            )
        yield address, layers
    lengths = [len(w) for w in walks]
    if len(set(lengths)) > 1:
        address, extra = max(walks, key=len)[min(lengths)]
        raise StructureError(
            f"The models have different numbers of layers: {lengths}; the first layer "
            f"without a counterpart is {address!r}. "
            + _why_longer(extra, [layer for _, layer in walks[0]])
        )


def _why_longer(extra: keras.Layer, layers: Sequence[keras.Layer]) -> str:
    """What makes another model have more layers, and a way out.

    Args:
        extra: a layer of the other model that has no counterpart.
        layers: all layers of the first model.
    """
    held = Counter(id(child) for layer in layers for child in children(layer).values())
    for layer in layers:
        if held[id(layer)] > 1 and layer.name == extra.name:
            return (
                f"Layer {layer.name!r} is used within a nested model or layer and outside "
                "of it; if a config does not say so, Keras builds two layers from it, for "
                "a bigger model and from a saved file. Pass the bigger model as `into`, or "
                "put the layers into one class with a config of its own, as keras-hub's "
                "tasks are."
            )
    return "Parents must be of equal depth; only widths may differ."
