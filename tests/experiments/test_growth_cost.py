"""What a growth costs, counted, not timed; and that the cheap ways are the plain ones."""

import gc
import tracemalloc
import weakref

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import data_for, functional, loss

from keras_fusion import AtStep, Axis, FusionOperator, GrowModel, fuse_arrays, graft
from keras_fusion.layout.axes import block_index
from keras_fusion.models import private
from keras_fusion.values.fuse import fuse_slot
from keras_fusion.values.noise import Noise

DTYPES = ["float32", "float64", "float16"]


# Values, against loops over single entries.


def slow_fuse(arrays, axes, scales):
    count = len(arrays)
    grown = [axis for axis in axes if axis.grown]
    if not grown:
        return sum(a * s for a, s in zip(arrays, scales, strict=True)) / count
    readout = all(axis.role == "in" for axis in grown)
    result = np.zeros([axis.size for axis in axes], arrays[0].dtype)
    for k, (array, scale) in enumerate(zip(arrays, scales, strict=True)):
        factor = scale * (1.0 / count if readout else 1.0)
        for place in np.ndindex(array.shape):
            target = tuple(
                axis.positions(k)[i] for axis, i in zip(axes, place, strict=True)
            )
            result[target] += array[place] * array.dtype.type(factor)
    return result


def slow_slot(slots, axes, factor):
    """Of copies: the slot in all blocks."""
    count = len(slots)
    if not any(axis.grown for axis in axes):
        return slots[0] * slots[0].dtype.type(factor)  # Without the rounding of a sum.
    result = np.zeros([axis.size for axis in axes], slots[0].dtype)
    for out_parent in range(count):
        for parent in range(count):
            whose = [parent if axis.role == "in" else out_parent for axis in axes]
            for place in np.ndindex(slots[0].shape):
                target = tuple(
                    axis.positions(k)[i]
                    for axis, k, i in zip(axes, whose, place, strict=True)
                )
                value = slots[parent][place] * slots[0].dtype.type(factor)
                result[target] = value
    return result


@st.composite
def axes_of_copies(draw):
    """Axes of a variable of K copies; blocks side by side, mixed, or partly shared."""
    count = draw(st.integers(2, 3))
    axes, shape = [], []
    for role in draw(st.sampled_from(["io", "i", "o", "io-", "-", "oi"])):
        size = draw(st.integers(1, 4))
        shape.append(size)
        if role == "-":
            axes.append(Axis(size))
            continue
        order = draw(st.sampled_from(["side by side", "mixed", "shared", "not grown"]))
        places = np.arange(count * size)
        if order == "mixed":
            places = np.random.default_rng(draw(st.integers(0, 99))).permutation(places)
        blocks = tuple(places.reshape(count, size))
        if order == "shared" and size > 1 and role == "i":
            blocks = tuple(np.concatenate([[0], b[1:]]) for b in blocks)
        grown = None if order == "not grown" else blocks
        extra = draw(st.integers(0, 2)) if grown else 0
        total = size if grown is None else count * size + extra
        axes.append(Axis(total, {"i": "in", "o": "out"}[role], grown))
    return count, tuple(axes), tuple(shape)


@settings(max_examples=150, deadline=None)
@given(axes_of_copies(), st.sampled_from(DTYPES), st.booleans(), st.integers(0, 99))
def test_filling_by_slices_gives_what_loops_give(layout, dtype, same, seed):
    count, axes, shape = layout
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal(shape).astype(dtype) for _ in range(count)]
    if same:
        arrays = [arrays[0]] * count
    scales = [1.0] * count if same else [1.0, 0.5, 3.0][:count]
    fused = fuse_arrays(arrays, axes, scales=scales)
    plain = [a.astype(np.promote_types(dtype, "float32")) for a in arrays]
    expected = slow_fuse(plain, axes, scales)
    if same and not any(axis.grown for axis in axes):
        expected = plain[0]  # Their mean, without the rounding of a sum.
    assert fused.dtype == plain[0].dtype
    np.testing.assert_array_equal(fused, expected)


@settings(max_examples=100, deadline=None)
@given(axes_of_copies(), st.sampled_from(DTYPES), st.integers(0, 99))
def test_slots_by_slices_are_what_loops_give(layout, dtype, seed):
    count, axes, shape = layout
    slot = np.random.default_rng(seed).standard_normal(shape).astype(dtype)
    fused = fuse_slot([slot] * count, axes, factor=0.25, copies=True)
    plain = slot.astype(np.promote_types(dtype, "float32"))
    np.testing.assert_array_equal(fused, slow_slot([plain] * count, axes, 0.25))


def test_blocks_side_by_side_are_views():
    blocks = (np.array([0, 1]), np.array([2, 3]))
    axes = (Axis(4, "in", blocks), Axis(3))
    array = np.zeros((4, 3))
    assert np.shares_memory(array[block_index(axes, 1)], array)
    mixed = (Axis(4, "in", (np.array([0, 2]), np.array([1, 3]))), Axis(3))
    assert not np.shares_memory(array[block_index(mixed, 1)], array)


# Noise.


