"""The attributes of a layer, Keras's own lists among them."""

import re
from collections.abc import Iterator
from typing import Any, cast

import keras

# The norm in keras-hub's `MaskedLMHead` that comes before its readout.
MASKED_LM_NORM = "_intermediate_layer_norm"

# Options of Keras's layers that no config holds.
OPTIONS = frozenset({"autocast", "_remat_mode"})

# TensorFlow's bookkeeping, which holds the same layers once more.
_BOOKKEEPING = re.compile("_self_(tracked_trackables$|unconditional_)")

# Keras's own lists of a model's layers, by position and by depth.
_LISTS = re.compile("_layers$|_operations")


def attributes(layer: keras.Layer, *, lists: bool = True) -> Iterator[tuple]:
    """Yields `(name, value)` for a layer's attributes, in an order that builds share.

    Args:
        layer: the layer or model.
        lists: bool. Whether Keras's own lists of a model's layers are among them. They
            come last: an attribute is the better address of a layer.
    """
    found = dict(vars(layer))
    # On the PyTorch backend attributes that are layers are held in `_modules`.
    found |= found.pop("_modules", {})
    for name in sorted(found, key=lambda name: (name == "_layers", name)):
        if not (_BOOKKEEPING.match(name) or (not lists and _LISTS.match(name))):
            yield name, found[name]


def is_bookkeeping(name: str) -> bool:
    """Whether an attribute of a layer is TensorFlow's, and nothing of what it computes."""
    return name.startswith("_self_")


def is_optional(tensor: keras.KerasTensor) -> bool:
    """Whether an input of a functional model may be left out."""
    history: Any = getattr(tensor, "_keras_history", None)
    return bool(getattr(history and history.operation, "optional", False))


def instance_attributes(owner: Any) -> dict[str, Any]:
    """What an object holds itself, by name: its `vars`, typed as the dict that it is.

    To write there is to pass by Keras's tracking.
    """
    return cast(dict, vars(owner))
