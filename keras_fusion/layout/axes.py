"""How one variable of a grown model is put together, axis by axis.

A variable is described by one `Axis` per dimension, which says where each parent's block
lies; `block_index` selects a block. Nothing here knows what the arrays hold.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Axis:
    """How one axis of a fused variable is put together.

    Args:
        size: int. Length of the axis in the fused variable.
        role: `"in"` (contracted with the layer's input), `"out"` (indexes the
            layer's output) or `None` (not a width).
        blocks: tuple with, for each parent, an integer array of the positions its
            entries take along this axis; `None` if the axis did not grow.

    Example: a bias of 3 units beside one of 2.

    >>> import keras_fusion, numpy as np
    >>> axis = keras_fusion.Axis(5, "out", (np.arange(3), np.arange(3, 5)))
    >>> axis.grown, axis.positions(1)
    (True, array([3, 4]))
    """

    size: int
    role: str | None = None
    blocks: tuple[np.ndarray, ...] | None = None

    @property
    def grown(self) -> bool:
        """Whether the parents lie side by side along this axis."""
        return self.blocks is not None

    def positions(self, parent: int) -> np.ndarray:
        """Positions of a parent's entries, shape `(parent's size,)`."""
        return np.arange(self.size) if self.blocks is None else self.blocks[parent]

    @functools.cached_property
    def spans(self) -> tuple[slice | None, ...]:
        """For each parent its block as a slice; `None` if it does not lie side by side."""
        return tuple(_span(block) for block in self.blocks or ())

    @functools.cached_property
    def is_tiled(self) -> bool:
        """Whether the axis grew, and the parents' blocks are it, one after the other."""
        end = 0
        for span in self.spans:
            if span is None or span.start != end:
                return False
            end = span.stop
        return self.grown and end == self.size

    @functools.cached_property
    def is_apart(self) -> bool:
        """Whether the axis grew, and no position of it belongs to several parents."""
        if self.blocks is None or self.is_tiled:
            return self.is_tiled
        used = np.concatenate(self.blocks)
        return len(np.unique(used)) == len(used)

    def unused(self) -> np.ndarray:
        """Positions that belong to no parent: the new capacity of the target."""
        if self.blocks is None or self.is_tiled:
            return np.empty(0, int)
        return np.setdiff1d(np.arange(self.size), np.concatenate(self.blocks))


NOTHING = -1  # The source of a position that copies no unit.


@dataclasses.dataclass(frozen=True)
class CopiedAxis(Axis):
    """An axis that grew by copies of the units of one parent.

    Args:
        sources: array of shape `(size,)`. The old position that each new one copies, or
            `NOTHING`.
    """

    sources: np.ndarray = None

    def unused(self) -> np.ndarray:
        """Positions that copy no unit."""
        return np.flatnonzero(self.sources == NOTHING)


def _grown_role(axes: Sequence[Axis], role: str) -> bool:
    return any(axis.grown and axis.role == role for axis in axes)


def is_readout(axes: Sequence[Axis]) -> bool:
    """Whether only inputs grew, so that the parents share the outputs."""
    return _grown_role(axes, "in") and not _grown_role(axes, "out")


def has_off_diagonal(axes: Sequence[Axis]) -> bool:
    """Whether blocks exist that join one parent's inputs to another's outputs."""
    return _grown_role(axes, "in") and _grown_role(axes, "out")


def _span(block):
    if not len(block):
        return slice(0, 0)
    first, size = int(block[0]), len(block)
    side_by_side = block[-1] - first == size - 1 and (np.diff(block) == 1).all()
    return slice(first, first + size) if side_by_side else None


def block_index(
    axes: Sequence[Axis], parent: int, out_parent: int | None = None
) -> tuple[slice, ...] | tuple[np.ndarray, ...]:
    """What selects a block.

    Args:
        axes: the variable's axes.
        parent: int. Whose inputs.
        out_parent: int. Whose outputs; by default the same parent's, which is the
            diagonal block.

    Returns:
        Slices, which select a view, if the block's entries lie side by side along each
        axis; otherwise an open mesh, which selects a copy.
    """
    out_parent = parent if out_parent is None else out_parent
    owners = [parent if axis.role == "in" else out_parent for axis in axes]
    pairs = list(zip(axes, owners, strict=True))
    spans = tuple(axis.spans[k] if axis.grown else slice(None) for axis, k in pairs)
    if all(spans):
        return spans
    return np.ix_(*(axis.positions(k) for axis, k in pairs))


def is_view(index: tuple[slice, ...] | tuple[np.ndarray, ...]) -> bool:
    """Whether what `block_index` gave selects a view."""
    return isinstance(index[0], slice) if index else True
