"""Operations on named axes: what is done to growing features, one by one.

Of each kind there are models in which it stands on growing features. Copies must compute
the same and distinct parents their mean.
"""

import keras
import numpy as np
import pytest
from bodies import (
    IMAGE,
    ROW,
    ROWS,
    WIDTH,
    around,
    assert_copies_fuse,
    assert_distinct_fuse,
    batch,
    dense,
)
from keras import layers, ops
from models import outputs, relative_change

import keras_fusion
from keras_fusion import fuse

pytestmark = pytest.mark.core


def conv(x, filters):
    return layers.Conv2D(filters, 1)(x)


def swiglu(x, units):
    gate, value = ops.split(dense(x, 2 * units), 2, axis=-1)
    return value * ops.silu(gate)


def thirds(x, units):
    a, b, c = ops.split(dense(x, 3 * units), 3, axis=-1)
    return a * b + c


def split_sum(x, units):
    total = dense(x, 2 * units) + dense(x, 2 * units, "relu")
    one, other = ops.split(total, 2, axis=-1)
    return one * other


def split_lengths(x, units):
    one, other = ops.split(dense(x, units), 2, axis=1)
    return one * other


def squeeze_excite(x, units):
    x = conv(x, units)
    gate = layers.Reshape((1, 1, units))(layers.GlobalAveragePooling2D()(x))
    gate = dense(dense(gate, units // 2, "relu"), units, "sigmoid")
    return layers.Multiply()([x, gate])


def excite_with_kept_axes(x, units):
    x = conv(x, units)
    return x * dense(layers.GlobalAveragePooling2D(keepdims=True)(x), units, "sigmoid")


def in_other_axes(x, units):
    x = ops.expand_dims(dense(x, units), 1)
    x = ops.swapaxes(ops.relu(ops.transpose(x, (0, 3, 2, 1))), 1, 3)
    return ops.squeeze(ops.moveaxis(x, 1, 2), 2)


PASS = {
    "arithmetic": (ROW, lambda x, n: (dense(x, n) + 1) * 2 - dense(x, n, "tanh") ** 2),
    "where": (ROW, lambda x, n: (lambda h: ops.where(h > 0, h, 0.1 * h))(dense(x, n))),
    "clip and cast": (
        ROW,
        lambda x, n: ops.cast(
            ops.cast(ops.clip(9 * dense(x, n), -5, 5), "int32"), "float32"
        ),
    ),
    "an array of one": (ROW, lambda x, n: dense(x, n) * np.float32([2.0])),
    "concatenate": (
        ROW,
        lambda x, n: dense(
            ops.concatenate([x, dense(x, n), x, dense(x, 2 * n)], -1), 6
        ),
    ),
    "concatenate lengths": (
        ROWS,
        lambda x, n: ops.concatenate([dense(x, n), dense(x, n, "relu")], axis=1),
    ),
    "stack": (
        ROW,
        lambda x, n: ops.max(ops.stack([dense(x, n), dense(x, n, "relu")], 1), axis=1),
    ),
    "split": (ROW, swiglu),
    "split in three": (ROW, thirds),
    "split of a sum": (ROW, split_sum),
    "split of lengths": (ROWS, split_lengths),
    "split what was joined": (
        ROW,
        lambda x, n: ops.multiply(
            *ops.split(ops.concatenate([dense(x, n), dense(x, n, "relu")], -1), 2, -1)
        ),
    ),
    "gate": (ROW, lambda x, n: ops.glu(dense(x, 2 * n))),
    "select positions": (ROWS, lambda x, n: dense(x, n)[:, 1:4] + dense(x, n)[:, :1]),
    "last position": (ROWS, lambda x, n: dense(x, n)[:, -1]),
    "new axis": (ROWS, lambda x, n: dense(x, n)[..., None][:, :, :, 0]),
    "take": (ROWS, lambda x, n: ops.take(dense(x, n), [0, 2], axis=1)),
    "pad": (ROWS, lambda x, n: ops.pad(dense(x, n), ((0, 0), (1, 0), (0, 0)))),
    "other axes": (ROWS, in_other_axes),
    "reduction of positions": (
        ROWS,
        lambda x, n: ops.mean(dense(x, n), 1) + ops.max(dense(x, n), axis=1),
    ),
    "softmax of positions": (ROWS, lambda x, n: ops.softmax(dense(x, n), axis=1)),
    "cumsum and flip of positions": (
        ROWS,
        lambda x, n: ops.flip(ops.cumsum(dense(x, n), axis=1), axis=1),
    ),
    "normalize positions": (ROWS, lambda x, n: ops.normalize(dense(x, n), axis=1)),
    "einsum": (
        ROWS,
        lambda x, n: ops.einsum("blc,bl->bc", dense(x, n), ops.softmax(x[..., 0])),
    ),
    "matmul": (
        ROWS,
        lambda x, n: ops.matmul(ops.softmax(ops.transpose(x, (0, 2, 1))), dense(x, n)),
    ),
    "dot": (
        ROWS,
        lambda x, n: layers.Dot(axes=1)([layers.Softmax(axis=1)(x), dense(x, n)]),
    ),
    "reshape to one axis": (ROWS, lambda x, n: ops.reshape(dense(x, n), (-1, 6 * n))),
    "positions in the batch and back": (
        ROWS,
        lambda x, n: ops.reshape(
            dense(ops.reshape(dense(x, n), (-1, n)), 2 * n, "relu"), (-1, 6, 2 * n)
        ),
    ),
    "reshape of positions": (ROWS, lambda x, n: layers.Reshape((2, 3, n))(dense(x, n))),
    "permute": (
        ROWS,
        lambda x, n: layers.Permute((2, 1))(layers.Permute((2, 1))(dense(x, n))),
    ),
    "squeeze and excite": (IMAGE, squeeze_excite),
    "excite with kept axes": (IMAGE, excite_with_kept_axes),
    "pool and enlarge": (
        IMAGE,
        lambda x, n: layers.UpSampling2D()(layers.MaxPooling2D()(conv(x, n))),
    ),
    "repeat": (ROW, lambda x, n: layers.RepeatVector(3)(dense(x, n))),
    "tile": (ROW, lambda x, n: dense(ops.tile(dense(x, n), (1, 3)), n, "relu")),
    "tile positions": (ROW, lambda x, n: ops.tile(dense(x, n), (2, 1, 1))[0]),
    "unstack": (ROWS, lambda x, n: ops.add(*ops.unstack(dense(x, n), axis=1)[:2])),
    "one mean for all": (
        ROW,
        lambda x, n: layers.Normalization(axis=None, mean=0.5, variance=2.0)(
            dense(x, n)
        ),
    ),
    "resize": (IMAGE, lambda x, n: layers.Resizing(3, 5)(conv(x, n))),
    "crop": (IMAGE, lambda x, n: layers.CenterCrop(3, 2)(conv(x, n))),
}


@pytest.mark.parametrize("name", PASS)
def test_what_is_done_to_each_feature_by_itself(name):
    shape, body = PASS[name]
    assert_copies_fuse(body, shape)
    assert_distinct_fuse(body, shape)


@pytest.mark.parametrize("name", ["concatenate", "split", "squeeze and excite"])
def test_parents_of_unequal_widths(name):
    shape, body = PASS[name]
    assert_distinct_fuse(body, shape, widths=(WIDTH, WIDTH // 2))


# Features of the inputs stay, whatever they were before.


def from_ids(shape, start, body):
    inputs = keras.Input(shape, dtype="int32")
    x = start(inputs)
    return keras.Model(inputs, dense(dense(body(x), 8), 2))


CONVERTED = {
    "cast": ((4,), lambda i: ops.cast(i, "float32"), lambda x: x + dense(x, 4)),
    "rescaling": (
        IMAGE,
        layers.Rescaling(1 / 255),
        lambda x: layers.Flatten()(layers.Add()([x, conv(x, 3)])),
    ),
    "one hot": ((6,), lambda i: ops.one_hot(i, 8), lambda x: (x + dense(x, 8))[:, 0]),
    "encoding": (
        (1,),
        layers.CategoryEncoding(8, "one_hot"),
        lambda x: layers.Multiply()([x, dense(x, 8)]),
    ),
    "joined and normalized": (
        IMAGE,
        layers.Rescaling(1 / 255),
        lambda x: layers.GlobalAveragePooling2D()(
            layers.BatchNormalization()(layers.Concatenate()([x, conv(x, 5)]))
        ),
    ),
}


@pytest.mark.parametrize("name", CONVERTED)
def test_integers_made_features_keep_their_number(name):
    shape, start, body = CONVERTED[name]
    model = from_ids(shape, start, body)
    x = np.random.default_rng(0).integers(0, 4, (3, *shape), "int32")
    fused = fuse(model, factor=2)
    assert fused.count_params() > model.count_params()
    assert relative_change(outputs(model, x), outputs(fused, x)) < 1e-5


@pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="strings are TensorFlow's"
)
@pytest.mark.parametrize("flat", [False, True])
def test_strings_keep_their_number(flat):
    words = ["a", "b", "c"]
    x = [keras.Input((2,), dtype="string"), layers.StringLookup(vocabulary=words)]
    pool = layers.Flatten() if flat else layers.GlobalAveragePooling1D()
    model = keras.Sequential([*x, layers.Embedding(4, 8), pool, layers.Dense(2)])
    fused = fuse(model, factor=2)
    batch = np.array([["a", "b"], ["c", "d"]], dtype=object)
    before, after = (ops.convert_to_numpy(m(ops.array(batch))) for m in (model, fused))
    assert fused.layers[1].output_dim == 16
    assert relative_change(before, after) < 1e-5


# Operators that copy units follow the parts of an axis as well.

OPERATORS = {
    "HyperCloning": lambda: keras_fusion.HyperCloning(factor=2),
    "LEMON": lambda: keras_fusion.Lemon(factor=1.5, seed=0),
    "Net2Net": lambda: keras_fusion.Net2Net(factor=1.5, seed=0),
    "zero padding": lambda: keras_fusion.ZeroPadding(factor=1.5),
}
JOINED = {
    "kept last": lambda x, n: dense(layers.Concatenate()([dense(x, n), x]), n, "tanh"),
    "kept first": lambda x, n: dense(layers.Concatenate()([x, dense(x, n)]), n, "tanh"),
    "kept between": lambda x, n: dense(
        ops.concatenate([dense(x, n), x, dense(x, 2 * n)], -1), n, "tanh"
    ),
    "split": swiglu,
}


@pytest.mark.tensorflow
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("body", JOINED)
def test_operators_that_copy_behind_a_concatenation(operator, body):
    model, x = around(JOINED[body], ROW), batch(ROW)
    grown = OPERATORS[operator]().plan(model).fill()
    assert grown.count_params() > model.count_params()
    assert relative_change(outputs(model, x), outputs(grown, x)) < 1e-5
