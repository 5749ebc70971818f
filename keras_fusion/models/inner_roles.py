"""The roles that a layer's rule gives to the weights of layers which it holds.

A kernel may hold several tensors side by side (queries, keys and values), of which the
layer that holds the kernel does not know.
"""

from collections.abc import Iterable
from typing import Any

import keras

from keras_fusion.errors import FusionError
from keras_fusion.models import tree
from keras_fusion.models.rules import Rule


def given(holders: Iterable[tuple[Rule, keras.Layer]]) -> dict[int, dict[str, Any]]:
    """The roles by the ids of the layers that hold the weights.

    Args:
        holders: rules that have `inner`, each with a layer of its class.

    Raises:
        FusionError: if a rule names what the layer does not hold.
    """
    found: dict[int, dict[str, Any]] = {}
    for rule, layer in holders:
        inner: Any = rule.inner(layer) if callable(rule.inner) else rule.inner
        for path, roles in inner.items():
            held = _held(layer, path)
            _check_names(layer, path, held, roles)
            found.setdefault(id(held), {}).update(roles)
    return found


def _held(layer: keras.Layer, path: str) -> Any:
    """The layer at a path, see `tree.at_path`."""
    try:
        held = tree.at_path(layer, path)
    except LookupError:
        held = None
    if not isinstance(held, keras.Layer):
        raise FusionError(
            f"The rule of {type(layer).__name__} has `inner` roles for {path!r}, where "
            f"{layer.name!r} holds no layer. Write the attribute that holds it."
        )
    return held


def _check_names(layer: keras.Layer, path: str, held: keras.Layer, roles: Any) -> None:
    """Refuses roles of variables that a layer does not have."""
    names = [tree.stable_name(v) for v in tree.own_variables(held)]
    unknown = sorted(set(roles) - set(names))
    if unknown and held.built:
        raise FusionError(
            f"The rule of {type(layer).__name__} has `inner` roles for {unknown} of "
            f"{path!r}, which has the variables {names}."
        )
