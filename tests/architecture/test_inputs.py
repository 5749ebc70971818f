"""Inputs stay what they are in a bigger model: optional, sparse, ragged, and joined."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers
from models import numpy

from keras_fusion import DeepFusion, DepthStacking, HyperCloning, fuse

pytestmark = pytest.mark.core

X = np.random.default_rng(0).standard_normal((32, 4)).astype("float32")


class Gate(layers.Layer):
    def call(self, x, gate=None):
        return x if gate is None else x * gate

    def compute_output_shape(self, x_shape, gate_shape=None):
        return x_shape


def gated(joined):
    """A model whose second input may be left out."""
    x = keras.Input((4,), name="x")
    mask = keras.Input((4,), name="m", optional=True)
    hidden = layers.Dense(8, "relu")(Gate()(x, mask))
    return keras.Model(joined(x, mask), layers.Dense(1)(hidden))


def as_dict(x, mask):
    return {"x": x, "m": mask}


def as_list(x, mask):
    return [x, mask]


@pytest.mark.parametrize("joined", [as_dict, as_list])
def test_optional_input_stays_optional(joined):
    model = gated(joined)
    fused = fuse(model, factor=2)
    for mask in None, np.ones_like(X):
        inputs = joined(X, mask)
        ours, theirs = numpy(fused(inputs)), numpy(model(inputs))
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_model_trains_on_without_its_optional_input():
    model = gated(as_dict)
    model.compile("adam", "mse")
    grow = DeepFusion(at_step=2, verbose=0)
    options = {"batch_size": 8, "epochs": 2, "verbose": 0, "callbacks": [grow]}
    model.fit(as_dict(X, None), X[:, :1], **options)
    assert model.get_layer("x").optional is False
    assert model.get_layer("m").optional is True
    assert int(model.optimizer.iterations) == 8 and len(grow.events) == 1


KINDS = {"sparse": (20,), "ragged": (None,), "optional": (20,)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("nested", [False, True])
def test_kind_of_input_stays(kind, nested):
    has = {"torch": ["optional"], "jax": ["optional", "sparse"]}
    if kind not in has.get(keras.config.backend(), KINDS):
        pytest.skip("The backend has no such tensors.")
    inputs = keras.Input(KINDS[kind], **{kind: True})
    x = inputs
    if kind == "ragged":
        x = layers.GlobalAveragePooling1D()(layers.Embedding(9, 8)(x))
    x = layers.Dense(8)(x)
    if nested:
        inner = keras.Input((8,), name="inner")
        x = keras.Model(inner, layers.Dense(8)(inner))(x)
    model = keras.Model(inputs, layers.Dense(1)(x))
    fused = fuse(model, factor=2)
    config = fused.layers[0].get_config()
    assert config[kind] is True
    others = set(KINDS) - {kind}
    assert not any(config[other] for other in others)
    again = fuse(fused, factor=2).layers[0].get_config()
    assert again[kind] is True


# The structure of a deeper model's inputs.


def residual(joined=None):
    x = keras.Input((4,), name="x")
    inputs, hidden = x, layers.Dense(8)(x)
    if joined is not None:
        inputs = joined(x, keras.Input((4,), name="m"))
        hidden = layers.Dense(8)(layers.Add()(list(keras.tree.flatten(inputs))))
    for _ in range(2):
        hidden = hidden + layers.Dense(8, "relu")(hidden)
    return keras.Model(inputs, layers.Dense(1)(hidden))


def in_a_list(x, mask):
    return [x]


@pytest.mark.parametrize("joined", [None, as_dict, as_list])
@pytest.mark.parametrize("operator", [DepthStacking(), HyperCloning()], ids=str)
def test_structure_of_inputs_stays(joined, operator):
    """And calls of the grown model warn of nothing."""
    model = residual(joined)
    grown = operator.plan(model, seed=0).fill()
    keras.tree.assert_same_structure(grown.input, model.input)
    assert type(grown.output) is type(model.output)
    given = X if joined is None else joined(X, X)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert numpy(grown(given)).shape == numpy(model(given)).shape
    reloaded = type(grown).from_config(grown.get_config())
    keras.tree.assert_same_structure(reloaded.input, model.input)
