"""Outputs keep their shape, and a bigger model that was given fits, or all is refused."""

import keras
import numpy as np
import pytest
from bodies import around, batch
from keras import layers, ops
from models import mean_of, outputs, perturbed, relative_change

import keras_fusion
from keras_fusion import DeepFusion, FusionError, StructureError, fuse
from keras_fusion.models import rules

pytestmark = pytest.mark.core
ROW, ROWS = (4,), (6, 4)


def dense(x, units, activation=None):
    return layers.Dense(units, activation)(x)


# Outputs that are made of what might grow.


def of(shape, *bodies):
    def make():
        inputs = keras.Input(shape)
        hidden = dense(inputs, 8, "tanh")
        made = [body(hidden) for body in bodies]
        return perturbed(keras.Model(inputs, made if len(made) > 1 else made[0]))

    return make


OUTPUTS = {
    "transposed": of(ROWS, lambda x: ops.transpose(dense(x, 3), (0, 2, 1))),
    "boolean": of(ROW, lambda x: dense(x, 3) > 0),
    "integer": of(ROW, lambda x: ops.argmax(dense(x, 3), axis=-1)),
    "cast": of(ROW, lambda x: ops.cast(10 * dense(x, 3), "int32")),
    "reshaped": of(ROWS, lambda x: ops.reshape(dense(x, 4), (-1, 12, 2))),
    "split": of(ROW, lambda x: ops.split(dense(x, 6), 2, axis=-1)[0]),
    "sliced": of(ROW, lambda x: dense(x, 6)[:, 1:4]),
    "reduced": of(ROW, lambda x: ops.sum(dense(x, 6), axis=-1)),
    "several": of(ROW, lambda x: dense(x, 3), lambda x: dense(x, 2) > 0),
    "a mask of hidden features": of(
        ROW, lambda x: dense(x, 3), lambda x: dense(dense(x, 5) > 0, 2)
    ),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_keep_their_shape(name):
    model = OUTPUTS[name]()
    x = batch(model.input_shape[1:])
    fused = fuse(model, factor=2)
    assert fused.count_params() > model.count_params()
    for before, after in zip(
        keras.tree.flatten(model(x)), keras.tree.flatten(fused(x)), strict=True
    ):
        before, after = (ops.convert_to_numpy(y) for y in (before, after))
        assert before.shape == after.shape and before.dtype == after.dtype
        np.testing.assert_allclose(before * 1.0, after * 1.0, rtol=1e-3, atol=1e-5)


def test_hidden_features_as_an_output_keep_their_number():
    model = of(ROW, lambda x: x > 0, lambda x: dense(dense(x, 6, "relu"), 2))()
    fused = fuse(model, factor=2)
    assert [tuple(y.shape) for y in fused.outputs] == [(None, 8), (None, 2)]


@pytest.mark.parametrize("length", [6, 8])
@pytest.mark.parametrize(
    "make", [layers.MultiHeadAttention, layers.GroupQueryAttention]
)
def test_attention_scores_as_an_output_are_refused(make, length):
    inputs = keras.Input((length,), dtype="int32")
    x = layers.Embedding(12, 8)(inputs)
    options = (2, 4) if make is layers.MultiHeadAttention else (4, 2, 2)
    attention = make(*options, name="attention")
    a, scores = attention(x, x, return_attention_scores=True)
    model = keras.Model(inputs, [dense(x + a, 2), scores])
    with pytest.raises(FusionError, match="'attention'.*scores.*number of heads"):
        fuse(model, factor=2)


@pytest.mark.parametrize("length", [6, 8])
def test_a_length_that_is_by_chance_the_width(length):
    def make():
        inputs = keras.Input((length,), dtype="int32")
        x = layers.Embedding(12, 8)(inputs)
        x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 4)(x, x))
        mixed = ops.transpose(dense(ops.transpose(x, (0, 2, 1)), length), (0, 2, 1))
        return perturbed(keras.Model(inputs, dense(x + mixed, 2)))

    model, x = make(), np.arange(2 * length).reshape(2, length) % 12
    fused = fuse(model, factor=2)
    embedding = next(x for x in fused.layers if isinstance(x, layers.Embedding))
    assert embedding.output_dim == 16
    assert relative_change(outputs(model, x), outputs(fused, x)) < 1e-5


def test_a_wrapper_whose_rule_tells_no_width_is_refused_before_the_first_step(
    monkeypatch,
):
    monkeypatch.setattr(rules, "_RULES", dict(rules._RULES))
    keras_fusion.register(layers.TimeDistributed, nested=("layer",))
    inputs = keras.Input((6, 3))
    hidden = layers.TimeDistributed(layers.Dense(8, "relu"))(inputs)
    model = keras.Model(inputs, layers.TimeDistributed(layers.Dense(1))(hidden))
    model.compile("adam", "mse")
    x, before = batch((6, 3)), model.get_weights()
    with pytest.raises(FusionError, match="'time_distributed.*shape must stay"):
        model.fit(x, x[..., :1], verbose=0, callbacks=[DeepFusion(at_step=2)])
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@keras.saving.register_keras_serializable("tests")
class Classifier(keras.Model):
    """A class that counts the size of its output among its widths."""

    def __init__(self, width, classes, **kwargs):
        super().__init__(**kwargs)
        self.width, self.classes = width, classes
        self.hidden, self.readout = layers.Dense(width), layers.Dense(classes)

    def call(self, x):
        return self.readout(self.hidden(x))

    def get_config(self):
        return super().get_config() | {"width": self.width, "classes": self.classes}


