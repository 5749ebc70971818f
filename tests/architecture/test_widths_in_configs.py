"""Widths in the configs of layers with a vector of weights: of the features, or inner."""

import keras
import numpy as np
import pytest
from keras import layers
from models import outputs, perturbed, relative_change
from rule_samples import of_convnext

import keras_fusion
from keras_fusion import fuse


@keras.saving.register_keras_serializable("tests")
class Inner(layers.Layer):
    """Scaled features of a feed-forward block, which may be as wide inside as outside."""

    def __init__(self, hidden, **kwargs):
        super().__init__(**kwargs)
        self.hidden = hidden

    def build(self, shape):
        self.gamma = self.add_weight(shape=shape[-1:], name="gamma")
        self.into = layers.Dense(self.hidden, activation="gelu", name="into")
        self.into.build(shape)
        self.out = layers.Dense(shape[-1], name="out")
        self.out.build((*shape[:-1], self.hidden))

    def call(self, x):
        return x + self.gamma * self.out(self.into(x))

    def get_config(self):
        return super().get_config() | {"hidden": self.hidden}


@pytest.mark.parametrize("hidden", [8, 12])
def test_a_width_that_equals_the_features_by_chance_grows_by_itself(hidden):
    keras_fusion.register(Inner, widths=("hidden",), roles={"gamma": ("out",)})
    inputs = keras.Input((8,))
    model = perturbed(keras.Model(inputs, layers.Dense(2)(Inner(hidden)(inputs))))
    fused = fuse(model, factor=2)
    assert fused.layers[1].hidden == 2 * hidden
    x = np.random.default_rng(0).standard_normal((4, 8)).astype("float32")
    assert relative_change(outputs(model, x), outputs(fused, x)) < 1e-5


def test_a_width_in_a_config_follows_the_features_that_are_read():
    """A layer that scales each feature stays with those of the model's own inputs."""
    scaled = of_convnext("LayerScale")
    inputs = keras.Input((8,))
    x = layers.Dense(12, activation="gelu")(scaled(0.5, 8)(inputs))
    model = keras.Model(inputs, layers.Dense(2)(scaled(0.5, 12)(x)))
    model = perturbed(model)
    x = np.random.default_rng(0).standard_normal((4, 8)).astype("float32")
    fused = fuse(model, factor=2)
    widths = [layer.projection_dim for layer in fused.layers if "scale" in layer.name]
    assert widths == [8, 24]
    assert relative_change(outputs(model, x), outputs(fused, x)) < 1e-5
