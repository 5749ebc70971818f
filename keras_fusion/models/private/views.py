"""A layer as one of another class, and with other variables, for one call."""

from collections.abc import Callable
from typing import Any

import keras

from keras_fusion.models.private.attributes import instance_attributes


class StandIn(keras.Variable):
    """What is made of a variable, read wherever a layer reads that variable.

    It has no value of its own. Keras converts the dtypes of variables as it does not
    those of tensors, so that a tensor would not do.

    Args:
        whole: the variable.
        size: int. Its own length.
        make: function from the variable's value to its own.
    """

    def __init__(
        self, whole: keras.Variable, size: int, make: Callable[[Any], Any]
    ) -> None:
        instance_attributes(self).update(instance_attributes(whole))
        self._whole, self._make, self._shape = whole, make, (size,)

    @property
    def value(self) -> Any:
        """A tensor."""
        return self._make(self._whole.value)


def as_class(
    layer: Any,
    cls: type,
    stand_in: Callable[[Any], StandIn] | None = None,
    **instead: Any,
) -> Any:
    """An object of another class with the attributes of a layer.

    Args:
        layer: the layer.
        cls: the class.
        stand_in: function from each vector among its variables to what it has instead.
        **instead: attributes that the object has instead of the layer's.
    """
    view = object.__new__(cls)
    held = dict(instance_attributes(layer))
    for name, value in held.items():
        if stand_in is not None and isinstance(value, keras.Variable):
            held[name] = stand_in(value) if len(value.shape) == 1 else value
    instance_attributes(view).update(held | instead)
    return view
