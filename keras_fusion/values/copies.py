"""Widening by copies of units: pure functions on the arrays of one network.

Each new position along an axis that grew copies an old one, its source. A unit that has
c copies in a layer's input passes 1/c of its influence through each, so that the function
stays. Which unit is copied how often is all that the methods differ in: HyperCloning
copies all of them in turn, Net2Net draws at random, LEMON splits the influence unevenly
and lets some positions copy none.

As `fuse`, this is NumPy on one variable at a time and knows nothing of layers.
"""

from collections.abc import Callable, Sequence

import numpy as np

from keras_fusion.layout.axes import NOTHING, Axis, CopiedAxis


def _sources(axes):
    """For each axis the old position that each new one copies; `None` if it kept."""
    return [axis.sources if isinstance(axis, CopiedAxis) else None for axis in axes]


def copied_axis(axis: Axis, mapping: Callable[[int, int], np.ndarray]) -> Axis:
    """The axis, with the old position that each new one copies.

    An axis may hold several stretches of features one after the other (behind a
    `Flatten` or a `Concatenate`, or of several tensors in one kernel); each grows for
    itself, and those of one size in one way.

    Args:
        axis: an axis with one block, the old entries' positions.
        mapping: function `(old, new) -> sources`, an array of length `new` whose first
            `old` entries are `0, 1, ..., old - 1`.

    Returns:
        A `CopiedAxis`; the axis itself if it did not grow.
    """
    if not axis.grown:
        return axis
    found = np.empty(axis.size, int)
    for start, old, place, new in stretches(axis):
        found[place : place + new] = _shifted(mapping(old, new), start)
    return CopiedAxis(axis.size, axis.role, axis.blocks, found)


def _shifted(sources, start):
    return np.where(sources == NOTHING, NOTHING, sources + start)


def stretches(axis: Axis) -> list[tuple[int, int, int, int]]:
    """Old features that lie side by side, with the new ones behind them.

    Returns:
        List of `(old start, old size, new start, new size)`.
    """
    (positions,) = axis.blocks
    breaks = np.flatnonzero(np.diff(positions) > 1) + 1
    starts = [0, *breaks.tolist()]
    ends = [*starts[1:], len(positions)]
    places = [0, *positions[breaks].tolist(), axis.size]
    return [
        (start, end - start, places[i], places[i + 1] - places[i])
        for i, (start, end) in enumerate(zip(starts, ends, strict=True))
    ]


def in_turn(old: int, new: int) -> np.ndarray:
    """Every unit is copied in its turn: `0, 1, ..., old - 1, 0, 1, ...`."""
    return np.arange(new) % old


def average_expansion(old: int, new: int) -> np.ndarray:
    """As many whole copies as fit, and behind them positions that copy nothing."""
    whole = new // old * old
    return np.where(np.arange(new) < whole, np.arange(new) % old, NOTHING)


def shares(sources: np.ndarray) -> np.ndarray:
    """The influence that each copy of a unit keeps: one over the number of copies."""
    return 1.0 / np.maximum(np.bincount(sources + 1)[sources + 1], 1)


def uneven_shares(
    sources: np.ndarray, spread: float, rng: np.random.Generator
) -> np.ndarray:
    """Random shares that sum to one over the copies of each unit.

    Args:
        sources: array of shape `(new,)`.
        spread: float below 1. Before they are made to sum to one, the shares are
            uniform between `1 - spread` and `1 + spread`.
        rng: source of the shares.
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
            those of an input do: for a norm in front of a tied readout, whose kernel
            cannot be split.
        spread: float. How uneven the shares are, see `uneven_shares`.
        noise_scale: float. Deviation, relative to the kernel's, of noise that sums to zero
            over the copies of each input, so that the function stays.
        rng: source of the shares and the noise.

    Returns:
        Array of shape `tuple(axis.size for axis in axes)`, zero where nothing is copied.
    """
    array = np.asarray(array, np.promote_types(array.dtype, "float32"))
    rng, sources = rng or np.random.default_rng(), _sources(axes)
    deviation = noise_scale * float(np.std(array)) if noise_scale else 0.0
    result, share = array, 1.0
    for dimension, (axis, source) in enumerate(zip(axes, sources, strict=True)):
        if source is None:
            continue
        result = np.take(result, source, axis=dimension)
        if axis.role == "in" or split_outputs:
            even = not spread or split_outputs
            own = shares(source) if even else uneven_shares(source, spread, rng)
            result = result * along(own, dimension, array.ndim).astype(array.dtype)
            share = float(np.mean(own))
    inputs = [i for i, axis in enumerate(axes) if axis.role == "in" and axis.grown]
    if deviation and inputs:
        result = result + _cancelling(
            result, sources[inputs[0]], inputs[0], deviation * share, rng
        )
    for _, place in empty_positions(axes):
        result[place] = 0.0
    return result


