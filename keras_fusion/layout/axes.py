"""The layout of one variable of a grown model, axis by axis.

A variable is described by one `Axis` per dimension, which says where each parent's block
lies; `block_index` selects a block. Nothing here depends on what the arrays hold.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

# Selects a block: slices for a view, an open mesh for a copy.
Index = tuple[slice, ...] | tuple[np.ndarray, ...]


@dataclasses.dataclass(frozen=True)
class Axis:
    """The blocks of the parents along one axis of a fused variable.

    Args:
        size: int. Length of the axis in the fused variable.
        role: `"in"` (contracted with the layer's input), `"out"` (indexes the
            layer's output) or `None` (not a width).
        blocks: tuple with one integer array per parent, the positions of its entries
            along this axis; `None` if the axis did not grow.
        stretches: tuple with one `(start, size, new start, new size)` per part of the
            axis, in the first parent and in the fused variable; empty where that is to
            be read off the blocks.
        stacked: bool. Whether it holds several tensors one after another, which the
            layer takes apart.

    Example: a bias of 3 units concatenated with one of 2.

    >>> import keras_fusion, numpy as np
    >>> axis = keras_fusion.Axis(5, "out", (np.arange(3), np.arange(3, 5)))
    >>> axis.grown, axis.positions(1)
    (True, array([3, 4]))
    """

    size: int
    role: str | None = None
    blocks: tuple[np.ndarray, ...] | None = None
    stretches: tuple[tuple[int, int, int, int], ...] = ()
    stacked: bool = False

    @property
    def grown(self) -> bool:
        """Whether each parent has a block of its own along this axis."""
        return self.blocks is not None

    def positions(self, parent: int) -> np.ndarray:
        """Positions of a parent's entries, shape `(parent's size,)`."""
        return np.arange(self.size) if self.blocks is None else self.blocks[parent]

    @functools.cached_property
    def spans(self) -> tuple[slice | None, ...]:
        """One slice per parent, its block; `None` if the block is not contiguous."""
        return tuple(_span(block) for block in self.blocks or ())

    @functools.cached_property
    def is_tiled(self) -> bool:
        """Whether the axis grew and is the concatenation of the parents' blocks."""
        end = 0
        for span in self.spans:
            if span is None or span.start != end:
                return False
            end = span.stop
        return self.grown and end == self.size

    @functools.cached_property
    def is_disjoint(self) -> bool:
        """Whether the axis grew and no position of it belongs to several parents."""
        if self.blocks is None or self.is_tiled:
            return self.is_tiled
        used = np.concatenate(self.blocks)
        return len(np.unique(used)) == len(used)

    def unused(self) -> np.ndarray:
        """Positions that belong to no parent: the target's new capacity."""
        if self.blocks is None or self.is_tiled:
            return np.empty(0, int)
        return np.setdiff1d(np.arange(self.size), np.concatenate(self.blocks))


NOTHING = -1  # The source of a position that is a copy of no unit.


@dataclasses.dataclass(frozen=True)
class CopiedAxis(Axis):
    """An axis that grew by copies of the units of one parent.

    Args:
        sources: array of shape `(size,)`. For each position the old one that it is a copy
            of, or `NOTHING`.
    """

    sources: np.ndarray = dataclasses.field(kw_only=True)

    def unused(self) -> np.ndarray:
        """Positions that are copies of no unit."""
        return np.flatnonzero(self.sources == NOTHING)


def _grown_role(axes: Sequence[Axis], role: str) -> bool:
    return any(axis.grown and axis.role == role for axis in axes)


def is_readout(axes: Sequence[Axis]) -> bool:
    """Whether only inputs grew, so that the parents share the outputs."""
    return _grown_role(axes, "in") and not _grown_role(axes, "out")


def has_off_diagonal(axes: Sequence[Axis]) -> bool:
    """Whether there are blocks from one parent's inputs to another's outputs."""
    return _grown_role(axes, "in") and _grown_role(axes, "out")


def _span(block: np.ndarray) -> slice | None:
    if not len(block):
        return slice(0, 0)
    first, size = int(block[0]), len(block)
    contiguous = block[-1] - first == size - 1 and (np.diff(block) == 1).all()
    return slice(first, first + size) if contiguous else None


def block_index(
    axes: Sequence[Axis], parent: int, out_parent: int | None = None
) -> Index:
    """The index that selects a block.

    Args:
        axes: the variable's axes.
        parent: int. The parent whose inputs are selected.
        out_parent: int. The parent whose outputs are selected; by default the same one,
            which gives the diagonal block.

    Returns:
        Slices, which select a view, if the block is contiguous along each axis;
        otherwise an open mesh, which selects a copy.
    """
    out_parent = parent if out_parent is None else out_parent
    owners = [parent if axis.role == "in" else out_parent for axis in axes]
    pairs = list(zip(axes, owners, strict=True))
    spans = [axis.spans[k] if axis.grown else slice(None) for axis, k in pairs]
    contiguous = tuple(span for span in spans if span is not None)
    if len(contiguous) == len(spans):
        return contiguous
    return np.ix_(*(axis.positions(k) for axis, k in pairs))


def is_view(index: Index) -> bool:
    """Whether an index of `block_index` selects a view."""
    return isinstance(index[0], slice) if index else True
