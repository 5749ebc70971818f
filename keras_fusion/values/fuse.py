"""The FUSION operator: pure functions that join arrays of several parents.

Everything here is NumPy on one variable at a time, and knows nothing of layers or
models. A variable of the fused model is described by one `Axis` per dimension, which
says where each parent's block lies; `fuse_arrays` fills it. `fuse_slot` does the same
for an optimizer's state.

The invariant that all of it serves: *an activation that grew is the concatenation of
the parents' activations; an activation that did not grow is their mean.*
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np

from keras_fusion.layout.axes import (
    Axis,
    block_index,
    has_off_diagonal,
    is_readout,
    is_view,
)
from keras_fusion.models.host import ALIGNMENT
from keras_fusion.values.noise import Noise

OFF_DIAGONALS = ("zeros", "random", "paired")
# Entries of noise that are made and added at once: they stay in the processor's cache.
CHUNK = 2**16


def _working(array: np.ndarray) -> np.ndarray:
    """The array in a dtype that NumPy's arithmetic is exact enough in."""
    array = np.asarray(array)
    if array.dtype.itemsize < 4 or array.dtype.kind not in "fiub":
        return array.astype("float32")
    return array


def _all_working(arrays):
    """Several arrays in such a dtype; what is one array stays one."""
    converted = {id(array): _working(array) for array in arrays}
    return [converted[id(array)] for array in arrays]


def are_one(arrays: Sequence[np.ndarray]) -> bool:
    """Whether all parents have the very same array."""
    return all(array is arrays[0] for array in arrays)


def _zeros(shape, dtype):
    """Zeros that the backends need not copy."""
    count = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.zeros(count + ALIGNMENT, "uint8")
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + count].view(dtype).reshape(shape)


def fuse_arrays(
    arrays: Sequence[np.ndarray],
    axes: Sequence[Axis],
    *,
    scales: Sequence[float] | None = None,
    off_diagonal: str = "zeros",
    noise_scale: float = 0.25,
    rng: np.random.Generator | Sequence[int] | None = None,
    fresh: np.ndarray | None = None,
    fresh_roles: Sequence[str] = ("out",),
    mean_outputs: bool = False,
) -> np.ndarray:
    """Joins one variable of K parents into the fused model's variable.

    Where no axis grew the result is the mean. Otherwise each parent's array lies at
    its block, and the blocks that join one parent's inputs to another's outputs are
    filled as `off_diagonal` says. A readout (only inputs grew) is divided by K, so
    that the fused outputs are the mean of the parents'.

    Args:
        arrays: K arrays, one a parent, all of the same rank.
        axes: one `Axis` per dimension of the result.
        scales: K further factors on the parents' arrays, e.g. for a norm in front of
            a tied readout. Defaults to ones.
        off_diagonal: `"zeros"` keeps the fusion property; `"random"` draws normal
            noise of `noise_scale` times the kernel's own deviation; `"paired"`
            adds such noise to each copy's inputs, the same towards all outputs, with
            the sum zero: exact for copies of one model, since their inputs are equal
            and the noise cancels. Readouts are told apart in the same way.
        noise_scale: float. The noise's deviation relative to the kernel's.
        rng: source of the noise: `numpy.random.Generator`, or a seed of one.
        fresh: array of the result's shape with initial values for the new capacity of
            a target larger than the sum of its parents. Defaults to zeros.
        fresh_roles: which new capacity starts from `fresh`. By default outputs that are
            new do, while inputs that are new start at zero towards old outputs, so that
            they have no influence yet.
        mean_outputs: bool. Whether new features of the last axis, where they do not
            start from `fresh`, are the mean of the old ones (which a layer norm does
            not notice in its mean) instead of zeros.

    Returns:
        Array of shape `tuple(axis.size for axis in axes)`.

    Example: the kernels of two dense layers, and of their readout.

    >>> import keras_fusion, numpy as np
    >>> blocks = (np.arange(1), np.arange(1, 2))
    >>> inputs = keras_fusion.Axis(2, "in", blocks)
    >>> outputs = keras_fusion.Axis(2, "out", blocks)
    >>> kernels = [np.array([[4.0]]), np.array([[6.0]])]
    >>> keras_fusion.fuse_arrays(kernels, [inputs, outputs])
    array([[4., 0.],
           [0., 6.]])
    >>> keras_fusion.fuse_arrays(kernels, [inputs, keras_fusion.Axis(1, "out")])
    array([[2.],
           [3.]])

    Source: the FUSION operator of Mazzawi et al., ICML 2024; `"paired"`, parents of
    unequal width and new capacity are this package's own.
    """
    arrays = _all_working(arrays)
    count = len(arrays)
    scales = [1.0] * count if scales is None else [float(s) for s in scales]
    if not any(axis.grown for axis in axes):
        return _mean(arrays, scales)
    share = 1.0 / count if is_readout(axes) else 1.0
    result = _zeros([axis.size for axis in axes], arrays[0].dtype)
    if fresh is not None:
        _fill_new(result, axes, fresh, fresh_roles)
    apart = any(axis.is_apart for axis in axes)
    for parent, array in enumerate(arrays):
        _place(result, block_index(axes, parent), array, scales[parent] * share, apart)
    last = axes[-1]
    if mean_outputs and last.role == "out" and last.grown and "out" not in fresh_roles:
        used = result[..., np.concatenate(last.blocks)]
        result[..., last.unused()] = used.mean(axis=-1, keepdims=True)
    if off_diagonal != "zeros" and count > 1:
        noise = Noise(rng, noise_scale * share * _deviation(arrays))
        fill = _tell_apart if off_diagonal == "paired" else _fill_off_diagonal
        fill(result, axes, count, noise)
    return result


