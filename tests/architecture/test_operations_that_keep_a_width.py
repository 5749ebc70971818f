"""Operations on growing features that cannot grow: the width stays, or they are named."""

import numpy as np
import pytest
from bodies import ROW, ROWS, around, assert_copies_fuse, assert_refused, dense
from keras import layers, ops

from keras_fusion import FusionError, fuse

pytestmark = pytest.mark.core


# What cannot grow stays in copies, if something else can. Distinct parents have no width
# of that size in common.


def mixer(x, units):
    """The lengths are mixed: what is added to them keeps their number."""
    x = dense(x, units)
    mixed = dense(dense(ops.transpose(x, (0, 2, 1)), 12, "gelu"), 6)
    return x + ops.transpose(mixed, (0, 2, 1))


def gated_by_a_maximum(x, units):
    x = dense(x, units)
    gate = layers.Conv1D(1, 3, padding="same")(ops.max(x, axis=-1, keepdims=True))
    return dense(x, units) * gate


def attended(x):
    """One weight per position."""
    return ops.softmax(dense(x, 1), axis=1)


def by_hand(x, units):
    """Attention whose scores sum over features; the values grow."""
    query, key, value = dense(x, units), dense(x, units), dense(x, units)
    scores = ops.matmul(query, ops.transpose(key, (0, 2, 1)))
    return ops.matmul(ops.softmax(scores), value)


def sliced(x, units):
    return dense(dense(x, units)[:, ::2], units, "relu")


STAY = {
    "gate of one": (
        ROWS,
        lambda x, n: (lambda h: h * dense(h, 1))(dense(x, n)),
        "multiply",
    ),
    "layer gate of one": (
        ROWS,
        lambda x, n: (lambda h: layers.Multiply()([h, dense(h, 1)]))(dense(x, n)),
        "multiply",
    ),
    "attention pooling": (
        ROWS,
        lambda x, n: (lambda h: ops.sum(attended(h) * h, axis=1))(dense(x, n)),
        "multiply",
    ),
    "maximum of features": (ROWS, gated_by_a_maximum, "max"),
    "mixer": (ROWS, mixer, "dense"),
    "attention by hand": (ROWS, by_hand, "matmul"),
    "every other feature": (ROW, sliced, "get_item"),
    "flip of features": (
        ROW,
        lambda x, n: dense(ops.flip(dense(x, n), axis=-1), n, "relu"),
        "flip",
    ),
    "normalize features": (
        ROW,
        lambda x, n: dense(ops.normalize(dense(x, n)), n, "relu"),
        "normalize",
    ),
    "softmax of features": (
        ROW,
        lambda x, n: dense(layers.Softmax()(dense(x, n)), n, "relu"),
        "softmax",
    ),
    "gate with kept features": (
        ROW,
        lambda x, n: (
            lambda h: dense(layers.Multiply()([h, dense(h, 4 + n, "sigmoid")]), n)
        )(layers.Concatenate()([x, dense(x, n)])),
        "multiply",
    ),
}


@pytest.mark.parametrize("name", STAY)
def test_a_width_that_cannot_grow_stays_in_copies(name):
    shape, body, _ = STAY[name]
    assert_copies_fuse(body, shape)


@pytest.mark.parametrize("name", STAY)
def test_distinct_parents_are_refused_where_a_width_would_have_to_stay(name):
    shape, body, named = STAY[name]
    assert_refused(body, shape, f"'{named}.*istinct parents cannot", distinct=True)


REFUSED = {
    "slice": (ROW, lambda x, n: dense(x, n)[:, ::2], "'get_item.* selects some"),
    "flip": (
        ROW,
        lambda x, n: ops.flip(dense(x, n), -1),
        "'flip.*cannot grow: it mixes",
    ),
    "roll": (ROW, lambda x, n: ops.roll(dense(x, n), 1, -1), "'roll.*cannot grow"),
    "mean": (
        ROW,
        lambda x, n: (lambda h: h - ops.mean(h, -1, keepdims=True))(dense(x, n)),
        "'mean.*it makes one number of the features",
    ),
    "constant array": (
        ROW,
        lambda x, n: dense(x, n) * np.ones(n, "float32"),
        r"'multiply.*constant array of shape \(8,\).*a weight of a layer",
    ),
    "constant matrix": (
        ROW,
        lambda x, n: ops.matmul(dense(x, n), np.ones((n, 3), "float32")),
        "'matmul.*sums over",
    ),
    "rescaling by a list": (
        ROW,
        lambda x, n: layers.Rescaling([1.0, 2.0] * (n // 2))(dense(x, n)),
        r"'rescaling.*constant array of shape \(8,\)",
    ),
    "unknown": (
        ROW,
        lambda x, n: ops.diff(dense(x, n)),
        "Operation 'diff.* of class Diff cannot grow: it is not known",
    ),
    "unknown transform": (
        ROW,
        lambda x, n: ops.fft((dense(x, n), dense(x, n)))[0],
        "'fft.*cannot grow: it is not known",
    ),
    "heads by reshape": (
        ROWS,
        lambda x, n: layers.Flatten()(layers.Reshape((6, 2, n // 2))(dense(x, n))),
        "'reshape.*holds the parents' width",
    ),
}
# Copies say together what each of them says.
COMMON = {
    "masking": (
        ROWS,
        lambda x, n: layers.LSTM(n)(layers.Masking()(dense(x, n, "relu"))),
        "'masking.*its mask",
    ),
    "batch norm of positions": (
        ROWS,
        lambda x, n: layers.BatchNormalization(axis=1)(dense(x, n)),
        "'batch_norm.*its axis is 1",
    ),
    "batch norm of as many positions": (
        (16, 4),
        lambda x, n: layers.BatchNormalization(axis=1)(dense(x, n)),
        "'batch_norm.*its axis is 1",
    ),
}


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", COMMON)
def test_what_copies_have_in_common(name):
    shape, body, message = COMMON[name]
    assert_copies_fuse(body, shape)
    assert_refused(body, shape, message, distinct=True)
    with pytest.raises(FusionError, match=message):
        fuse(around(body, shape), factor=1.5)


@pytest.mark.parametrize("name", REFUSED)
def test_where_nothing_else_can_grow_the_operation_is_named(name):
    shape, body, message = REFUSED[name]
    assert_refused(body, shape, message)
    assert_refused(body, shape, message, distinct=True)
