"""Sums in a fixed order, which are bitwise equal on every processor.

The order of a sum decides its last bits. NumPy's depends on the processor, a compiler's on
how an array is spread over devices. Here halves are added to each other until one entry is
left, long rows in up to 16 parts, which different devices may hold: the order depends on
nothing but the shape.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

# Entries that are summed at a time: they stay in the processor's cache.
CHUNK = 2**16
# The most parts of a row, and the columns from which a row has parts.
PARTS, _LONG = 16, 512


def tree_sum(array: Any, axis: int) -> Any:
    """Adds the halves of an axis to each other until one entry is left.

    Args:
        array: array of NumPy or JAX.
        axis: int. The axis, of at least one entry.

    Returns:
        Array of the same rank, whose axis has the size 1.
    """

    def part(start: int, stop: int) -> Any:
        return array[(slice(None),) * axis + (slice(start, stop),)]

    axis %= array.ndim
    rest = None
    while (size := array.shape[axis]) > 1:
        half = size // 2
        if size % 2:
            last = part(size - 1, size)
            rest = last if rest is None else rest + last
        array = part(0, half) + part(half, 2 * half)
    return array if rest is None else array + rest


def parts_of(columns: int) -> int:
    """In how many equal parts rows of a length are summed, one after the other."""
    return math.gcd(columns, PARTS) if columns >= _LONG else 1


def row_sums(array: Any, parts: int) -> Any:
    """The sums of equal parts of the rows, of shape `(parts, *array.shape[:-1])`."""
    rows = array.reshape(*array.shape[:-1], parts, -1)
    sums = tree_sum(rows, rows.ndim - 1)[..., 0]
    # TPUs pad a short last axis to 128 entries.
    return sums.transpose(sums.ndim - 1, *range(sums.ndim - 1))


def of_rows(sums: Any) -> Any:
    """The sum of all rows' sums: an array of rank 0."""
    return tree_sum(sums.reshape(-1), 0)[0]


def total(array: np.ndarray, centre: float | None = None) -> float:
    """The sum of all entries, or of the squares of their distances from a centre.

    Args:
        array: array of floats.
        centre: float, or `None`.
    """
    if not array.size:
        return 0.0
    rows = array.reshape(-1, array.shape[-1] if array.ndim else 1)
    step, parts = max(1, CHUNK // rows.shape[1]), parts_of(rows.shape[1])
    sums = [
        row_sums(_squared(rows[i : i + step], centre), parts)
        for i in range(0, len(rows), step)
    ]
    return float(of_rows(np.concatenate(sums, axis=1)))


def _squared(rows: np.ndarray, centre: float | None) -> np.ndarray:
    if centre is None:
        return rows
    distance = rows - rows.dtype.type(centre)
    return distance * distance


def mean(array: np.ndarray) -> float:
    """The mean of all entries."""
    return total(array) / max(1, array.size)


def deviation(arrays: Sequence[np.ndarray]) -> float:
    """The standard deviation of all entries of several arrays together."""

    def all_of(centre: float | None) -> float:
        return sum(total(array, centre) for array in arrays)

    return deviation_of(all_of, sum(array.size for array in arrays))


def deviation_of(total: Callable[[float | None], float], count: int) -> float:
    """The standard deviation of entries that a function sums, see `total`."""
    count = max(1, count)
    return (total(total(None) / count) / count) ** 0.5


def mean_along(array: Any, axis: int) -> Any:
    """The mean over one axis, whose size becomes 1."""
    return tree_sum(array, axis) / array.dtype.type(array.shape[axis])
