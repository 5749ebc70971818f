"""Sums whose order depends on the shape alone."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_fusion.values import reductions

SHAPES = st.lists(st.integers(1, 70), min_size=1, max_size=3).map(tuple)


@settings(max_examples=50, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 2**31), chunk=st.integers(1, 300))
def test_sums_are_those_of_all_entries(shape, seed, chunk):
    array = np.random.default_rng(seed).normal(2.0, 3.0, shape).astype("float32")
    exact = array.astype("float64")
    size = np.abs(exact).sum()
    assert reductions.total(array) == pytest.approx(exact.sum(), abs=1e-6 * size)
    assert reductions.mean(array) == pytest.approx(exact.mean(), abs=1e-5)
    assert reductions.deviation([array]) == pytest.approx(
        exact.std(), rel=1e-4, abs=1e-5
    )
    both = np.concatenate([exact.ravel(), exact.ravel() + 1])
    two = reductions.deviation([array, array + 1])
    assert two == pytest.approx(both.std(), rel=1e-4)
    for axis in range(len(shape)):
        expected = exact.mean(axis, keepdims=True)
        np.testing.assert_allclose(
            reductions.mean_along(array, axis), expected, atol=1e-4
        )
    # The pieces in which it is read make no difference.
    own = reductions.CHUNK
    try:
        expected, reductions.CHUNK = reductions.total(array, 0.5), chunk
        assert reductions.total(array, 0.5) == expected
    finally:
        reductions.CHUNK = own


@pytest.mark.core
@pytest.mark.skipif(keras.config.backend() != "jax", reason="compares with JAX")
@pytest.mark.parametrize("shape", [(7,), (64, 33), (3, 5, 100)])
def test_compiled_sums_are_the_same_to_the_bit(shape):
    import jax

    array = np.random.default_rng(0).standard_normal(shape).astype("float32")
    for axis in range(len(shape)):
        ours = jax.jit(reductions.tree_sum, static_argnums=1)(array, axis)
        np.testing.assert_array_equal(ours, reductions.tree_sum(array, axis))


def test_nothing_sums_to_zero():
    assert reductions.total(np.zeros((0, 3), "float32")) == 0.0
    assert reductions.mean(np.zeros(0, "float32")) == 0.0
