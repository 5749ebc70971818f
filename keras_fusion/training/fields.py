"""Plain data from files, checked field by field before anything is done with it."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from keras_fusion.errors import FusionError, is_integer, is_number, shortened

# Whether a value is what the field holds.
Kind = Callable[[Any], bool]

# A model has fewer, and a process can hold no more.
_MOST = 10**15


class WrongFieldError(FusionError):
    """A field of a file is not what it should be; the caller names the file."""


def check(
    value: Any, kinds: Mapping[str, Kind], name: str, *, optional: Any = ()
) -> None:
    """Checks that a value is a dict of given fields, and of no others.

    Args:
        value: what was read.
        kinds: dict from a field's name to its kind.
        name: string. What the value is, for the error.
        optional: names of fields that may be missing.

    Raises:
        WrongFieldError: naming the field and its value.
    """
    if not isinstance(value, dict):
        raise WrongFieldError(f"{name} is {shortened(value)}, and should hold fields")
    missing = [key for key in kinds if key not in value and key not in optional]
    unknown = [key for key in value if key not in kinds]
    if missing or unknown:
        raise WrongFieldError(
            f"{name} lacks the fields {missing}, and has the unknown {shortened(unknown)}"
        )
    for key, item in value.items():
        if not kinds[key](item):
            raise WrongFieldError(f"{name} has {key}={shortened(item)}")


# Kinds.


def is_count(value: Any) -> bool:
    """Whether a value is an integer from 0 on."""
    return is_integer(value) and value < _MOST


def is_positive_count(value: Any) -> bool:
    """Whether a value is an integer from 1 on."""
    return is_count(value) and value > 0


def is_seed(value: Any) -> bool:
    """Whether a value is a seed."""
    return is_integer(value) and value < 2**128


def is_positive(value: Any) -> bool:
    """Whether a value is a finite number above 0."""
    return is_number(value) and value > 0


def is_measured(value: Any) -> bool:
    """Whether a value is a number, or the text of one that is not finite."""
    return is_number(value) or value in ("nan", "inf", "-inf")


def is_text(value: Any) -> bool:
    """Whether a value is a text."""
    return isinstance(value, str)


def is_digest(value: Any) -> bool:
    """Whether a value is a SHA-256 in hexadecimal."""
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def is_dict(value: Any) -> bool:
    """Whether a value is a dict."""
    return isinstance(value, dict)


def is_list(value: Any) -> bool:
    """Whether a value is a list."""
    return isinstance(value, list)


def is_shape(value: Any) -> bool:
    """Whether a value is the shape of an array that can exist."""
    return (
        isinstance(value, list)
        and len(value) <= 32
        and all(map(is_count, value))
        and math.prod(value) < _MOST
    )


def is_decay(value: Any) -> bool:
    """Whether a value is the decay of a moving mean."""
    return is_number(value) and 0 <= value < 1


def list_of(kind: Kind) -> Kind:
    """The kind of lists whose items are of one kind."""
    return lambda value: isinstance(value, list) and all(map(kind, value))


def none_or(kind: Kind) -> Kind:
    """The kind that may be missing."""
    return lambda value: value is None or kind(value)
