"""State of this package's own that lives exactly as long as a model or an optimizer.

It lies in the object itself, so that it is freed with it, and a graft leaves it where it
is. It is no state of the network: no file and no copy has it.
"""

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

# The attribute that it lies in.
NAME = "_keras_fusion"


class _Attachments:
    """Values by their classes, in an object that Keras and the backends do not track."""

    def __init__(self):
        self.values = {}

    def __reduce__(self) -> tuple:
        return _Attachments, ()  # A copy of the owner begins without.


def attach(owner: Any, value: T) -> T:
    """Attaches a value to a model or an optimizer, and returns the value.

    Args:
        owner: the model or optimizer.
        value: any object. It takes the place of an earlier one of its class.
    """
    # Not by `setattr`, with which Keras and TensorFlow begin to track an attribute.
    vars(owner).setdefault(NAME, _Attachments()).values[type(value)] = value
    return value


def attached(owner: Any, kind: type[T]) -> T | None:
    """The value of a class that is attached to a model or an optimizer, or `None`."""
    held = getattr(owner, "__dict__", {}).get(NAME)
    return None if held is None else held.values.get(kind)


def remembered(owner: Any) -> Callable[[], None]:
    """Remembers what is attached, and its state; returns a function that puts it back.

    What is attached must replace its attributes, and not change them in place.
    """
    held = vars(owner).get(NAME)
    values = {} if held is None else dict(held.values)
    states = [
        (value, dict(getattr(value, "__dict__", {}))) for value in values.values()
    ]

    def put_back() -> None:
        if NAME in vars(owner):
            vars(owner)[NAME].values = values
        for value, state in states:
            if state:
                vars(value).clear()
                vars(value).update(state)

    return put_back
