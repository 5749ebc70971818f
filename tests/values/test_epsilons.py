"""A norm's epsilon is corrected where the norm reduces over what grew, and only there."""

import keras
import numpy as np
import pytest
from keras import layers
from models import outputs, relative_change

from keras_fusion import FusionError, Lemon, ZeroPadding, fuse, grow, register

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


@keras.saving.register_keras_serializable("epsilons")
class Written(keras.Model):
    """A model of a class that sets its norm's epsilon in its code, and tells no dtype."""

    def __init__(self, kind, small, width=8, **options):
        super().__init__(**options)
        self.options = {"kind": kind, "small": small, "width": width}
        self.inner = layers.Dense(width)
        self.norm = getattr(layers, kind)(epsilon=small)
        self.readout = layers.Dense(2)

    def call(self, inputs):
        return self.readout(self.norm(self.inner(inputs)))

    def get_config(self):
        return self.options


register(Written, widths=("width",))


@pytest.mark.core
@pytest.mark.parametrize("epsilon", [1e-3, 1e-6])
@pytest.mark.parametrize("kind", ["LayerNormalization", "RMSNormalization"])
def test_an_epsilon_in_code_is_seen_at_small_inputs(kind, epsilon):
    model, x = Written(kind, epsilon), np.random.default_rng(0).standard_normal((9, 5))
    before = [outputs(model, scale * x) for scale in (1.0, 0.01)]
    with pytest.raises(FusionError, match="epsilon"):
        fuse(model, factor=1.5)
    for operator in (ZeroPadding(2), Lemon(1.5)):
        with pytest.raises(FusionError, match="epsilon"):
            grow(model, operator)
    for options in ({"factor": 1.5, "norms": "block"}, {"factor": 2}):
        fused = fuse(model, **options)
        for scale, expected in zip((1.0, 0.01), before, strict=True):
            assert relative_change(expected, outputs(fused, scale * x)) < 1e-5
