"""A layer as one of another class, and with a part of its variables, for one call."""

from typing import Any, cast

import keras


class VariablePart(keras.Variable):
    """Some of the entries of a variable, read wherever a layer reads a variable.

    It has no value of its own. Keras converts the dtypes of variables as it does not
    those of tensors, so that a tensor would not do.
    """

    def __init__(self, whole: keras.Variable, own: slice):
        cast(dict, vars(self)).update(vars(whole))
        self._whole, self._own = whole, own
        self._shape = (own.stop - own.start,)

    @property
    def value(self) -> Any:
        """The entries, as a tensor."""
        return self._whole.value[self._own]


def as_class(layer: Any, cls: type, own: slice | None = None) -> Any:
    """An object of another class with the attributes of a layer.

    Args:
        layer: the layer.
        cls: the class.
        own: which entries of its vectors it has; all by default.
    """
    view = object.__new__(cls)
    held = dict(vars(layer))
    for name, value in held.items():
        if own is not None and isinstance(value, keras.Variable) and len(value.shape):
            held[name] = VariablePart(value, own)
    vars(view).update(held)
    return view
