"""Widening by copies of units: pure functions on the arrays of one network.

Each new position along an axis that grew is a copy of an old one, its source. A unit that
has c copies in a layer's input passes 1/c of its influence through each, so that the
function does not change. The methods differ only in which unit is copied how often:
HyperCloning copies all units in turn, Net2Net draws at random, LEMON splits the influence
unevenly and leaves some positions without a source.

Like `fuse`, this is NumPy on one variable at a time, independent of layers.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from keras_fusion.layout.axes import NOTHING, Axis, CopiedAxis
from keras_fusion.models.shards import along
from keras_fusion.values import reductions
from keras_fusion.values.noise import Noise


def sources_of(axes: Sequence[Axis]) -> list[Any]:
    """The sources of each axis's positions; `None` for an axis that did not grow."""
    return [axis.sources if isinstance(axis, CopiedAxis) else None for axis in axes]


def copied_axis(axis: Axis, mapping: Callable[[int, int], np.ndarray]) -> Axis:
    """The axis with the source of each position.

    An axis may be a concatenation of several stretches of features (after a `Flatten` or
    a `Concatenate`, or of several tensors in one kernel); each grows by itself, and those
    of equal size in the same way.

    Args:
        axis: an axis with one block, the positions of the old entries.
        mapping: function `(old, new) -> sources`, an array of length `new` whose first
            `old` entries are `0, 1, ..., old - 1`.

    Returns:
        A `CopiedAxis`; the axis itself if it did not grow.
    """
    if not axis.grown:
        return axis
    found = np.empty(axis.size, int)
    for start, old, place, new in stretches(axis):
        own = mapping(old, new) if new > old else np.arange(old)
        found[place : place + new] = _shifted(own, start)
    return CopiedAxis(
        axis.size,
        axis.role,
        axis.blocks,
        axis.stretches,
        axis.stacked,
        sources=found,
    )


def _shifted(sources: np.ndarray, start: int) -> np.ndarray:
    return np.where(sources == NOTHING, NOTHING, sources + start)


def stretches(axis: Axis) -> list[tuple[int, int, int, int]]:
    """The parts of an axis that grow by themselves.

    Those that the axis tells, or each run of contiguous old features with the new ones
    that follow it.

    Args:
        axis: an axis with one block.

    Returns:
        List of `(old start, old size, new start, new size)`.
    """
    if axis.stretches:
        return list(axis.stretches)
    positions = axis.positions(0)
    breaks = np.flatnonzero(np.diff(positions) > 1) + 1
    starts = [0, *breaks.tolist()]
    ends = [*starts[1:], len(positions)]
    places = [0, *positions[breaks].tolist(), axis.size]
    return [
        (start, end - start, places[i], places[i + 1] - places[i])
        for i, (start, end) in enumerate(zip(starts, ends, strict=True))
    ]


def in_turn(old: int, new: int) -> np.ndarray:
    """Sources that copy the units in turn: `0, 1, ..., old - 1, 0, 1, ...`."""
    return np.arange(new) % old


def average_expansion(old: int, new: int) -> np.ndarray:
    """Sources of as many whole copies as fit, followed by positions without a source."""
    whole = new // old * old
    return np.where(np.arange(new) < whole, np.arange(new) % old, NOTHING)


def shares(sources: np.ndarray) -> np.ndarray:
    """The share of a unit's influence that each copy has: one over the number of copies."""
    return 1.0 / np.maximum(np.bincount(sources + 1)[sources + 1], 1)


def uneven_shares(
    sources: np.ndarray, spread: float, rng: np.random.Generator
) -> np.ndarray:
    """Random shares that sum to one over the copies of each unit.

    Args:
        sources: array of shape `(new,)`.
        spread: float below 1. Before normalization the shares are uniform between
            `1 - spread` and `1 + spread`.
        rng: `numpy.random.Generator` for the shares.
    """
    raw = rng.uniform(1 - spread, 1 + spread, len(sources))
    return raw / np.bincount(sources + 1, raw)[sources + 1]


