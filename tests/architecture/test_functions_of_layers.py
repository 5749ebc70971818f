"""Activations that are functions of the user's own, and layers with rarer options."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from models import numpy, relative_change

import keras_fusion
from keras_fusion import FusionError

pytestmark = pytest.mark.core


def snake(x):
    return x + ops.square(ops.sin(x))


def gelu(x):
    """Not Keras's, which its config would name."""
    return 0.5 * x * (1 + ops.tanh(x))


def by_layer(activation):
    hidden = layers.Dense(8, activation=activation)
    return keras.Sequential([keras.Input((4,)), hidden, layers.Dense(1)])


def of_residual_blocks(activation):
    inputs = keras.Input((4,))
    x = layers.Dense(8)(inputs)
    for _ in range(2):
        x = x + layers.Dense(8, activation=activation)(layers.LayerNormalization()(x))
    return keras.Model(inputs, layers.Dense(1)(x))


def same(a, b):
    x = np.random.default_rng(0).standard_normal((8, 4)).astype("float32")
    assert relative_change(numpy(a(x)), numpy(b(x))) < 1e-5


@pytest.mark.parametrize("activation", [snake, gelu, lambda x: ops.tanh(x) * x])
def test_activations_that_no_config_names(activation):
    model = by_layer(activation)
    grown = keras_fusion.fuse(model, factor=2, seed=0)
    assert grown.layers[0].activation is activation
    same(model, grown)
    model = keras.Sequential([*by_layer("relu").layers, layers.Activation(activation)])
    model.build((None, 4))
    same(model, keras_fusion.fuse(model, factor=2, seed=0))


def test_activations_of_deeper_models():
    model = of_residual_blocks(snake)
    stack = keras_fusion.DepthStacking(identity=True)
    same(model, stack.plan(model, seed=0).fill())
    with pytest.raises(FusionError, match="Keras's own 'gelu'.*Rename it"):
        stack.plan(of_residual_blocks(gelu), seed=0)


def test_renormalization():
    norm = layers.BatchNormalization(renorm=True)
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(8), norm, layers.Dense(1)]
    )
    x = np.random.default_rng(1).standard_normal((32, 4)).astype("float32")
    model.compile("sgd", "mse")
    model.fit(x, x[:, :1], verbose=0)
    same(model, keras_fusion.fuse(model, factor=2, seed=0))


def two_ends(width, more):
    inputs = keras.Input((4,))
    hidden = layers.Dense(width)(inputs)
    outputs = layers.Dense(2)(hidden)
    return keras.Model(inputs, [outputs, hidden] if more else outputs)


def test_a_given_model_with_more_outputs():
    parents = [two_ends(8, False), two_ends(8, False)]
    with pytest.raises(FusionError, match="has 1 outputs, and the bigger one 2"):
        keras_fusion.fuse(parents, into=two_ends(16, True))


class Masked(layers.Layer):
    """Lets some features through; which, no gradient changes."""

    def build(self, shape):
        name = {"name": "mask", "dtype": "bool", "trainable": False}
        zeros = lambda shape, dtype=None: ops.zeros(shape, dtype)  # noqa: E731
        self.mask = self.add_weight(shape=shape[-1:], initializer=zeros, **name)
        super().build(shape)

    def call(self, x):
        return x * ops.cast(self.mask, x.dtype)


def of_masked_blocks():
    inputs = keras.Input((4,))
    x = layers.Dense(8)(inputs)
    for _ in range(2):
        x = x + Masked()(layers.Dense(8)(x))
    return keras.Model(inputs, layers.Dense(1)(x))


def test_booleans_of_new_blocks_are_those_of_the_old_ones():
    deep = keras_fusion.DepthStacking().plan(of_masked_blocks(), seed=0).fill()
    masks = [numpy(x.mask) for x in deep.layers if isinstance(x, Masked)]
    assert len(masks) == 4 and not np.any(masks)


def test_booleans_that_would_grow_are_refused():
    keras_fusion.register(Masked, roles={"mask": ("out",)})
    with pytest.raises(FusionError, match="mask.* holds bool numbers and would grow"):
        keras_fusion.fuse(of_masked_blocks(), factor=2)