def empty_positions(axes: Sequence[Axis]) -> list[tuple[int, tuple]]:
    """Where an array copies nothing: `(dimension, index)` for each that has such places."""
    return [
        (dimension, (slice(None),) * dimension + (source == NOTHING,))
        for dimension, source in enumerate(_sources(axes))
        if source is not None and (source == NOTHING).any()
    ]


def filled(
    array: np.ndarray,
    axes: Sequence[Axis],
    *,
    fresh: np.ndarray,
    fresh_roles: Sequence[str],
    mean_outputs: bool,
) -> np.ndarray:
    """Gives what copies nothing its values: of `fresh`, or the mean of the others.

    Args:
        array: what `copy_array` gave.
        axes: its axes.
        fresh: array of the same shape with initial values.
        fresh_roles: the roles of axes whose empty positions start from `fresh`.
        mean_outputs: bool. Whether empty outputs are the mean of the others, which a
            layer norm does not notice.

    Returns:
        Array of the same shape; zero where none of these applies.
    """
    result = np.array(array)
    places, sources = empty_positions(axes), _sources(axes)
    for dimension, place in sorted(places, key=lambda p: axes[p[0]].role == "out"):
        role = axes[dimension].role
        if role in fresh_roles:
            result[place] = fresh[place]
        elif role == "out" and mean_outputs:
            used = np.flatnonzero(sources[dimension] != NOTHING)
            result[place] = result.take(used, dimension).mean(dimension, keepdims=True)
    return result


def along(values: np.ndarray, dimension: int, rank: int) -> np.ndarray:
    """A vector as an array that broadcasts along one dimension of others."""
    return values.reshape([-1 if i == dimension else 1 for i in range(rank)])


def _cancelling(like, sources, dimension, deviation, rng):
    """Noise whose sum over the copies of each input is zero."""
    drawn = (deviation * rng.standard_normal(like.shape)).astype(like.dtype)
    order = np.argsort(sources, kind="stable")
    starts = np.flatnonzero(np.diff(sources[order], prepend=NOTHING - 1))
    sums = np.add.reduceat(drawn.take(order, dimension), starts, dimension)
    rank = np.searchsorted(sources[order][starts], sources)
    share = along(shares(sources), dimension, like.ndim).astype(like.dtype)
    return drawn - sums.take(rank, dimension) * share


def copy_slot(
    slot: np.ndarray,
    axes: Sequence[Axis],
    *,
    factor: float = 1.0,
    degree: float = 1.0,
    split_outputs: bool = False,
) -> np.ndarray:
    """Widens one optimizer slot, as if the network had always had the copies.

    A copied unit passes its share of the influence on, so that the weights into it get
    the same share of the old gradient.

    Args:
        slot: the old slot.
        axes: one `Axis` per dimension of the slot.
        factor: float. What the mean share does to this slot.
        degree: float. By which power of the gradient the slot scales.
        split_outputs: see `copy_array`; such a value's gradient does not vary.

    Returns:
        Array of shape `tuple(axis.size for axis in axes)`.
    """
    result = slot
    pairs = zip(axes, _sources(axes), strict=True)
    for dimension, (axis, source) in enumerate(pairs):
        if source is None:
            continue
        # What copies nothing gets an average entry: never zeros under an old count.
        mean = result.mean(axis=dimension, keepdims=True)
        result = np.take(result, source, axis=dimension)
        empty = along(source == NOTHING, dimension, slot.ndim)
        result = np.where(empty, mean, result)
        if axis.role == "out" and not split_outputs:
            own = np.where(source == NOTHING, np.mean(shares(source)), shares(source))
            relative = (own * len(source) / slot.shape[dimension]) ** degree
            result = result * along(relative, dimension, slot.ndim)
    return (result * factor).astype(slot.dtype)
