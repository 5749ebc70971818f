"""Rows that are added to a table or to a head: pure functions, and their filler."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from keras_fusion.layout.variables import VariableLayout
from keras_fusion.values.fillers import Filler


def appended(
    array: np.ndarray,
    dimension: int,
    count: int,
    *,
    pieces: Sequence[Sequence[int]] | None = None,
    rows: np.ndarray | None = None,
) -> np.ndarray:
    """Adds entries behind the old ones along one axis.

    Args:
        array: the old value.
        dimension: int. The axis.
        count: int. How many entries are added.
        pieces: for each new entry those whose mean it is, by number; one that is added
            before it may be among them. By default all old ones.
        rows: array of shape `(count, ...)` with the new entries themselves, in which `...`
            are the array's other axes. It goes before `pieces`.

    Returns:
        Array with `count` more entries along the axis.
    """
    wide = np.promote_types(array.dtype, "float32")
    old = np.moveaxis(np.asarray(array, wide), dimension, 0)
    table = np.empty((len(old) + count, *old.shape[1:]), wide)
    table[: len(old)] = old
    if rows is not None:
        table[len(old) :] = rows
    elif pieces is None:
        table[len(old) :] = np.mean(old, axis=0, dtype="float64")
    else:
        for place, own in enumerate(pieces, len(old)):
            table[place] = np.mean(table[list(own)], axis=0, dtype="float64")
    return np.moveaxis(table, 0, dimension).astype(array.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowsFiller(Filler):
    """Keeps the old entries and adds new ones, by `appended`.

    The optimizer's first moments of new entries are zero, and its second moments the mean
    of the old ones', as for all new capacity.

    Args:
        pieces: see `appended`.
        rows: dict from the index of a layout to new entries, see `appended`.
    """

    pieces: tuple[tuple[int, ...], ...] | None = None
    rows: Mapping[int, np.ndarray] = dataclasses.field(default_factory=dict)

    def value(
        self, index: int, layout: VariableLayout, arrays: Sequence[np.ndarray]
    ) -> np.ndarray:
        """The old entries, and behind them the new ones."""
        value = arrays[0]
        for dimension, axis in enumerate(layout.axes):
            if axis.grown:
                count = axis.size - value.shape[dimension]
                rows = self.rows.get(index)
                value = appended(value, dimension, count, pieces=self.pieces, rows=rows)
        return value