def _mean(arrays, scales):
    if are_one(arrays) and len(set(scales)) == 1:
        return arrays[0] * scales[0]
    return sum(a * s for a, s in zip(arrays, scales, strict=True)) / len(arrays)


def _place(result, index, array, factor, apart):
    """Writes a parent's array into its block, without an array in between."""
    if not (apart and is_view(index)):
        # Added, not assigned: where two parents share a row (a readout of features
        # that did not grow beside some that did) the sum of the shares is the mean.
        result[index] += array * factor
    elif factor == 1.0:
        result[index] = array
    else:
        np.multiply(array, factor, out=result[index])


def _deviation(arrays: Sequence[np.ndarray]) -> float:
    """Standard deviation of all entries together."""
    arrays = [a.ravel() for a in (arrays[:1] if are_one(arrays) else arrays)]
    count = sum(a.size for a in arrays)
    mean = sum(float(a.sum()) for a in arrays) / count
    chunks = (a[i : i + CHUNK] - a.dtype.type(mean) for a, i in _chunked(arrays))
    return (sum(float(np.dot(c, c)) for c in chunks) / count) ** 0.5


def _chunked(arrays):
    return ((a, i) for a in arrays for i in range(0, a.size, CHUNK))


def _fill_new(result, axes, fresh, roles):
    for dimension, axis in enumerate(axes):
        if axis.role in roles and axis.grown:
            new = [slice(None)] * len(axes)
            new[dimension] = axis.unused()
            result[tuple(new)] = _working(fresh)[tuple(new)]


def _fill_off_diagonal(result, axes, count, noise):
    """Adds noise to the blocks from one parent's inputs to another's outputs."""
    if not has_off_diagonal(axes):
        return
    for out_parent in range(count):
        for parent in range(count):
            if parent != out_parent:
                index = block_index(axes, parent, out_parent)
                for rows in _pieces(result, index):
                    _add(result, index, rows, noise.like(result[index][rows]))


