"""Models that others have written, with what no rule of ours can foresee."""

import keras
import keras_hub
import numpy as np
import pytest
from keras import layers
from models import bert, llama, outputs, perturbed, relative_change

import keras_fusion
from keras_fusion import DeepFusion, fuse
from keras_fusion.testing import run_growth_test

FEATURES = 3


def test_what_mixes_features_is_refused_by_name():
    """A Lambda is a black box; an activation is tried."""
    inputs = keras.Input((FEATURES,))
    for layer, name in (
        (layers.Activation("softmax", name="weights"), "'weights' of .*'softmax'"),
        (layers.Lambda(lambda h: 2 * h, name="twice"), "'twice' of class Lambda"),
    ):
        x = layer(layers.Dense(4)(inputs))
        with pytest.raises(keras_fusion.FusionError, match=name):
            fuse(keras.Model(inputs, layers.Dense(2)(x)), factor=2)
    # What does not grow may be anything.
    mixed = layers.Dense(4, activation="log_softmax", name="b")
    x = layers.Dense(2)(mixed(layers.Dense(4)(inputs)))
    fused = fuse(keras.Model(inputs, x), factor=2)
    assert [fused.layers[k].units for k in (1, 2)] == [8, 4]
    x = layers.Dense(2, activation="softmax")(layers.Dense(4)(inputs))
    assert fuse(keras.Model(inputs, x), factor=2).layers[1].units == 8


class Tied(layers.Dense):
    """A dense layer with the kernel of another one."""

    def __init__(self, units, like=None, **kwargs):
        super().__init__(units, use_bias=False, activation="tanh")
        self._like = [like]  # which the config does not tell

    def build(self, input_shape):
        if self._like[0] is None:
            super().build(input_shape)
        else:
            self._kernel, self.bias = self._like[0].kernel, None


def test_weights_tied_by_hand_need_a_model_that_is_tied_as_well():
    def tied(width, seed=0):
        keras.utils.set_random_seed(seed)
        inputs = keras.Input((FEATURES,))
        first = layers.Dense(width, activation="tanh")
        x = first(layers.Dense(width)(inputs))
        model = keras.Model(inputs, layers.Dense(2)(Tied(width, first)(x)))
        return perturbed(model, seed)

    with pytest.raises(keras_fusion.FusionError, match="tied by hand.*into"):
        fuse(tied(4), factor=2)
    parents = [tied(4), tied(6, 1)]
    fused = fuse(parents, into=tied(10, 2))
    x = np.random.default_rng(0).standard_normal((5, FEATURES)).astype("float32")
    mean = np.mean([outputs(parent, x) for parent in parents], axis=0)
    assert relative_change(mean, outputs(fused, x)) < 1e-5


@keras.saving.register_keras_serializable("tests")
class Autoencoder(keras.Model):
    """Decodes with the transpose of the encoder's kernel, which no rule tells."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.encode = layers.Dense(units, activation="tanh")

    def call(self, x):
        return self.encode(x) @ keras.ops.transpose(self.encode.kernel)

    def get_config(self):
        return super().get_config() | {"units": self.units}


keras_fusion.register(Autoencoder, widths=("units",))


def test_a_readout_tied_unseen_is_found_by_measuring():
    """A kernel that both writes and reads cannot be divided by the number of parents."""
    x = np.random.default_rng(0).standard_normal((8, FEATURES)).astype("float32")
    model = Autoencoder(4)
    model.compile("sgd", "mse")
    model.fit(x, x, verbose=0)
    with pytest.raises(keras_fusion.FusionError, match="outputs changed by .*tied"):
        fuse(model, factor=2)
    with pytest.raises(keras_fusion.FusionError, match="outputs changed by .*tied"):
        grow = DeepFusion(at_step=2, verbose=0)
        model.fit(x, x, verbose=0, callbacks=[grow])
    assert model.units == 4 and np.isfinite(model.evaluate(x, x, verbose=0))


def test_a_model_that_draws_at_random_is_not_measured():
    class Noisy(layers.Layer):
        def call(self, x):
            return x + keras.random.normal(keras.ops.shape(x))

    inputs = keras.Input((FEATURES,))
    x = layers.Dense(2)(Noisy()(layers.Dense(4)(inputs)))
    assert fuse(keras.Model(inputs, x), factor=2).layers[1].units == 8


@keras.saving.register_keras_serializable("tests")
class Siamese(keras.Model):
    """Two inputs and outputs, and one layer held in an attribute, a list and a dict."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.first = layers.Dense(units, activation="tanh")
        self.parts = {"same": self.first, "more": [layers.Dense(units), self.first]}
        self.norm = layers.LayerNormalization()
        self.heads = [layers.Dense(2), layers.Dense(3)]

    def call(self, inputs):
        x = self.first(inputs[0]) + self.parts["same"](inputs[1])
        x = self.norm(x + self.parts["more"][0](x))
        return tuple(head(x) for head in self.heads)

    def get_config(self):
        return super().get_config() | {"units": self.units}


