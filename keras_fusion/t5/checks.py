"""Values of a recipe, checked when it is read: kinds, ranges, and names."""

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence

from keras_fusion.errors import FusionError

S = typing.TypeVar("S")

_KINDS = {
    int: "an integer",
    float: "a finite number",
    str: "a text",
    bool: "true or false",
}


def number(
    allowed: Callable[[float], bool], words: str, default: object = dataclasses.MISSING
) -> typing.Any:
    """A field of a dataclass whose values must meet a condition.

    Args:
        allowed: function of the value.
        words: string. The condition in words, such as `"at least 1"`.
        default: the field's default. None if left out.
    """
    return dataclasses.field(
        default=default, metadata={"allowed": allowed, "words": words}
    )


def at_least(least: float) -> typing.Any:
    """A field with a lower bound, which is included."""
    return number(lambda value: value >= least, f"at least {least}")


def above(bound: float) -> typing.Any:
    """A field with a lower bound, which is excluded."""
    return number(lambda value: value > bound, f"above {bound}")


def between(low: float, high: float) -> typing.Any:
    """A field between two bounds, both excluded."""
    return number(lambda value: low < value < high, f"between {low} and {high}")


def one_of(words: Sequence[str], **options: typing.Any) -> typing.Any:
    """A field with a fixed set of values; `default=` makes it optional."""
    return number(lambda value: value in words, f"one of {', '.join(words)}", **options)


def section(kind: type[S], name: str, rows: object) -> S:
    """Makes a dataclass from a table of a TOML file.

    Args:
        kind: dataclass, whose fields are annotated with `int`, `float`, `str`, `bool`
            (or `None`), or `tuple[str, ...]`; integers are below 2**31.
        name: string. The table's name, for messages.
        rows: what the file has there.

    Returns:
        An instance of `kind`.

    Raises:
        FusionError: naming the entry and what it must be.
    """
    fields = {f.name: f for f in dataclasses.fields(typing.cast(typing.Any, kind))}
    needed = [n for n, f in fields.items() if f.default is dataclasses.MISSING]
    named(name, rows, needed, fields)
    hints = typing.get_type_hints(kind)
    values = {}
    for key, value in typing.cast(Mapping, rows).items():
        values[key] = _of_kind(f"{name}.{key}", value, hints[key])
        condition = fields[key].metadata
        if condition and not condition["allowed"](values[key]):
            raise FusionError(
                f"{name}.{key} must be {condition['words']}. Received: {value!r}."
            )
    return kind(**values)


def named(
    name: str, rows: object, needed: Sequence[str], allowed: typing.Iterable[str] = ()
) -> None:
    """Checks that a table has the entries that it needs, and no others.

    Args:
        name: string. The table's name, for messages.
        rows: what the file has there.
        needed: sequence of strings.
        allowed: iterable of strings. Entries that may be there too.

    Raises:
        FusionError: naming the entries that are missing or unknown.
    """
    if not isinstance(rows, Mapping):
        raise FusionError(
            f"{name} must be a table of named values. Received: {rows!r}."
        )
    missing = [key for key in needed if key not in rows]
    unknown = [key for key in rows if key not in {*needed, *allowed}]
    for what, keys in (("lacks", missing), ("has unknown entries:", unknown)):
        if keys:
            raise FusionError(f"{name} {what} {', '.join(keys)}.")


def whole_number(name: str, value: object) -> None:
    """Checks that an entry is an integer of at least 1.

    Raises:
        FusionError: naming the entry.
    """
    if type(value) is not int or not 1 <= value < 2**31:
        raise FusionError(
            f"{name} must be an integer of at least 1. Received: {value!r}."
        )


def _of_kind(name, value, kind):
    """A value as one of a kind; integers are numbers too."""
    if isinstance(kind, types.UnionType):  # Of a kind, or not given.
        (kind,) = (k for k in typing.get_args(kind) if k is not type(None))
    if kind is float and type(value) is int:
        value = float(value) if abs(value) < 2**53 else math.inf
    if kind in _KINDS:
        if type(value) is int and abs(value) >= 2**31:
            raise FusionError(f"{name} must be below 2**31. Received: {value!r}.")
        if type(value) is kind and (kind is not float or math.isfinite(value)):
            return value
        raise FusionError(f"{name} must be {_KINDS[kind]}. Received: {value!r}.")
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    raise FusionError(f"{name} must be a list of texts. Received: {value!r}.")