def copy_array(
    array: np.ndarray,
    axes: Sequence[Axis],
    *,
    split_outputs: bool = False,
    spread: float = 0.0,
    noise_scale: float = 0.0,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """Widens one variable by copies of its units.

    Args:
        array: the old value.
        axes: one `Axis` per dimension of the result; a `CopiedAxis` where it grew.
        split_outputs: bool. Whether the copies of an output share its influence, as
            those of an input do: for a norm before a tied readout, whose kernel cannot
            be split.
        spread: float. The unevenness of the shares, see `uneven_shares`.
        noise_scale: float. Standard deviation, relative to the kernel's, of noise that
            sums to zero over the copies of each input, so that the function does not
            change.
        rng: `numpy.random.Generator` for the shares and the noise.

    Returns:
        Array of shape `tuple(axis.size for axis in axes)`, zero where there is no source.
    """
    array = np.asarray(array, np.promote_types(array.dtype, "float32"))
    rng, result = rng or np.random.default_rng(), array
    factors = influence(axes, split_outputs=split_outputs, spread=spread, rng=rng)
    for dimension, (source, own) in enumerate(
        zip(sources_of(axes), factors, strict=True)
    ):
        if source is not None:
            result = np.take(result, source, axis=dimension)
        if own is not None:
            result = result * along(own, dimension, array.ndim).astype(array.dtype)
    dimension = first_input(axes)
    if noise_scale and dimension is not None:
        size = noise_scale * reductions.deviation([array]) * mean_influence(factors)
        if size:
            result = result + _cancelling(Noise(rng, size), result, axes, dimension)
    for _, place in empty_positions(axes):
        result[place] = 0.0
    return result


def influence(
    axes: Sequence[Axis],
    *,
    split_outputs: bool,
    spread: float,
    rng: np.random.Generator,
) -> list[np.ndarray | None]:
    """The shares of influence along each axis; `None` where copies share nothing.

    Args:
        axes: the axes of the widened variable.
        split_outputs: see `copy_array`.
        spread: see `copy_array`.
        rng: `numpy.random.Generator` for the shares.
    """
    found: list[np.ndarray | None] = []
    for axis, source in zip(axes, sources_of(axes), strict=True):
        if source is None or not (axis.role == "in" or split_outputs):
            found.append(None)
        elif not spread or split_outputs:
            found.append(shares(source))
        else:
            found.append(uneven_shares(source, spread, rng))
    return found


def mean_influence(factors: Sequence[np.ndarray | None]) -> float:
    """The mean share along the last axis that has shares, relative to which noise is."""
    means = [float(np.mean(own)) for own in factors if own is not None]
    return means[-1] if means else 1.0


def first_input(axes: Sequence[Axis]) -> int | None:
    """The first dimension whose inputs have copies, over which noise cancels."""
    pairs = enumerate(zip(axes, sources_of(axes), strict=True))
    found = (i for i, (axis, s) in pairs if axis.role == "in" and s is not None)
    return next(found, None)


def empty_positions(axes: Sequence[Axis]) -> list[tuple[int, tuple]]:
    """Positions without a source: `(dimension, index)` for each dimension that has some."""
    return [
        (dimension, (slice(None),) * dimension + (source == NOTHING,))
        for dimension, source in enumerate(sources_of(axes))
        if source is not None and (source == NOTHING).any()
    ]


def filled(
    array: np.ndarray,
    axes: Sequence[Axis],
    *,
    fresh: np.ndarray | None,
    fresh_roles: Sequence[str],
    mean_outputs: bool,
) -> np.ndarray:
    """Fills positions without a source: from `fresh`, or with the mean of the others.

    Args:
        array: the result of `copy_array`.
        axes: its axes.
        fresh: array of the same shape with initial values, if any role needs them.
        fresh_roles: the roles of axes whose empty positions start from `fresh`.
        mean_outputs: bool. Whether empty outputs are the mean of the others, which does
            not affect a layer norm's mean.

    Returns:
        Array of the same shape; zero where none of these applies.
    """
    result = np.array(array)
    places = empty_positions(axes)
    for dimension, place in sorted(places, key=lambda p: axes[p[0]].role == "out"):
        axis = axes[dimension]
        if fresh is not None and axis.role in fresh_roles:
            result[place] = fresh[place]
        elif axis.role == "out" and mean_outputs:
            used = np.setdiff1d(np.arange(axis.size), axis.unused())
            used = result.take(used, dimension)
            result[place] = reductions.mean_along(used, dimension)
    return result


def members(sources: np.ndarray) -> np.ndarray:
    """The positions of all copies of each position's unit.

    Args:
        sources: array of shape `(new,)`.

    Returns:
        Array of shape `(new, most copies)`; `NOTHING` behind the last copy, and for
        positions without a source.
    """
    order = np.argsort(sources, kind="stable")
    counts = np.bincount(sources + 1)  # of positions without a source first
    starts = np.cumsum(counts) - counts
    unit = sources[order] + 1
    table = np.full((len(counts), max(1, counts[1:].max(initial=0))), NOTHING)
    known = unit > 0
    place = (np.arange(len(sources)) - starts[unit])[known]
    table[unit[known], place] = order[known]
    return table[sources + 1]


def _cancelling(
    noise: Noise, like: np.ndarray, axes: Sequence[Axis], dimension: int
) -> np.ndarray:
    """Noise that sums to zero over the copies of each input."""
    source = sources_of(axes)[dimension]
    drawn = noise.block(like.shape).astype(like.dtype, copy=False)
    total = np.zeros_like(drawn)
    for copy in members(source).T:
        part = np.take(drawn, copy, axis=dimension)
        total += np.where(along(copy == NOTHING, dimension, like.ndim), 0, part)
    share = along(shares(source), dimension, like.ndim).astype(like.dtype)
    return drawn - total * share


def copy_slot(
    slot: np.ndarray,
    axes: Sequence[Axis],
    *,
    factor: float = 1.0,
    degree: float = 1.0,
    split_outputs: bool = False,
) -> np.ndarray:
    """Widens one optimizer slot, as if the network had always had the copies.

    A copied unit has a share of the influence, so the weights into it get the same share
    of the old gradient.

    Args:
        slot: the old slot.
        axes: one `Axis` per dimension of the slot.
        factor: float. The effect of the mean share on this slot.
        degree: float. The power of the gradient that the slot scales with.
        split_outputs: see `copy_array`; the gradient of such a value is the same for all
            copies.

    Returns:
        Array of shape `tuple(axis.size for axis in axes)`.
    """
    result = slot
    own = gradient_shares(axes, slot.shape, degree, split_outputs)
    for dimension, source in enumerate(sources_of(axes)):
        if source is None:
            continue
        # New entries get an average value: zeros under an old step count mean huge steps.
        empty = source == NOTHING
        mean = reductions.mean_along(result, dimension) if empty.any() else None
        result = np.take(result, source, axis=dimension)
        if mean is not None:
            result = np.where(along(empty, dimension, slot.ndim), mean, result)
        if (factors := own[dimension]) is not None:
            factors = along(factors, dimension, slot.ndim)
            result = result * factors.astype(result.dtype)
    return (result * result.dtype.type(factor)).astype(slot.dtype)


def gradient_shares(
    axes: Sequence[Axis], shape: Sequence[int], degree: float, split_outputs: bool
) -> list[np.ndarray | None]:
    """How the slots of copies differ from the mean, by their shares of the gradient.

    Args:
        axes: the axes of the widened slot.
        shape: the shape of the old slot.
        degree: float. The power of the gradient that the slot scales with.
        split_outputs: see `copy_slot`.

    Returns:
        For each axis one factor per position, or `None`.
    """
    found: list[np.ndarray | None] = []
    for axis, source, old in zip(axes, sources_of(axes), shape, strict=True):
        if source is None or axis.role != "out" or split_outputs:
            found.append(None)
            continue
        own = np.where(source == NOTHING, np.mean(shares(source)), shares(source))
        found.append((own * len(source) / old) ** degree)
    return found