keras_fusion.register(Siamese, widths=("units",))


@pytest.mark.core
def test_one_layer_in_many_places_is_fused_once():
    rng = np.random.default_rng(0)
    x = tuple(rng.standard_normal((8, FEATURES)).astype("float32") for _ in range(2))
    y = tuple(np.zeros((8, n), "float32") for n in (2, 3))
    model = Siamese(4)
    model(x)
    run_growth_test(perturbed(model), x, y, loss=["mse", "mse"])


def masked_bert():
    """Its head, a layer, holds the embeddings too."""
    backbone = bert().backbone
    return keras_hub.models.BertMaskedLM(backbone, preprocessor=None)


@pytest.mark.parametrize("make", [llama, masked_bert])
def test_a_layer_within_a_nested_model_and_outside_of_it_is_refused_by_name(make):
    task = make()
    # Without the task's class, whose config says that the embeddings are tied.
    model = keras.Model(task.input, task.output)
    error = "Layer 'token_embedding' .* within a nested model"
    with pytest.raises(keras_fusion.FusionError, match=error):
        fuse(model, factor=2)


def test_a_lambda_in_a_live_model_leaves_it_as_it_is():
    inputs = keras.Input((FEATURES,))
    x = layers.Dense(4)(inputs)
    x = layers.Lambda(lambda h: keras.ops.softmax(h), output_shape=(4,))(x)
    model = keras.Model(inputs, layers.Dense(2)(x))
    model.compile("sgd", "mse")
    x = np.random.default_rng(0).standard_normal((8, FEATURES))
    before = outputs(model, x)
    with pytest.raises(keras_fusion.FusionError, match=r"Lambda|outputs changed"):
        grow = DeepFusion(at_step=1, verbose=0)
        model.fit(x, x[:, :2], batch_size=4, verbose=0, callbacks=[grow])
    assert model.layers[1].units == 4 and outputs(model, x).shape == before.shape


def test_quantized_and_lora_layers_are_refused():
    def dense_model():
        inputs = keras.Input((8,))
        x = layers.Dense(8, activation="relu", name="hidden")(inputs)
        return keras.Model(inputs, layers.Dense(2)(x))

    quantized = dense_model()
    quantized.quantize("int8")
    lora = dense_model()
    lora.get_layer("hidden").enable_lora(2)
    for model, word in ((quantized, "quantized"), (lora, "LoRA")):
        with pytest.raises(keras_fusion.FusionError, match=word):
            fuse(model, factor=2)
    # Merged, as the message says, it can be fused.
    hidden = lora.get_layer("hidden")
    merged = dense_model()
    merged.get_layer("hidden").kernel.assign(hidden.kernel)
    merged.get_layer("hidden").bias.assign(hidden.bias)
    x = np.ones((2, 8), "float32")
    assert (
        relative_change(outputs(merged, x), outputs(fuse(merged, factor=2), x)) < 1e-5
    )
