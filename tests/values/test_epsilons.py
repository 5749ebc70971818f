"""A norm's epsilon is corrected where the norm reduces over what grew, and only there."""

import keras
import numpy as np
import pytest
from keras import layers
from models import outputs, relative_change

from keras_fusion import Lemon, ZeroPadding, fuse

GROWTHS = {
    "factor 1.5": lambda model: fuse(model, factor=1.5, seed=0),
    "factor 2.5": lambda model: fuse(model, factor=2.5, seed=0),
    "ZeroPadding": lambda model: ZeroPadding(2).plan(model, 0).fill(),
    "Lemon": lambda model: Lemon(1.5).plan(model, 0).fill(),
}


def of_the_input(norm):
    inputs = keras.Input((8,))
    h = layers.Dense(16, "relu")(norm()(inputs))
    return keras.Model(inputs, inputs + layers.Dense(8)(h))


def of_what_grew(norm):
    inputs = keras.Input((8,))
    h = layers.Dense(8, use_bias=False)(inputs)
    return keras.Model(inputs, layers.Dense(2)(norm()(h)))


def over_time(norm):
    inputs = keras.Input((6, 8))
    h = layers.LayerNormalization(axis=1)(layers.Dense(8)(inputs))
    return keras.Model(inputs, layers.Dense(2)(h))


def both(norm):
    inputs = keras.Input((8,))
    h = layers.Dense(8, use_bias=False)(norm()(inputs))
    return keras.Model(inputs, layers.Dense(2)(norm()(h)))


@pytest.mark.core
@pytest.mark.parametrize("growth", GROWTHS)
@pytest.mark.parametrize("make", [of_the_input, of_what_grew, over_time, both])
@pytest.mark.parametrize("name", ["LayerNormalization", "RMSNormalization"])
def test_the_function_stays_at_every_scale_of_the_input(name, make, growth):
    if make is over_time and growth == "factor 2.5":
        pytest.skip("Two copies cannot share a norm over time.")
    if make is over_time and keras.backend.backend() == "torch":
        pytest.skip("Keras's own norm over time fails there.")
    model = make(getattr(layers, name))
    grown = GROWTHS[growth](model)
    x = np.random.default_rng(0).standard_normal((9, *model.input_shape[1:]))
    for scale in (100.0, 1.0, 0.1, 0.01, 0.001):
        small = (scale * x).astype("float32")
        change = relative_change(outputs(model, small), outputs(grown, small))
        assert change < 2e-5, scale
