"""Initializers that hold arrays of the parents' shapes, which nothing bigger can use."""

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_fusion.models import private
from keras_fusion.models.private.attributes import attributes


def fitting(
    initializers: Mapping[int, Any], pairs: Iterable[tuple[keras.Layer, keras.Layer]]
) -> dict[int, Any]:
    """Replaces the initializers of grown layers that cannot make their variables.

    An initializer may hold a table, or make one shape only. The grown values come from
    the parents, but a file of the grown model could not be loaded, and new capacity would
    have no values. The class's default takes its place.

    Args:
        initializers: dict from the id of a variable to its initializer.
        pairs: pairs `(layer of the smaller model, its counterpart)`.

    Returns:
        The dict, with what has been replaced.
    """
    replaced: dict[int, Any] = {}
    for old, new in pairs:
        if [v.shape for v in old.variables] != [v.shape for v in new.variables]:
            replaced |= _replace_unfit(new)
    return {key: replaced.get(id(value), value) for key, value in initializers.items()}


def _replace_unfit(layer: keras.Layer) -> dict[int, Any]:
    """What has taken an initializer's place in a layer, by the initializer's id."""
    variables, replaced = list(layer.variables), {}
    for name, initializer in list(_special(layer)):
        if not any(_fits(initializer, v.shape, v.dtype) for v in variables):
            default = _default(layer, name)
            replaced[id(initializer)] = default
            setattr(layer, name, default)
    return replaced


def _special(layer: keras.Layer) -> Iterator[tuple[str, Any]]:
    """Yields `(attribute, initializer)` for what may make one shape only."""
    for name, value in attributes(layer):
        known = isinstance(value, keras.initializers.Initializer)
        named = name.endswith("initializer") and callable(value)
        own = type(value).__module__.partition(".")[0] == "keras"
        if (known or named) and not (own and not _holds_array(value)):
            yield name, value


def _holds_array(initializer: Any) -> bool:
    return any(
        isinstance(value, (list, tuple)) or bool(getattr(value, "shape", ()))
        for _, value in attributes(initializer)
    )


def _fits(initializer: Any, shape: Sequence[int], dtype: str) -> bool:
    try:
        with private.without_values():  # It restores the global random generators.
            value = initializer(tuple(shape), dtype=dtype)
        return tuple(np.shape(value)) == tuple(shape)
    except Exception:
        return False


def _default(layer: keras.Layer, name: str) -> Any:
    """The initializer that the layer's class has by default."""
    parameters = inspect.signature(type(layer).__init__).parameters
    parameter = parameters.get(name.lstrip("_"))
    default = None if parameter is None else parameter.default
    if not isinstance(default, str):
        default = "zeros" if "bias" in name else "glorot_uniform"
    return keras.initializers.get(default)
