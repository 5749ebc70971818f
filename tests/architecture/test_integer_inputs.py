"""Integers in a model's inputs that are numbers, and not ids: features of the inputs stay.

Most of them are zero for most inputs, so that the batch that is made must hold more than
zeros and ones for a difference to show.
"""

import keras
import numpy as np
import pytest
from bodies import dense
from keras import layers, ops
from models import numpy, perturbed, relative_change

from keras_fusion import FusionError, HyperCloning, Net2Net, ZeroPadding, fuse
from keras_fusion.models import samples

pytestmark = pytest.mark.core


def gated(x):
    """The features of the inputs, each times a number that is made of all."""
    return x * dense(x, x.shape[-1], "sigmoid")


def summed(x):
    return layers.Add()([x, dense(x, x.shape[-1], "tanh")])


# By shape and dtype of the inputs, what makes features of them.
INPUTS = {
    "compared": ((4,), "int32", lambda i: gated(ops.cast(ops.equal(i, 2), "float32"))),
    "more than": ((4,), "uint8", lambda i: summed(ops.cast(i > 100, "float32"))),
    "multi-hot": (
        (4,),
        "int32",
        lambda i: summed(layers.CategoryEncoding(6, "multi_hot")(i)),
    ),
    "remainder": ((4,), "int64", lambda i: gated(ops.cast(i % 5, "float32") / 5)),
    "boolean": ((4,), "bool", lambda i: gated(ops.cast(i, "float32"))),
    "bins": (
        (4,),
        "float32",
        lambda i: summed(
            ops.cast(layers.Discretization(bin_boundaries=[-1.0, 1.0])(i), "float32")
        ),
    ),
}
OPERATORS = [HyperCloning(2), Net2Net(1.5), ZeroPadding(1.5)]


def net(name, seed=0):
    shape, dtype, start = INPUTS[name]
    keras.utils.set_random_seed(seed)
    inputs = keras.Input(shape, dtype=dtype)
    hidden = dense(start(inputs), 8, "relu")
    return perturbed(keras.Model(inputs, dense(hidden, 2)), seed)


def batch(name):
    shape, dtype, _ = INPUTS[name]
    rng = np.random.default_rng(0)
    if dtype == "float32":
        return rng.standard_normal((32, *shape)).astype(dtype)
    highest = {"multi-hot": 6, "boolean": 2}.get(name, 200)
    return rng.integers(0, highest, (32, *shape)).astype(dtype)


@pytest.mark.parametrize("name", INPUTS)
def test_features_of_the_inputs_keep_their_number(name):
    model, x = net(name), batch(name)
    grown = [fuse(model, factor=2), *(op.plan(model, 0).fill() for op in OPERATORS)]
    for bigger in grown:
        assert bigger.count_params() > model.count_params()
        assert relative_change(numpy(model(x)), numpy(bigger(x))) < 1e-5


@pytest.mark.parametrize("name", INPUTS)
def test_distinct_parents_that_are_not_their_mean_are_refused(name):
    """What the parents share there is a mean, which an activation then bends."""
    with pytest.raises(FusionError, match="departs is Dense"):
        fuse([net(name, seed) for seed in (0, 1)])


def test_ids_that_are_looked_up_are_only_those_that_every_table_has():
    class Table(layers.Layer):
        def call(self, i):
            seen.append(int(np.max(numpy(i))))
            return ops.take(ops.convert_to_tensor(np.eye(2, dtype="float32")), i, 0)

        def compute_output_spec(self, i):
            return keras.KerasTensor((*i.shape, 2))

    inputs, seen = keras.Input((4,), dtype="int32"), []
    x = layers.Flatten()(Table()(inputs))
    samples.sample(keras.Model(inputs, dense(x, 2)))
    assert seen and max(seen) == 1
