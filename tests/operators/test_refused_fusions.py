"""What `fuse` refuses: a clear error names the value and the way out."""

import re

import keras
import numpy as np
import pytest
from keras import layers
from models import (
    Subclassed,
    bert,
    gpt2,
    norm_free,
    outputs,
    perturbed,
    relative_change,
    subclassed,
)

import keras_fusion
from keras_fusion import (
    FusionError,
    StructureError,
    UnregisteredLayerError,
    fuse,
    register,
)
from keras_fusion.models import rules


def deeper():
    model = bert()
    config = model.backbone.get_config() | {"num_layers": 2}
    backbone = type(model.backbone).from_config(config)
    return type(model)(backbone, num_classes=3, dropout=0.0)


def gpt2_with(**changes):
    model = gpt2()
    backbone = type(model.backbone).from_config(model.backbone.get_config() | changes)
    return type(model)(backbone, preprocessor=None)


def attention_model(heads, size):
    inputs = keras.Input((4, 8))
    x = layers.MultiHeadAttention(heads, size)(inputs, inputs)
    return keras.Model(inputs, layers.Dense(2)(x))


def grouped_model(groups):
    inputs = keras.Input((4, 8))
    x = layers.GroupQueryAttention(4, 4, groups)(inputs, inputs)
    return keras.Model(inputs, layers.Dense(2)(x))


def around(*stack, shape=(4, 8)):
    inputs = x = keras.Input(shape)
    for layer in stack:
        x = layer(x)
    return keras.Model(inputs, x)


class Unregistered(layers.Layer):
    def build(self, input_shape):
        self.kernel = self.add_weight(name="kernel", shape=(input_shape[-1], 3))

    def call(self, x):
        return x @ self.kernel


class UnregisteredBlock(layers.Layer):
    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(units)

    def call(self, x):
        return self.dense(x)


class NoConfig(keras.Model):
    def __init__(self, width):
        super().__init__()
        self.dense = layers.Dense(width)

    def call(self, x):
        return self.dense(x)


def built(model, x=None):
    model(np.zeros((1, 4), "float32") if x is None else x)
    return model


def untied_norm():
    inputs = keras.Input((4,), dtype="int32")
    embedding = layers.ReversibleEmbedding(9, 8)
    return keras.Model(inputs, embedding(embedding(inputs), reverse=True))


def wrong_widths():
    class Wrong(NoConfig):
        def get_config(self):
            return {"width": 4}

    register(Wrong, widths=("unitz",))
    return built(Wrong(4))


def wrong_roles():
    class Odd(Unregistered):
        pass

    register(Odd, roles={"kernel": ("in", "out", None)})
    return around(layers.Dense(4), Odd(), layers.Dense(2))


