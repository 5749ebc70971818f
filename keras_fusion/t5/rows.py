"""Packed rows of equal length, cut from streams of tokens."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from keras_fusion.errors import FusionError


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Rows of tokens, filled with one document after the other, without padding.

    Args:
        streams: sequence of integer arrays of shape `(tokens,)`, in memory or mapped from
            files. No row crosses the end of a stream; the last tokens of each are left
            out.
        length: int. Tokens in a row.

    Raises:
        FusionError: if the streams are shorter than a row.

    Example:

    >>> import numpy as np
    >>> from keras_fusion.t5.rows import Rows
    >>> rows = Rows([np.arange(10), np.arange(20, 26)], length=3)
    >>> len(rows)
    3
    >>> rows.take(np.array([0, 2]), shift=1).tolist()
    [[1, 2, 3], [21, 22, 23]]
    """

    streams: Sequence[np.ndarray]
    length: int

    def __post_init__(self):
        if not len(self):
            sizes = [len(s) for s in self.streams]
            raise FusionError(
                f"The text has {sum(sizes)} tokens in {len(sizes)} parts, of which none "
                f"has the {2 * self.length - 1} tokens that rows of length={self.length} "
                "need to begin anywhere. Use more text, or shorter rows."
            )

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self.streams) else 0

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        # One row less than would fit, so that an epoch may begin at any shift.
        return np.cumsum(
            [max(0, (len(s) - self.length + 1) // self.length) for s in self.streams]
        )

    def take(self, indices: np.ndarray, shift: int = 0) -> np.ndarray:
        """Cuts out some rows.

        Args:
            indices: integer array of shape `(rows,)`.
            shift: int, below `length`. Where in each stream the first row begins.

        Returns:
            `int32` array of shape `(rows, length)`.
        """
        taken = np.empty((len(indices), self.length), "int32")
        numbers, begins = self._places(indices, shift)
        for row, number, begin in zip(taken, numbers, begins, strict=True):
            row[:] = self.streams[number][begin : begin + self.length]
        return taken

    def starts(self, indices: np.ndarray, shift: int = 0) -> np.ndarray:
        """Where some rows begin when the streams are joined.

        Args:
            indices: integer array of shape `(rows,)`.
            shift: int, as for `take`.

        Returns:
            Integer array of shape `(rows,)`.
        """
        numbers, begins = self._places(indices, shift)
        firsts = np.cumsum([0, *map(len, self.streams)])
        return firsts[numbers] + begins

    def _places(self, indices, shift):
        """The stream of each row, and where it begins in that."""
        numbers = np.searchsorted(self._ends, indices, side="right")
        firsts = np.concatenate([[0], self._ends])[numbers]
        return numbers, (np.asarray(indices) - firsts) * self.length + shift
