"""What a model's own weights hide is seen with others, where no graph tells of it."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from models import outputs, perturbed, relative_change

import keras_fusion
from keras_fusion import Chain, FusionError, HyperCloning, ZeroPadding, fuse

X = np.random.default_rng(0).standard_normal((32, 4)).astype("float32")

# What one number is made of, all features together. Zeros show in it only where all
# features have the other sign.
REDUCED = {
    "amin": (lambda h: ops.amin(h, -1, keepdims=True), -1),
    "max": (lambda h: ops.max(h, -1, keepdims=True), 1),
    "all": (lambda h: ops.cast(ops.all(h > 0, -1, keepdims=True), h.dtype), -1),
    "any": (lambda h: ops.cast(ops.any(h >= 0, -1, keepdims=True), h.dtype), 1),
    "norm": (lambda h: ops.norm(h, -np.inf, -1, keepdims=True), 0),
    "largest": (lambda h: ops.top_k(h, 1)[0], 1),
}


@keras.saving.register_keras_serializable("tests_other_weights")
class Reducing(keras.Model):
    """Adds what it makes of all hidden features, which no graph tells."""

    def __init__(self, width, name_of, **options):
        super().__init__(**options)
        self.width, self.name_of = width, name_of
        self.hidden, self.readout = layers.Dense(width), layers.Dense(2)

    def call(self, x):
        hidden = self.hidden(x)
        return self.readout(hidden) + REDUCED[self.name_of][0](hidden)

    def get_config(self):
        return super().get_config() | {"width": self.width, "name_of": self.name_of}


keras_fusion.register(Reducing, widths=("width",))


@keras.saving.register_keras_serializable("tests_other_weights")
class Lowest(layers.Layer):
    """Subtracts the lowest feature; registered as if it took each by itself."""

    def call(self, x):
        return x - ops.min(x, axis=-1, keepdims=True)


keras_fusion.register(Lowest)


def hiding(dense, sign):
    """Gives one feature a value that keeps zeros from being the lowest, or highest."""
    bias = np.zeros(dense.units, "float32")
    bias[0] = 1000.0 * sign
    dense.bias.assign(bias)


def reducing(name):
    model = Reducing(8, name)
    model(X)
    hiding(model.hidden, REDUCED[name][1])
    return model


def with_own_layer():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(2)(Lowest()(layers.Dense(8)(inputs))))
    hiding(model.layers[1], -1)
    return model


GROWTHS = {
    "factor 1.5": 1.5,
    "ZeroPadding": ZeroPadding(2),
    "a chain": Chain([HyperCloning(2), ZeroPadding(1.5)]),
}


@pytest.mark.parametrize("growth", GROWTHS)
def test_new_zeros_that_all_features_hide(growth):
    model = reducing("amin")
    with pytest.raises(FusionError, match="with .* weights, its outputs changed"):
        keras_fusion.grow(model, GROWTHS[growth], verbose=0)
    assert model.width == 8


@pytest.mark.core
@pytest.mark.parametrize("name", REDUCED)
def test_every_reduction_of_that_kind(name):
    model = reducing(name)
    with pytest.raises(FusionError, match="outputs changed by"):
        fuse(model, factor=1.5)
    copies = fuse(model, factor=2)  # These say together what each of them says.
    assert relative_change(outputs(model, X), outputs(copies, X)) < 1e-5


@pytest.mark.parametrize("growth", GROWTHS)
def test_a_layer_of_ones_own_in_a_graph(growth):
    model = with_own_layer()
    with pytest.raises(FusionError, match="input changed by .*Lowest"):
        keras_fusion.grow(model, GROWTHS[growth], verbose=0)
    assert model.layers[1].units == 8


@keras.saving.register_keras_serializable("tests_other_weights")
class Blocks(keras.Model):
    """Residual blocks with norms, whose hidden units are dead in the first one."""

    def __init__(self, width, **options):
        super().__init__(**options)
        self.width = width
        self.stem, self.readout = layers.Dense(width), layers.Dense(2)
        self.norms = [layers.RMSNormalization(epsilon=1e-7) for _ in range(2)]
        self.hidden = [layers.Dense(2 * width, "relu") for _ in range(2)]
        self.back = [layers.Dense(width) for _ in range(2)]

    def call(self, x):
        x = self.stem(x)
        for norm, hidden, back in zip(self.norms, self.hidden, self.back, strict=True):
            x = x + back(hidden(norm(x)))
        return ops.softplus(self.readout(x))

    def get_config(self):
        return super().get_config() | {"width": self.width}


keras_fusion.register(Blocks, widths=("width",))


@pytest.mark.core
@pytest.mark.parametrize("factor", [1.5, 2, 2.5])
def test_what_is_right_grows_all_the_same(factor):
    model = Blocks(8)
    model(X)
    perturbed(model).hidden[0].bias.assign(np.full(16, -50.0, "float32"))
    fused = fuse(model, factor=factor)
    assert fused.width == 8 * factor
    assert relative_change(outputs(model, X), outputs(fused, X)) < 1e-5
