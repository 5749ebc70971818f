"""Layers that were adapted to data: a bigger model has what they have, or is refused."""

import keras
import numpy as np
import pytest
from keras import layers
from models import numpy

import keras_fusion
from keras_fusion import DeepFusion, FusionError, fuse

RNG = np.random.default_rng(0)
X = RNG.standard_normal((32, 1)).astype("float32")


@keras.saving.register_keras_serializable("adapted")
class Table(layers.Layer):
    """A table of numbers that its config does not tell."""

    def __init__(self, **options):
        super().__init__(**options)
        self.table = None
        self.width = None

    def build(self, shape):
        self.width = shape[-1]

    def adapt(self, values):
        self.table = np.sort(np.asarray(values, "float32").ravel())

    def call(self, x):
        places = keras.ops.convert_to_tensor(self.table)
        return keras.ops.cast(keras.ops.sum(x > places, -1, keepdims=True), "int32")

    def compute_output_spec(self, x):
        return keras.KerasTensor((*x.shape[:-1], 1), "int32")


def discretization(data):
    layer = layers.Discretization(num_bins=5)
    layer.adapt(data)
    return layer


def integer_lookup(data):
    layer = layers.IntegerLookup(vocabulary=None, max_tokens=8)
    layer.set_vocabulary([10, 20, 30] if data is X else [30, 20, 10])
    return layer


def adapted_lookup(data):
    layer = layers.IntegerLookup(vocabulary=None, max_tokens=8)
    layer.adapt(np.array([10, 20, 30] if data is X else [40, 50, 60]))
    return layer


def string_lookup(data):
    layer = layers.StringLookup(vocabulary=None, max_tokens=8)
    layer.set_vocabulary(["a", "b", "c"] if data is X else ["c", "b", "a"])
    return layer


def text_vectorization(data):
    layer = layers.TextVectorization(max_tokens=8, output_sequence_length=3)
    layer.adapt(["a b c", "b c"] if data is X else ["d e f", "f"])
    return layer


def table(data):
    layer = Table()
    layer.adapt(data[:5])
    return layer


INTEGERS = np.array([[10], [20], [99], [30]])
WORDS = np.array([["a"], ["b"], ["x"], ["c"]], object)
# The layer, the inputs' dtype, and inputs.
KINDS = {
    discretization: ("float32", X),
    table: ("float32", X),
    integer_lookup: ("int64", INTEGERS),
    adapted_lookup: ("int64", INTEGERS),
    string_lookup: ("string", WORDS),
    text_vectorization: ("string", WORDS),
}
TEXT = (string_lookup, text_vectorization)


def net(preprocess, dtype, seed=0, nested=False):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((1,), dtype=dtype)
    if nested:
        inner = keras.Input((1,), dtype=dtype)
        x = keras.Model(inner, preprocess(inner))(inputs)
    else:
        x = preprocess(inputs)
    x = layers.Flatten()(layers.Embedding(8, 8)(x))
    return keras.Model(inputs, layers.Dense(1)(x))


def prepared(kind):
    backend = keras.config.backend()
    if backend != "tensorflow" and kind not in (discretization, table):
        pytest.skip("Lookups within a model are TensorFlow's.")
    dtype, x = KINDS[kind]
    if dtype == "string":
        import tensorflow as tf

        x = tf.constant(x)
    return dtype, x


@pytest.mark.core
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("nested", [False, True])
def test_what_was_adapted_is_handed_on(kind, nested):
    dtype, x = prepared(kind)
    layer = kind(X)
    a, b = (net(layer, dtype, seed, nested) for seed in (0, 1))
    for parents in [a, b], [a, a]:
        mean = (numpy(parents[0](x)) + numpy(parents[1](x))) / 2
        np.testing.assert_allclose(numpy(fuse(parents)(x)), mean, rtol=1e-4, atol=1e-6)


@pytest.mark.core
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_parents_of_different_data_are_refused(kind):
    dtype, _ = prepared(kind)
    parents = [net(kind(data), dtype) for data in (X, 2 * X + 1)]
    with pytest.raises(
        FusionError, match="were adapted to different|differ in .bin_bound"
    ):
        fuse(parents)


@pytest.mark.core
def test_adapted_model_trains_on():
    model = net(discretization(X), "float32")
    model.compile("sgd", "mse")
    grow = DeepFusion(at_step=2, verbose=0)
    model.fit(X, X, batch_size=8, epochs=2, verbose=0, callbacks=[grow])
    boundaries = model.layers[1].bin_boundaries
    assert boundaries == discretization(X).bin_boundaries and len(grow.events) == 1


# Options that were set after a layer was made, or that no config tells.


@keras.saving.register_keras_serializable("adapted")
class Annealed(layers.Dense):
    """A dense layer with a penalty whose weight a callback changes."""

    def __init__(self, units, beta=1.0, **options):
        super().__init__(units, **options)
        self.beta, self.share = beta, 1.0 / units

    def call(self, x):
        self.add_loss(self.beta * keras.ops.mean(keras.ops.square(x)))
        return super().call(x)

    def get_config(self):
        return {**super().get_config(), "beta": 1.0}


keras_fusion.register(
    Annealed,
    widths=("units",),
    output_width="units",
    roles={"kernel": ("in", "out"), "bias": ("out",)},
)


def with_layer(make):
    inputs = keras.Input((4,))
    return keras.Model(inputs, layers.Dense(1)(make()(layers.Dense(8)(inputs))))


@pytest.mark.core
def test_what_a_callback_has_set_on_a_layer_stays():
    model = with_layer(lambda: Annealed(8))
    model.layers[2].beta = 0.25
    model.compile("adam", "mse")
    keras_fusion.grow(model, 2, verbose=0)
    assert model.layers[2].beta == 0.25
    assert model.layers[2].share == 1 / 16


@pytest.mark.core
def test_options_that_no_config_tells_stay():
    with keras.RematScope(mode="full"):
        model = with_layer(lambda: layers.Dense(8, autocast=False))
    grown = fuse(model, factor=2)
    modes = [layer._remat_mode and layer._remat_mode.mode for layer in grown.layers]
    assert modes[1:] == ["full"] * 3
    assert [layer.autocast for layer in grown.layers[1:]] == [True, False, True]


def test_a_choice_of_attention_kernels_stays():
    inputs = keras.Input((4, 8))
    attention = layers.MultiHeadAttention(2, 4)
    attention._flash_attention = False
    model = keras.Model(inputs, layers.Dense(1)(attention(inputs, inputs)))
    (grown,) = (
        layer
        for layer in fuse(model, factor=2).layers
        if isinstance(layer, layers.MultiHeadAttention)
    )
    assert grown._flash_attention is False
