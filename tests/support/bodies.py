"""Small models around one operation, and what fusion promises for them."""

import keras
import numpy as np
import pytest
from keras import layers
from models import mean_of, outputs, perturbed, relative_change

from keras_fusion import FusionError, fuse

WIDTH = 8
# Shapes of one example.
ROW, ROWS, IMAGE = (4,), (6, 4), (4, 4, 3)


def dense(x, units, activation=None):
    return layers.Dense(units, activation)(x)


def around(body, shape, width=WIDTH, seed=0):
    """A model `Dense(2)(body(inputs, width))`, all of whose weights count."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input(shape)
    model = keras.Model(inputs, layers.Dense(2, name="readout")(body(inputs, width)))
    return perturbed(model, seed)


def batch(shape, seed=0):
    """Five examples."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((5, *shape)).astype("float32")


def assert_copies_fuse(body, shape):
    """A self-fusion grows the model, and computes the same."""
    model, x = around(body, shape), batch(shape)
    fused = fuse(model, factor=2, off_diagonal="paired", seed=0)
    assert fused.count_params() > model.count_params()
    assert relative_change(outputs(model, x), outputs(fused, x)) < 1e-5
    return fused


def assert_distinct_fuse(body, shape, widths=(WIDTH, WIDTH)):
    """A fusion of distinct parents computes their mean."""
    parents = [around(body, shape, width, i) for i, width in enumerate(widths)]
    x = batch(shape)
    fused = fuse(parents)
    assert relative_change(mean_of(parents, x), outputs(fused, x)) < 1e-5


def assert_refused(body, shape, message, *, distinct=False):
    """The fusion is refused by name; nothing has happened to the parents."""
    parents = [around(body, shape, seed=i) for i in range(2)]
    x = batch(shape)
    before = [outputs(parent, x) for parent in parents]
    with pytest.raises(FusionError, match=message):
        fuse(parents) if distinct else fuse(parents[0], factor=2)
    for parent, expected in zip(parents, before, strict=True):
        np.testing.assert_array_equal(outputs(parent, x), expected)