keras_fusion.register(Classifier, widths=("width", "classes"))


def test_a_class_whose_output_would_grow_is_refused():
    model = Classifier(8, 3)
    model(batch(ROW))
    with pytest.raises(FusionError, match=r"Output 0.*\(2, 3\).*\(2, 6\).*widths"):
        fuse(model, factor=2)


# A bigger model that was given.


def net(body):
    return lambda width: around(body, ROW, width)


GIVEN = {
    "reshape": net(lambda x, n: layers.Flatten()(layers.Reshape((1, n))(dense(x, n)))),
    "lambda": net(lambda x, n: layers.Lambda(lambda t: 2 * t)(dense(x, n))),
    "softmax of another axis": net(
        lambda x, n: layers.Softmax(axis=1)(
            layers.Conv1D(n, 1)(layers.RepeatVector(3)(dense(x, n)))
        )
    ),
    "gate": net(lambda x, n: ops.glu(dense(x, 2 * n))),
}


@pytest.mark.parametrize("name", GIVEN)
def test_a_bigger_model_that_was_given(name):
    make, x = GIVEN[name], batch(ROW)
    model = make(8)
    for parents in ([model, model], [make(8), perturbed(make(8), 1)]):
        fused = fuse(parents, into=make(16))
        assert relative_change(mean_of(parents, x), outputs(fused, x)) < 1e-5


MIXING = {
    "softmax": net(lambda x, n: layers.Softmax()(dense(x, n))),
    "centered": net(
        lambda x, n: layers.Lambda(lambda t: t - ops.mean(t, -1, keepdims=True))(
            dense(x, n)
        )
    ),
    "flip": net(lambda x, n: ops.flip(dense(x, n), axis=-1)),
}


@pytest.mark.parametrize("name", MIXING)
def test_no_error_advises_what_was_just_done(name):
    make = MIXING[name]
    with pytest.raises(FusionError, match="cannot grow") as raised:
        fuse([make(8), make(8)], into=make(16))
    assert "pass the bigger model" not in str(raised.value)


def attention(heads, size, width):
    keras.utils.set_random_seed(width)
    inputs = keras.Input(ROWS)
    x = dense(inputs, width)
    x = x + layers.MultiHeadAttention(heads, size, name="attention")(x, x)
    return perturbed(keras.Model(inputs, dense(x, 2)))


def grouped(heads, size, width):
    inputs = keras.Input(ROWS)
    x = dense(inputs, width)
    x = x + layers.GroupQueryAttention(size, heads, heads, name="attention")(x, x)
    return perturbed(keras.Model(inputs, dense(x, 2)))


def with_values(heads, size, width):
    """The heads of the values are of another size than those of the keys."""
    inputs = keras.Input(ROWS)
    x = dense(inputs, width)
    x = x + layers.MultiHeadAttention(heads, 4, value_dim=size)(x, x)
    return perturbed(keras.Model(inputs, dense(x, 2)))


def by_einsum(heads, size, width):
    inputs = keras.Input(ROWS)
    x = dense(inputs, width)
    split = layers.EinsumDense("btx,xhd->bthd", (None, heads, size))(x)
    x = x + layers.EinsumDense("bthd,hdx->btx", (None, width))(ops.tanh(split))
    return perturbed(keras.Model(inputs, dense(x, 2)))


@pytest.mark.parametrize("heads", [2, 4])
def test_other_sizes_of_heads_are_refused(heads):
    with pytest.raises(StructureError, match=r"'value_dim' of .*\[4, 8\]"):
        fuse([with_values(2, 4, 8)] * 2, into=with_values(heads, 8, 16))
    message = r"'einsum_dense.*\(None, None, \d, 8\).*instead of \(None, None, 4, 4\)"
    with pytest.raises(FusionError, match=message):
        fuse([by_einsum(2, 4, 8)] * 2, into=by_einsum(heads, 8, 16))


@pytest.mark.parametrize("make", [attention, grouped])
@pytest.mark.parametrize(("heads", "size"), [(2, 8), (4, 8)])
def test_a_head_size_that_differs_from_the_parents_is_refused(make, heads, size):
    parents = [make(2, 4, 8), make(2, 4, 8)]
    with pytest.raises(StructureError, match=r"`into` differ in '.*_dim'.*\[4, 8\]"):
        fuse(parents, into=make(heads, size, 16))


@pytest.mark.parametrize("make", [attention, with_values, by_einsum])
def test_the_same_head_size_fits(make):
    parents, x = [make(2, 4, 8), make(2, 4, 8)], batch(ROWS)
    fused = fuse(parents, into=make(4, 4, 16))
    assert relative_change(mean_of(parents, x), outputs(fused, x)) < 1e-5
