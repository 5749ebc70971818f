"""The FUSION operator on arrays: its laws, over shapes, widths, dtypes and modes."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_fusion import Axis, fuse_arrays
from keras_fusion.architecture.widths import contiguous
from keras_fusion.layout.axes import block_index
from keras_fusion.values.fuse import fuse_slot

sizes = st.integers(1, 5)
counts = st.integers(2, 4)
seeds = st.integers(0, 2**31)


def kernel_axes(ins, outs, extra=(0, 0)):
    return (
        Axis(sum(ins) + extra[0], "in", contiguous(ins)),
        Axis(sum(outs) + extra[1], "out", contiguous(outs)),
    )


def normal(seed, *shape, dtype="float32"):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@st.composite
def widths(draw):
    count = draw(counts)
    return [[draw(sizes) for _ in range(count)] for _ in range(2)]


@given(widths(), seeds)
def test_concatenated_inputs_give_concatenated_outputs(widths, seed):
    ins, outs = widths
    kernels = [
        normal(seed + k, i, o) for k, (i, o) in enumerate(zip(ins, outs, strict=True))
    ]
    inputs = [normal(seed + 99 + k, 3, i) for k, i in enumerate(ins)]
    fused = fuse_arrays(kernels, kernel_axes(ins, outs))
    expected = np.concatenate(
        [x @ w for x, w in zip(inputs, kernels, strict=True)], axis=-1
    )
    np.testing.assert_allclose(
        np.concatenate(inputs, axis=-1) @ fused, expected, rtol=1e-4, atol=1e-5
    )


@given(widths(), sizes, seeds)
def test_a_readout_gives_the_mean(widths, classes, seed):
    ins, _ = widths
    kernels = [normal(seed + k, i, classes) for k, i in enumerate(ins)]
    inputs = [normal(seed + 99 + k, 3, i) for k, i in enumerate(ins)]
    fused = fuse_arrays(
        kernels, (Axis(sum(ins), "in", contiguous(ins)), Axis(classes, "out"))
    )
    expected = sum(x @ w for x, w in zip(inputs, kernels, strict=True)) / len(ins)
    np.testing.assert_allclose(
        np.concatenate(inputs, axis=-1) @ fused, expected, rtol=1e-4, atol=1e-5
    )


@given(counts, sizes, sizes, seeds, st.floats(0.01, 2.0), st.booleans())
def test_paired_noise_cancels_for_copies(count, rows, columns, seed, scale, readout):
    kernel, x = normal(seed, rows, columns), normal(seed + 1, 3, rows)
    inner = Axis(count * rows, "in", contiguous([rows] * count))
    outer = Axis(count * columns, "out", contiguous([columns] * count))
    axes = (inner, Axis(columns, "out") if readout else outer)
    fused = fuse_arrays(
        [kernel] * count,
        axes,
        off_diagonal="paired",
        noise_scale=scale,
        rng=np.random.default_rng(seed),
    )
    expected = x @ kernel if readout else np.tile(x @ kernel, count)
    actual = np.tile(x, count) @ fused
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=2e-4)
    if rows * columns > 1:
        assert not np.array_equal(fused, fuse_arrays([kernel] * count, axes))


@given(counts, sizes, sizes, seeds, st.floats(0.01, 2.0))
def test_paired_noise_lets_differences_through_unchanged(
    count, rows, columns, seed, scale
):
    """Whatever sets copies apart, such as rounding, grows no more than in the parent."""
    kernel = normal(seed, rows, columns).astype("float64")
    inputs = normal(seed + 1, count, rows).astype("float64")
    fused = fuse_arrays(
        [kernel] * count,
        kernel_axes([rows] * count, [columns] * count),
        off_diagonal="paired",
        noise_scale=scale,
        rng=np.random.default_rng(seed),
    )
    outputs = (inputs.ravel() @ fused).reshape(count, columns)
    np.testing.assert_allclose(
        outputs - outputs[0], (inputs - inputs[0]) @ kernel, atol=1e-5
    )


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("readout", [False, True])
def test_paired_noise_has_the_deviation_asked_for(count, readout):
    kernel = normal(0, 60, 70) * 3
    axes = kernel_axes([60] * count, [70] * count)
    if readout:
        axes = (axes[0], Axis(70, "out"))
    options = {"noise_scale": 0.5, "rng": np.random.default_rng(0)}
    noisy = fuse_arrays([kernel] * count, axes, off_diagonal="paired", **options)
    noise = noisy - fuse_arrays([kernel] * count, axes)
    deviation = 1.5 / count if readout else 1.5  # A readout is divided by the count.
    for rows in contiguous([60] * count):
        np.testing.assert_allclose(np.std(noise[rows]), deviation, rtol=0.05)


@pytest.mark.parametrize("mode", ["random", "paired"])
def test_one_parent_with_new_capacity_gets_no_noise(mode):
    axes = kernel_axes([3], [4], extra=(2, 1))
    fused = fuse_arrays([normal(0, 3, 4)], axes, off_diagonal=mode, rng=0)
    np.testing.assert_array_equal(fused, fuse_arrays([normal(0, 3, 4)], axes))


def test_random_noise_has_the_deviation_asked_for():
    kernels = [normal(k, 60, 70) * 3 for k in range(2)]
    fused = fuse_arrays(
        kernels,
        kernel_axes([60, 60], [70, 70]),
        off_diagonal="random",
        noise_scale=0.5,
        rng=np.random.default_rng(0),
    )
    np.testing.assert_array_equal(fused[:60, :70], kernels[0])
    np.testing.assert_allclose(np.std(fused[60:, :70]), 1.5, rtol=0.05)
    np.testing.assert_allclose(np.std(fused[:60, 70:]), 1.5, rtol=0.05)


@given(widths(), seeds)
def test_new_inputs_do_not_reach_old_outputs(widths, seed):
    ins, outs = widths
    kernels = [
        normal(seed + k, i, o) for k, (i, o) in enumerate(zip(ins, outs, strict=True))
    ]
    axes = kernel_axes(ins, outs, extra=(2, 3))
    fresh = normal(seed, axes[0].size, axes[1].size)
    fused = fuse_arrays(kernels, axes, fresh=fresh)
    old_in, old_out = sum(ins), sum(outs)
    assert not fused[old_in:, :old_out].any()
    np.testing.assert_array_equal(fused[:, old_out:], fresh[:, old_out:])
    same = fuse_arrays(kernels, kernel_axes(ins, outs))
    np.testing.assert_array_equal(fused[:old_in, :old_out], same)


def test_rows_that_parents_share_are_averaged():
    # Two features that did not grow, beside one of each parent.
    blocks = (np.array([0, 1, 2]), np.array([0, 1, 3]))
    kernels = [np.full((3, 1), 2.0, "float32"), np.full((3, 1), 4.0, "float32")]
    fused = fuse_arrays(kernels, (Axis(4, "in", blocks), Axis(1, "out")))
    np.testing.assert_allclose(fused[:, 0], [3.0, 3.0, 1.0, 2.0])


@given(widths(), seeds)
def test_what_did_not_grow_is_averaged(widths, seed):
    count = len(widths[0])
    biases = [normal(seed + k, 4) for k in range(count)]
    fused = fuse_arrays(biases, (Axis(4, "out"),))
    np.testing.assert_allclose(fused, np.mean(biases, axis=0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", ml_dtypes.bfloat16])
def test_dtypes(dtype):
    kernels = [normal(k, 2, 3).astype(dtype) for k in range(2)]
    fused = fuse_arrays(kernels, kernel_axes([2, 2], [3, 3])).astype(dtype)
    np.testing.assert_array_equal(fused[:2, :3], kernels[0])
    np.testing.assert_array_equal(fused[2:, 3:], kernels[1])


@given(counts, sizes, sizes, seeds, st.floats(0.1, 1.0))
def test_slots_of_copies_are_tiled(count, rows, columns, seed, factor):
    slot = normal(seed, rows, columns)
    axes = kernel_axes([rows] * count, [columns] * count)
    fused = fuse_slot([slot] * count, axes, factor=factor, copies=True)
    np.testing.assert_allclose(fused, np.tile(slot, (count, count)) * factor, rtol=1e-5)


@settings(max_examples=30)
@given(widths(), seeds)
def test_second_moments_of_distinct_parents_are_never_zero(widths, seed):
    ins, outs = widths
    slots = [
        np.abs(normal(seed + k, i, o)) + 0.1
        for k, (i, o) in enumerate(zip(ins, outs, strict=True))
    ]
    axes = kernel_axes(ins, outs, extra=(1, 1))
    fused = fuse_slot(slots, axes, factor=0.25, copies=False, second_moment=True)
    assert (fused > 0).all()
    for parent, slot in enumerate(slots):
        block = fused[block_index(axes, parent)]
        np.testing.assert_allclose(block, slot * 0.25, rtol=1e-6)


def test_the_estimate_is_exact_for_moments_of_rank_one():
    rows, columns = (
        [np.array([[1.0], [2.0]]), np.array([[3.0]])],
        [
            np.array([[1.0, 4.0]]),
            np.array([[2.0, 1.0]]),
        ],
    )
    slots = [r @ c for r, c in zip(rows, columns, strict=True)]
    fused = fuse_slot(
        slots, kernel_axes([2, 1], [2, 2]), copies=False, second_moment=True
    )
    ratio = fused[:2, 2:] / (rows[0] @ columns[1])
    np.testing.assert_allclose(ratio, ratio[0, 0])


def test_first_moments_of_distinct_parents_are_zero_off_the_diagonal():
    slots = [np.ones((2, 2)), np.ones((2, 2))]
    fused = fuse_slot(slots, kernel_axes([2, 2], [2, 2]), copies=False)
    assert not fused[:2, 2:].any() and not fused[2:, :2].any()