def _tell_apart(result, axes, count, noise):
    """Adds to each parent's inputs noise, the same towards all outputs; its sum is zero."""
    if not (has_off_diagonal(axes) or is_readout(axes)):
        return
    blocks = [
        [
            block_index(axes, parent, out_parent)
            for out_parent in (range(count) if has_off_diagonal(axes) else [parent])
        ]
        for parent in range(count)
    ]
    first = result[blocks[0][0]]
    for rows in _pieces(result, *itertools.chain(*blocks)):
        balanced = _balanced(noise, first[rows], count)
        for indices, added in zip(blocks, balanced, strict=True):
            for index in indices:
                _add(result, index, rows, added)


def _balanced(noise, block, count):
    """Noises for all parents, of the deviation asked for, that sum to zero."""
    if count == 2:
        one = noise.like(block)
        return one, -one
    noises = [noise.like(block) for _ in range(count)]
    mean = sum(noises) / count
    # What was subtracted had its share of the deviation.
    widened = block.dtype.type((count / (count - 1)) ** 0.5)
    return [(one - mean) * widened for one in noises]


def _pieces(result, *indices):
    """Slices of the first axis, of some `CHUNK` entries if all the blocks are views."""
    if not all(map(is_view, indices)):
        return [slice(None)]
    block = result[indices[0]]
    step = max(1, CHUNK * len(block) // max(1, block.size))
    return [slice(i, i + step) for i in range(0, len(block), step)]


def _add(result, index, rows, added):
    """Adds to rows of a block; to all of them where it is no view."""
    if is_view(index):
        result[index][rows] += added
    else:
        result[index] += added


def fuse_slot(
    slots: Sequence[np.ndarray],
    axes: Sequence[Axis],
    *,
    factor: float = 1.0,
    copies: bool,
    second_moment: bool = False,
) -> np.ndarray:
    """Joins one optimizer slot of K parents, as if they had always been one model.

    Args:
        slots: K arrays, one a parent.
        axes: one `Axis` per dimension of the result.
        factor: float. What the gradient's change of scale does to this slot, e.g.
            `1 / K` for a first moment and `1 / K**2` for a second.
        copies: bool. Whether the parents are copies of one model. Then every
            off-diagonal block has had the diagonal's gradient, and so its slot.
            Otherwise nothing is known of them: a first moment is zero there, and
            a second moment is estimated.
        second_moment: bool. Whether the slot holds squared gradients. Those of an
            off-diagonal block are estimated at rank one, as Adafactor does: the
            inputs' share from one parent, the outputs' from the other.

    Returns:
        Array of shape `tuple(axis.size for axis in axes)`.
    """
    slots = _all_working(slots)
    count, factor = len(slots), float(factor)
    if not any(axis.grown for axis in axes):
        return _mean(slots, [factor] * count)
    result = _zeros([axis.size for axis in axes], slots[0].dtype)
    if second_moment and any(axis.unused().size for axis in axes):
        # Capacity of no parent gets an average entry: never zeros under an old count.
        result += np.mean([slot.mean() for slot in slots]) * factor
    for out_parent in range(count):
        for parent in range(count):
            if parent == out_parent or copies:
                value = slots[parent]
            elif not has_off_diagonal(axes) or not second_moment:
                continue
            else:
                value = _rank_one(slots[parent], slots[out_parent], axes)
            index = block_index(axes, parent, out_parent)
            if is_view(index):
                np.multiply(value, factor, out=result[index])
            else:
                result[index] = value * factor
    return result


def _rank_one(inputs, outputs, axes):
    """Second moments of a block from one parent's inputs to another's outputs."""
    in_axes = tuple(i for i, axis in enumerate(axes) if axis.role == "in")
    out_axes = tuple(i for i, axis in enumerate(axes) if axis.role != "in")
    rows = inputs.mean(axis=out_axes, keepdims=True)
    columns = outputs.mean(axis=in_axes, keepdims=True)
    scale = np.sqrt(inputs.mean() * outputs.mean())
    return rows * columns / scale if scale > 0 else np.zeros(())
