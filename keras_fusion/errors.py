"""The errors of keras_fusion, which name the argument, the value and the fix."""

import math
import numbers
import os
from typing import Any


class FusionError(ValueError):
    """A model, partner or option cannot be fused; nothing was changed.

    Example:

    >>> import keras_fusion
    >>> try:
    ...     keras_fusion.AtStep(0)
    ... except keras_fusion.FusionError as error:
    ...     print(error)
    `steps` must be a positive integer, ... Received: steps=0.
    """


class UnknownArgumentError(FusionError, TypeError):
    """A function was called with an argument that it does not have.

    As in Python it is a `TypeError`, too.
    """


class UnregisteredLayerError(FusionError):
    """A layer has weights of its own that no rule describes.

    Example:

    >>> import keras, keras_fusion
    >>> class Scale(keras.layers.Layer):
    ...     def build(self, input_shape):
    ...         self.scale = self.add_weight(shape=input_shape[-1:], name="scale")
    ...     def call(self, x):
    ...         return x * self.scale
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), Scale()])
    >>> try:
    ...     keras_fusion.fuse(model, factor=2)
    ... except keras_fusion.UnregisteredLayerError as error:
    ...     print("Register it" in str(error))
    True
    """


class StructureError(FusionError):
    """The layers of the parents do not correspond one to one.

    Example:

    >>> import keras, keras_fusion
    >>> a = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8)])
    >>> b = keras.Sequential([keras.Input((4,)), keras.layers.EinsumDense("ab,bc->ac", 8)])
    >>> try:
    ...     keras_fusion.fuse([a, b])
    ... except keras_fusion.StructureError as error:
    ...     print("differ" in str(error))
    True
    """


class GrowthError(RuntimeError):
    """A growth failed during training; the live model continues training unchanged.

    Example: continue training without the growth.

    >>> import keras_fusion
    >>> class Lenient(keras_fusion.DeepFusion):
    ...     def grow(self):
    ...         try:
    ...             return super().grow()
    ...         except keras_fusion.GrowthError as error:
    ...             print(f"Not grown: {error}")
    """


# Arguments, refused by name.


def require(fits: bool, name: str, value: Any, expected: str) -> None:
    """Refuses an argument.

    Args:
        fits: bool. Whether the argument can be used.
        name: string. The argument's name.
        value: what the user passed.
        expected: string. What the argument must be.

    Raises:
        FusionError: if it does not fit.
    """
    if not fits:
        raise FusionError(f"`{name}` must be {expected}. Received: {name}={value!r}.")


def shortened(value: Any) -> str:
    """A value as text that fits into an error."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]} ..."


def is_integer(value: Any, least: int = 0) -> bool:
    """Whether a value is an integer of at least `least`; a bool is none."""
    integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return integer and int(value) >= least


def is_number(value: Any) -> bool:
    """Whether a value is a finite number; a bool is none."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return real and math.isfinite(value)


def is_names(value: Any) -> bool:
    """Whether a value is a list of at least one string."""
    listed = isinstance(value, (list, tuple)) and len(value) > 0
    return listed and all(isinstance(item, str) for item in value)


def is_path(value: Any) -> bool:
    """Whether a value can be a path."""
    return isinstance(value, (str, os.PathLike)) and bool(os.fspath(value))
