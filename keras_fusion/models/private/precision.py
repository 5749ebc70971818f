"""Half precision, which is too coarse to measure a change by."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras

from keras_fusion.models import tree
from keras_fusion.models.private.attributes import instance_attributes

_HALF = ("float16", "bfloat16")


@contextlib.contextmanager
def in_float32(model: keras.Model) -> Iterator[None]:
    """Opens a scope in which layers under a mixed policy compute in float32.

    Their weights are in float32 already. Layers whose weights are in half precision
    compute as they do.
    """
    wide, changed = keras.DTypePolicy("float32"), []
    try:
        for _, layer in tree.walk(model):
            if layer.compute_dtype in _HALF and layer.variable_dtype not in _HALF:
                changed.append((layer, layer._dtype_policy))
                _set(layer, wide)
        yield
    finally:
        for layer, policy in changed:
            _set(layer, policy)


def _set(layer: keras.Layer, policy: Any) -> None:
    # The property would quantize the layer, or write into a map of many layers' policies.
    instance_attributes(layer)["_dtype_policy"] = policy


def coarse_dtype(model: keras.Model) -> str | None:
    """The half-precision dtype that a model computes in even so, or `None`."""
    for _, layer in tree.walk(model):
        if layer.compute_dtype in _HALF and layer.variable_dtype in _HALF:
            return layer.compute_dtype
    return None
