"""The callbacks' arguments, checked at once: each error names what the user passed."""

import os
from collections.abc import Callable
from typing import Any

from keras_fusion.errors import is_integer, is_number, is_path, require


def positive_integers(name: str, value: Any) -> list[int]:
    """Reads a positive integer, or an increasing list of them, as a list.

    Raises:
        FusionError: naming the argument.
    """
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    good = bool(values) and all(is_integer(v, 1) for v in values)
    require(
        good and values == sorted(set(values)),
        name,
        value,
        "a positive integer, or an increasing list of them for several growths",
    )
    return [int(v) for v in values]


def check_growth(
    *,
    optimizer_state: str,
    learning_rate_factor: float | Callable,
    learning_rate_multipliers: str | None,
    rewarmup_steps: int,
    tolerance: float | None,
    verbose: int,
    record: str | os.PathLike | None,
) -> None:
    """Checks how `GrowModel` is to grow a model.

    Raises:
        FusionError: naming the argument.
    """
    require(
        optimizer_state in ("carry", "reset"),
        "optimizer_state",
        optimizer_state,
        "'carry' or 'reset'",
    )
    require(
        callable(learning_rate_factor) or _is_positive(learning_rate_factor),
        "learning_rate_factor",
        learning_rate_factor,
        "a finite positive number, or a function",
    )
    require(
        learning_rate_multipliers in (None, "width"),
        "learning_rate_multipliers",
        learning_rate_multipliers,
        "'width' or None",
    )
    require(
        is_integer(rewarmup_steps),
        "rewarmup_steps",
        rewarmup_steps,
        "an integer of at least 0",
    )
    require(
        tolerance is None or _is_positive(tolerance),
        "tolerance",
        tolerance,
        "a finite positive number or None",
    )
    require(verbose in (0, 1), "verbose", verbose, "0 or 1")
    require(record is None or is_path(record), "record", record, "a path or None")


def _is_positive(value: Any) -> bool:
    return is_number(value) and value > 0