def test_noise_is_normal_and_has_the_spectrum_of_normal_noise():
    noise = Noise(np.random.default_rng(0), 2.0).block((600, 800))
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 2.0) < 0.02
    kurtosis = np.mean((noise / noise.std()) ** 4)
    assert abs(kurtosis - 3.0) < 0.1
    values = np.linalg.svd(noise / 2.0, compute_uv=False)
    # The edges that random matrices have: sqrt(800) +- sqrt(600).
    np.testing.assert_allclose(values[0], 800**0.5 + 600**0.5, rtol=0.02)
    np.testing.assert_allclose(values[-1], 800**0.5 - 600**0.5, rtol=0.1)


def test_noise_of_different_seeds_is_uncorrelated_and_of_one_seed_the_same():
    shape = (300, 400)
    first, other = (Noise(np.random.default_rng(s), 1.0).block(shape) for s in (0, 1))
    assert abs(np.corrcoef(first.ravel(), other.ravel())[0, 1]) < 0.02
    again = Noise(np.random.default_rng(0), 1.0)
    np.testing.assert_array_equal(first, again.block(shape))
    second = again.block(shape, number=1)
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.02


@pytest.mark.parametrize("shape", [(40, 100), (40, 3), (7, 5, 64), (4, 3, 2, 9), (70,)])
def test_parts_of_noise_make_the_whole(shape):
    noise = Noise([1, 2], 0.5)
    whole = noise.block(shape)
    assert whole.shape == shape and whole.dtype == "float32"
    if len(shape) > 1:
        parts = [
            noise.block(shape, part=slice(i, i + 3)) for i in range(0, shape[0], 3)
        ]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


# Builds and memory.


def trained(width=8, steps=1):
    model = functional(width)
    model.compile(keras.optimizers.Adam(0.01), loss())
    x, y = data_for("functional", count=8 * steps)
    model.fit(x, y, batch_size=8, verbose=0)
    return model


def storages(model):
    """Which floating-point variables have a value."""
    return [
        v._value is not None
        for v in model.variables
        if keras.backend.is_float_dtype(v.dtype)
    ]


@pytest.mark.core
def test_a_plan_holds_no_weights_until_it_is_filled():
    plan = FusionOperator(seed=0).plan(functional())
    # PyTorch's layers hold on to their variables' tensors.
    expected = keras.config.backend() == "torch"
    assert set(storages(plan.fused)) == {expected}
    plan.fill()
    assert all(storages(plan.fused))


@pytest.mark.core
def test_initial_values_can_be_read_before_the_filling():
    with private.without_values():
        layer = keras.layers.Dense(3, kernel_initializer="ones")
        layer.build((None, 2))
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(layer.kernel), 1.0)
    private.give_values([layer.bias])
    layer.kernel.assign(2 * np.ones((2, 3), "float32"))
    layer.kernel.assign_add(np.ones((2, 3), "float32"))
    outputs = layer(np.ones((1, 2), "float32"))
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(outputs), 6.0)


@keras.saving.register_keras_serializable("tests")
class Counted(keras.Model):
    """A functional model whose builds are counted."""

    builds = 0

    def __init__(self, units=4, **kwargs):
        inputs = keras.Input((3,))
        x = keras.layers.Dense(units, name="hidden")(inputs)
        super().__init__(inputs, keras.layers.Dense(1, name="out")(x), **kwargs)
        self.units = units
        type(self).builds += 1

    def get_config(self):
        return {"units": self.units, "name": self.name}


def test_a_growth_builds_the_model_once():
    from keras_fusion import register

    register(Counted, widths=("units",))
    model = Counted()
    model.compile("adam", "mse")
    builds = []

    class Count:
        def before_growth(self, callback):
            builds.append(Counted.builds)

        def after_growth(self, callback):
            builds.append(Counted.builds)

    grow = GrowModel(FusionOperator(), AtStep(1), verbose=0)
    grow.watchers.append(Count())
    x = np.ones((8, 3), "float32")
    model.fit(x, x[:, :1], batch_size=4, verbose=0, callbacks=[grow])
    assert model.units == 8 and builds[1] - builds[0] == 1


@pytest.mark.core
def test_the_small_model_is_freed():
    model = trained()
    held = [weakref.ref(v) for v in [*model.weights, *model.optimizer.variables]]
    grow = GrowModel(FusionOperator(), AtStep(2), verbose=0)
    x, y = data_for("functional", count=16)
    model.fit(x, y, batch_size=8, verbose=0, callbacks=[grow])
    assert grow.events
    gc.collect()
    # The optimizer object is still the same one, with some counters of its own.
    left = [ref() for ref in held if ref() is not None and ref().shape]
    assert left == []


def test_the_optimizers_state_is_never_held_twice():
    model = trained(width=64)
    plan = FusionOperator(seed=0).plan(model)
    plan.fill()
    gc.collect()
    tracemalloc.start()
    try:
        optimizer = graft.grown_optimizer(plan, "carry")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    sizes = [4 * int(np.prod(v.shape)) for v in optimizer.variables]
    # NumPy's arrays become the state's own memory; in between there is one more.
    assert peak < sum(sizes) + 2 * max(sizes) + 2**20