BAD_FUSIONS = {
    "another depth": (
        lambda: fuse([perturbed(bert()), deeper()]),
        r"residual.*equal depth",
    ),
    "another vocabulary": (
        lambda: fuse([gpt2(), gpt2_with(vocabulary_size=30)]),
        r"'vocabulary_size'.*\[20, 30\]",
    ),
    "another class": (lambda: fuse([bert(), gpt2()]), r"BertTextClassifier.*GPT2"),
    "another number of layers": (
        lambda: fuse([norm_free(), around(layers.Dense(2))]),
        r"differ",
    ),
    "head sizes": (
        lambda: fuse([attention_model(2, 4), attention_model(2, 8)]),
        r"'key_dim'.*\[4, 8\].*Head sizes must be equal",
    ),
    "head sizes of a backbone": (
        lambda: fuse([gpt2(), gpt2_with(num_heads=1)]),
        r"head size.*\[4.0, 8.0\]",
    ),
    "key-value heads": (
        lambda: fuse([grouped_model(2), grouped_model(4)]),
        r"ratio of query heads.*\[2.0, 1.0\]",
    ),
    "unregistered layer": (
        lambda: fuse(
            around(layers.Dense(4), Unregistered(), layers.Dense(2)), factor=2
        ),
        r"Unregistered.*\['kernel'\].*register\(Unregistered.*'kernel': \('in', 'out'\)",
    ),
    "recurrent layer": (
        lambda: fuse(gated(), factor=2),
        r"class Gated, has weights.*widths=\('units'.*'kernel': \('in', \('out', 2\)\)",
    ),
    "unregistered block": (
        lambda: fuse(around(UnregisteredBlock(4), layers.Dense(2)), factor=2),
        r"class UnregisteredBlock.*keras_fusion.register\(UnregisteredBlock",
    ),
    "no config": (lambda: fuse(built(NoConfig(4)), factor=2), r"NoConfig.*`into`"),
    "unbuilt": (lambda: fuse(Subclassed(), factor=2), r"parents\[0\].*is not built"),
    "no factor": (lambda: fuse(gpt2()), r"no `factor`"),
    "factor 1": (lambda: fuse(gpt2(), factor=1), r"factor=1\."),
    "factor below 1": (lambda: fuse(gpt2(), factor=0.5), r"factor=0.5"),
    "factor with a list": (lambda: fuse([gpt2(), gpt2()], factor=2), r"factor=2 with"),
    "one parent": (lambda: fuse([gpt2()]), r"at least two models. Received 1"),
    "not a model": (lambda: fuse([gpt2(), "b"]), r"parents\[1\].*'b' of type str"),
    "off_diagonal": (lambda: fuse(gpt2(), factor=2, off_diagonal="ones"), r"'ones'"),
    "paired partners": (
        lambda: fuse([gpt2(), gpt2(seed=1)], off_diagonal="paired"),
        r"'paired'.*copies of one model",
    ),
    "noise_scale": (
        lambda: fuse(gpt2(), factor=2, noise_scale=-1.0),
        r"noise_scale=-1.0",
    ),
    "into a parent": (
        lambda: fuse(m := subclassed(), factor=2, into=m),
        r"`into` is one of the parents",
    ),
    "into too small": (
        lambda: fuse(norm_free(32), factor=2, into=norm_free(48)),
        r"sizes \[32, 32\] in the parents and 48",
    ),
    "into not a model": (
        lambda: fuse(gpt2(), factor=2, into=lambda: "model"),
        r"`into` must be.*gave str",
    ),
    "wrong width key": (lambda: fuse(wrong_widths(), factor=2), r"\['unitz'\].*config"),
    "wrong roles": (
        lambda: fuse(wrong_roles(), factor=2),
        r"2 axes.*roles=\{'kernel': \('in', 'out'\)\}",
    ),
    "nothing grows": (
        lambda: fuse(around(layers.Dense(2)), factor=2),
        r"Nothing grows",
    ),
    "channels first": (
        lambda: fuse(
            around(
                layers.Dense(4),
                layers.Conv1D(3, 2, data_format="channels_first"),
                layers.Flatten(),
                layers.Dense(2),
            ),
            factor=2,
        ),
        r"channels_first",
    ),
    "tied without a norm": (lambda: fuse(untied_norm(), factor=2), r"tied.*no norm"),
}


@pytest.mark.parametrize("case", BAD_FUSIONS)
def test_bad_fusion(case):
    call, pattern = BAD_FUSIONS[case]
    with pytest.raises(FusionError, match=pattern):
        call()


def test_an_error_lists_no_other_classes():
    model = around(layers.Dense(4), Unregistered(), layers.Dense(2))
    with pytest.raises(UnregisteredLayerError) as raised:
        fuse(model, factor=2)
    assert "MultiHeadAttention" not in str(raised.value)


@keras.saving.register_keras_serializable("tests")
class Gated(keras.layers.Layer):
    """A cell of two gates, in one kernel."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = self.state_size = self.output_size = units

    def build(self, input_shape):
        width, units = input_shape[-1], self.units
        self.kernel = self.add_weight(shape=(width, 2 * units), name="kernel")
        self.recurrent = self.add_weight(shape=(units, 2 * units), name="recurrent")

    def call(self, x, states, training=None):
        packed = x @ self.kernel + states[0] @ self.recurrent
        gate, value = keras.ops.split(packed, 2, axis=-1)
        state = keras.ops.sigmoid(gate) * keras.ops.tanh(value)
        return state, [state]

    def get_config(self):
        return super().get_config() | {"units": self.units}


def gated():
    cell = layers.RNN(Gated(4))
    return perturbed(around(layers.Dense(6), cell, layers.Dense(2), shape=(5, 3)))


def test_the_way_out_for_a_cell_of_ones_own_works(monkeypatch):
    monkeypatch.setattr(rules, "_RULES", dict(rules._RULES))
    model = gated()
    with pytest.raises(UnregisteredLayerError) as raised:
        fuse(model, factor=2)
    advice = re.search(r"e.g. (.*\)), with the class's", str(raised.value))
    eval(advice.group(1), {"keras_fusion": keras_fusion, "Gated": Gated})
    x = np.random.default_rng(0).standard_normal((4, 5, 3)).astype("float32")
    fused = fuse(model, factor=2)
    assert fused.layers[2].cell.units == 8
    assert relative_change(outputs(model, x), outputs(fused, x)) < 1e-5


def test_errors_have_classes_of_their_own():
    with pytest.raises(StructureError):
        fuse([gpt2(), gpt2_with(vocabulary_size=30)])
    with pytest.raises(UnregisteredLayerError):
        fuse(around(layers.Dense(4), Unregistered(), layers.Dense(2)), factor=2)
