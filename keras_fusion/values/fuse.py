"""The FUSION operator: pure functions that join arrays of several parents.

Everything here is NumPy on one variable at a time, independent of layers and models. A
variable of the fused model is described by one `Axis` per dimension, which says where
each parent's block lies; `fuse_arrays` fills it. `fuse_slot` does the same for an
optimizer's state.

The invariant behind it: *an activation that grew is the concatenation of the parents'
activations; an activation that did not grow is their mean.*
"""

import functools
import itertools
import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_fusion.layout.axes import (
    Axis,
    Index,
    block_index,
    has_off_diagonal,
    is_readout,
    is_view,
)
from keras_fusion.models.host import ALIGNMENT
from keras_fusion.models.renamed import renamed
from keras_fusion.values import reductions
from keras_fusion.values.noise import Noise
from keras_fusion.values.reductions import CHUNK

OFF_DIAGONALS = ("zeros", "random", "paired")


def _working(array: np.ndarray) -> np.ndarray:
    """The array in a dtype of sufficient precision in NumPy."""
    array = np.asarray(array)
    if array.dtype.itemsize < 4 or array.dtype.kind not in "fiub":
        return array.astype("float32")
    return array


def _all_working(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Several arrays in such a dtype; the same array stays the same array."""
    converted = {id(array): _working(array) for array in arrays}
    return [converted[id(array)] for array in arrays]


def are_one(arrays: Sequence[np.ndarray]) -> bool:
    """Whether all arrays are the same object."""
    return all(array is arrays[0] for array in arrays)


def _zeros(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """An array of zeros that the backends can use without a copy."""
    count = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.zeros(count + ALIGNMENT, "uint8")
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + count].view(dtype).reshape(shape)


@renamed(off_diagonal_scale="noise_scale")
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

    If no axis grew, the result is the mean. Otherwise each parent's array is its block,
    and the blocks from one parent's inputs to another's outputs are filled by the mode
    `off_diagonal`. A readout (only inputs grew) is divided by K, so that the fused
    outputs are the mean of the parents'.

    Args:
        arrays: K arrays, one per parent, all of the same rank.
        axes: one `Axis` per dimension of the result.
        scales: K further factors on the parents' arrays, e.g. for a norm before a tied
            readout. Defaults to ones.
        off_diagonal: `"zeros"` keeps the fusion property; `"random"` draws normal noise
            of `noise_scale` times the kernel's standard deviation; `"paired"` adds such
            noise to the inputs from each copy, equal for all outputs, with the sum zero:
            exact for copies of one model, whose inputs are equal, so that the noise
            cancels. It breaks the symmetry of readouts in the same way.
        noise_scale: float. Standard deviation of the noise relative to the kernel's.
        rng: `numpy.random.Generator` for the noise, or a seed of one.
        fresh: array of the result's shape with initial values for the new capacity of
            a target larger than the sum of its parents. Defaults to zeros.
        fresh_roles: the roles whose new capacity starts from `fresh`. By default new
            outputs do, while the weights from new inputs to old outputs start at zero,
            so that they have no influence yet.
        mean_outputs: bool. Whether new features of the last axis that do not start from
            `fresh` are the mean of the old ones (which leaves a layer norm's mean as it
            is) instead of zeros.

    Returns:
        Array of shape `tuple(axis.size for axis in axes)`.

    Raises:
        FusionError: if an argument is given by its old name and its new one.

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
    disjoint = any(axis.is_disjoint for axis in axes)
    for parent, array in enumerate(arrays):
        index = block_index(axes, parent)
        array = _shared(array, axes, parent)
        _place(result, index, array, scales[parent] * share, disjoint)
    if mean_outputs and "out" not in fresh_roles:
        _fill_with_mean(result, axes[-1])
    if off_diagonal != "zeros" and count > 1:
        noise = Noise(rng, noise_scale * share * _deviation(arrays))
        fill = _break_symmetry if off_diagonal == "paired" else _fill_off_diagonal
        fill(result, axes, count, noise)
    return result


def _mean(arrays: Sequence[np.ndarray], scales: Sequence[float]) -> np.ndarray:
    if are_one(arrays) and len(set(scales)) == 1:
        return arrays[0] * scales[0]
    scaled = (a * s for a, s in zip(arrays, scales, strict=True))
    return functools.reduce(np.add, scaled) / len(arrays)


def _place(
    result: np.ndarray, index: Index, array: np.ndarray, factor: float, disjoint: bool
) -> None:
    """Writes a parent's array to its block, without a temporary array."""
    if not (disjoint and is_view(index)):
        # Added, not assigned: where parents share a row (of a readout, for a feature
        # that did not grow) the sum of their shares is the mean.
        result[index] += array * factor
    elif factor == 1.0:
        result[index] = array
    else:
        np.multiply(array, factor, out=result[index])


def _shared(array: np.ndarray, axes: Sequence[Axis], parent: int) -> np.ndarray:
    """A parent's array, its outputs divided by how many parents share their places."""
    for dimension, axis in enumerate(axes):
        if axis.role == "out" and axis.blocks is not None and not axis.is_disjoint:
            counts = np.bincount(np.concatenate(axis.blocks), minlength=axis.size)
            own = counts[axis.blocks[parent]].astype(array.dtype)
            shape = [-1 if i == dimension else 1 for i in range(array.ndim)]
            array = array / own.reshape(shape)
    return array


def _fill_with_mean(result: np.ndarray, last: Axis) -> None:
    """Sets new features of the last axis to the mean of the old ones."""
    if last.role == "out" and last.blocks is not None:
        used = result[..., np.concatenate(last.blocks)]
        result[..., last.unused()] = reductions.mean_along(used, used.ndim - 1)


def _deviation(arrays: Sequence[np.ndarray]) -> float:
    """Standard deviation of all entries of K arrays together."""
    return reductions.deviation(arrays[:1] if are_one(arrays) else arrays)


def _fill_new(
    result: np.ndarray, axes: Sequence[Axis], fresh: np.ndarray, roles: Sequence[str]
) -> None:
    """Sets new capacity along axes of some roles to initial values."""
    for dimension, axis in enumerate(axes):
        if axis.role in roles and axis.grown:
            new: list[slice | np.ndarray] = [slice(None)] * len(axes)
            new[dimension] = axis.unused()
            result[tuple(new)] = _working(fresh)[tuple(new)]


def _fill_off_diagonal(
    result: np.ndarray, axes: Sequence[Axis], count: int, noise: Noise
) -> None:
    """Adds noise to the blocks from one parent's inputs to another's outputs."""
    if not has_off_diagonal(axes):
        return
    for out_parent, parent in itertools.permutations(range(count), 2):
        index = block_index(axes, parent, out_parent)
        shape, number = result[index].shape, count * out_parent + parent
        for rows in _pieces(result, index):
            _add(result, index, rows, noise.block(shape, number=number, part=rows))


def _break_symmetry(
    result: np.ndarray, axes: Sequence[Axis], count: int, noise: Noise
) -> None:
    """Adds noise to each parent's inputs, equal for all outputs, with the sum zero."""
    if not (has_off_diagonal(axes) or is_readout(axes)):
        return
    blocks = [
        [
            block_index(axes, parent, out_parent)
            for out_parent in (range(count) if has_off_diagonal(axes) else [parent])
        ]
        for parent in range(count)
    ]
    shape, draws = result[blocks[0][0]].shape, drawn_for(count)
    for rows in _pieces(result, *itertools.chain(*blocks)):
        drawn = [noise.block(shape, number=k, part=rows) for k in range(draws)]
        drawn = [one.astype(result.dtype, copy=False) for one in drawn]
        for indices, added in zip(blocks, balanced(drawn, count), strict=True):
            for index in indices:
                _add(result, index, rows, added)


def drawn_for(count: int) -> int:
    """How many noises `balanced` needs for so many parents."""
    return 1 if count == 2 else count


def balanced(
    noises: Sequence[Any], count: int, product: Any = np.multiply
) -> list[Any]:
    """One noise per parent, of the noise's own deviation, with the sum zero.

    Args:
        noises: list of `drawn_for(count)` noises.
        count: int. Number of parents.
        product: function that multiplies.
    """
    if count == 2:
        return [noises[0], -noises[0]]
    exactly = noises[0].dtype.type
    mean = product(functools.reduce(operator.add, noises), exactly(1 / count))
    # Restores the standard deviation, which subtracting the mean reduces.
    widened = exactly((count / (count - 1)) ** 0.5)
    return [product(one - mean, widened) for one in noises]


def _pieces(result: np.ndarray, *indices: Index) -> list[slice]:
    """Slices of the first axis, of about `CHUNK` entries if all the blocks are views."""
    if not all(map(is_view, indices)) or result.ndim < 2:
        return [slice(None)]
    block = result[indices[0]]
    step = max(1, CHUNK * len(block) // max(1, block.size))
    return [slice(i, i + step) for i in range(0, len(block), step)]


def _add(result: np.ndarray, index: Index, rows: slice, added: np.ndarray) -> None:
    """Adds to some rows of a block; to all rows if the block is not a view."""
    added = added.astype(result.dtype, copy=False)
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
        slots: K arrays, one per parent.
        axes: one `Axis` per dimension of the result.
        factor: float. The effect of the gradient's change of scale on this slot, e.g.
            `1 / K` for a first moment and `1 / K**2` for a second.
        copies: bool. Whether the parents are copies of one model. Then every
            off-diagonal block would have had the diagonal's gradient, and so has its
            slot. Otherwise its gradients are unknown: a first moment is zero there, and
            a second moment is estimated.
        second_moment: bool. Whether the slot holds squared gradients. Those of an
            off-diagonal block are estimated at rank one, as in Adafactor, with the rows
            of one parent and the columns of the other.

    Returns:
        Array of shape `tuple(axis.size for axis in axes)`.
    """
    slots = _all_working(slots)
    count, factor = len(slots), float(factor)
    if not any(axis.grown for axis in axes):
        return _mean(slots, [factor] * count)
    result = _zeros([axis.size for axis in axes], slots[0].dtype)
    if second_moment and any(axis.unused().size for axis in axes):
        # New entries get an average value: zeros under an old step count mean huge steps.
        result += _average(slots) * factor
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


def _average(slots: Sequence[np.ndarray]) -> float:
    """The mean of the means of K slots."""
    slots = slots[:1] if are_one(slots) else slots
    return sum(map(reductions.mean, slots)) / len(slots)


def _rank_one(
    inputs: np.ndarray, outputs: np.ndarray, axes: Sequence[Axis]
) -> np.ndarray:
    """Second moments of a block from one parent's inputs to another's outputs."""
    in_axes = tuple(i for i, axis in enumerate(axes) if axis.role == "in")
    out_axes = tuple(i for i, axis in enumerate(axes) if axis.role != "in")
    rows = inputs.mean(axis=out_axes, keepdims=True)
    columns = outputs.mean(axis=in_axes, keepdims=True)
    scale = np.sqrt(inputs.mean() * outputs.mean())
    return rows * columns / scale if scale > 0 else np.zeros(())
