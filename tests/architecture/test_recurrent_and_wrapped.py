"""Recurrent layers, layers around layers, and the rarer convolutions."""

import keras
import numpy as np
import pytest
from bodies import (
    ROWS,
    around,
    assert_copies_fuse,
    assert_distinct_fuse,
    assert_refused,
    batch,
    dense,
)
from keras import layers
from models import outputs, relative_change

import keras_fusion
from keras_fusion import HyperCloning, Lemon, Net2Net, fuse

FRAMES = (3, 4, 2)


def of(make):
    """A body that pools what a layer makes of dense features."""

    def body(x, units):
        x = make(units)(dense(x, units, "gelu"))
        return dense(x, units, "tanh")

    return body


GROWING = {
    "lstm": (of(lambda u: layers.LSTM(u)), ROWS),
    "lstm without bias": (of(lambda u: layers.LSTM(u, use_bias=False)), ROWS),
    "gru": (of(lambda u: layers.GRU(u, return_sequences=True)), ROWS),
    "gru, old": (of(lambda u: layers.GRU(u, reset_after=False)), ROWS),
    "simple": (of(lambda u: layers.SimpleRNN(u, go_backwards=True)), ROWS),
    "rnn": (of(lambda u: layers.RNN(layers.LSTMCell(u))), ROWS),
    "bidirectional": (of(lambda u: layers.Bidirectional(layers.LSTM(u))), ROWS),
    "bidirectional, summed": (
        of(lambda u: layers.Bidirectional(layers.GRU(u), merge_mode="sum")),
        ROWS,
    ),
    "distributed": (of(lambda u: layers.TimeDistributed(layers.Dense(u))), ROWS),
    "distributed convolution": (
        of(lambda u: layers.TimeDistributed(layers.Conv1D(u, 2))),
        FRAMES,
    ),
    "transposed": (of(lambda u: layers.Conv1DTranspose(u, 2)), ROWS),
    "transposed, images": (of(lambda u: layers.Conv2DTranspose(u, 2)), FRAMES),
    "separable": (of(lambda u: layers.SeparableConv1D(u, 2)), ROWS),
    "separable, images": (
        of(lambda u: layers.SeparableConv2D(u, 2, depth_multiplier=2)),
        FRAMES,
    ),
    "depthwise": (of(lambda u: layers.DepthwiseConv1D(2)), ROWS),
    "depthwise, images": (of(lambda u: layers.DepthwiseConv2D(2)), FRAMES),
    "convolutional lstm": (
        of(lambda u: layers.ConvLSTM1D(u, 2, padding="same")),
        FRAMES,
    ),
}


# On JAX each of them is compiled many times.
@pytest.mark.core("gru", "separable")
@pytest.mark.parametrize("name", GROWING)
def test_copies_and_distinct_parents(name):
    assert_copies_fuse(*GROWING[name])
    assert_distinct_fuse(*GROWING[name], widths=(8, 12))


@pytest.mark.parametrize("name", ["lstm", "gru", "bidirectional", "depthwise"])
@pytest.mark.parametrize("operator", [HyperCloning(), Net2Net(), Lemon(factor=1.5)])
def test_other_operators(name, operator):
    body, shape = GROWING[name]
    model, x = around(body, shape), batch(shape)
    grown = operator.plan(model, seed=0).fill()
    assert relative_change(outputs(model, x), outputs(grown, x)) < 1e-5
    assert grown.count_params() > model.count_params()


def test_a_state_that_is_handed_on():
    def body(x, units):
        x, state = layers.GRU(units, return_sequences=True, return_state=True)(x)
        return layers.GRU(units)(x, initial_state=state)

    assert_copies_fuse(body, ROWS)
    assert_distinct_fuse(body, ROWS, widths=(8, 12))


def stacked(x, units):
    x = layers.Bidirectional(layers.LSTM(units, return_sequences=True))(x)
    x = layers.Concatenate()([x, dense(x, units)])
    x = layers.Bidirectional(layers.GRU(3 * units, return_sequences=True))(x)
    x = layers.RNN(layers.SimpleRNNCell(units), return_sequences=True)(x)
    x = layers.Bidirectional(layers.LSTM(units, return_sequences=True))(x)
    return layers.LSTM(2 * units)(layers.TimeDistributed(layers.Dense(units))(x))


def test_layers_behind_each_other_whose_features_do_not_lie_side_by_side():
    assert_copies_fuse(stacked, ROWS)
    assert_distinct_fuse(stacked, ROWS, widths=(8, 12))


def test_an_output_of_a_wrapper_stays():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 4))
    x = layers.Bidirectional(layers.LSTM(4, return_sequences=True))(inputs)
    model = keras.Model(inputs, layers.TimeDistributed(layers.Dense(3))(x))
    fused = fuse(model, factor=2)
    assert fused.layers[1].forward_layer.units == 8
    assert fused.output_shape == model.output_shape
    x = batch((6, 4))
    assert relative_change(outputs(model, x), outputs(fused, x)) < 1e-5


def test_growth_in_fit_and_reload(tmp_path):
    body, shape = GROWING["bidirectional"]
    model, x = around(body, shape), batch(shape)
    model.compile(keras.optimizers.Adam(1e-3), "mse")
    grow = keras_fusion.DeepFusion(at_step=1, verbose=0)
    model.fit(x, np.zeros((5, 2)), batch_size=2, verbose=0, callbacks=[grow])
    assert grow.events[0].function_change < 1e-5
    model.save(tmp_path / "grown.keras")
    again = keras.models.load_model(tmp_path / "grown.keras")
    np.testing.assert_allclose(outputs(again, x), outputs(model, x), atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda u: layers.DepthwiseConv1D(2, depth_multiplier=2),
            "DepthwiseConv1D cannot grow: it has depth_multiplier=2",
        ),
        (
            lambda u: layers.SpectralNormalization(layers.Dense(u)),
            "SpectralNormalization cannot grow: .* largest singular value",
        ),
        (
            lambda u: layers.RNN([layers.GRUCell(u), layers.GRUCell(u)]),
            "RNN cannot grow: it holds a StackedRNNCells",
        ),
        (
            lambda u: layers.TimeDistributed(layers.Activation("relu")),
            "TimeDistributed cannot grow: it holds a Activation",
        ),
        (
            lambda u: layers.LSTM(u, recurrent_activation="softmax"),
            "activation 'softmax' of layer 'lstm.*mixes",
        ),
    ],
)
def test_what_cannot_grow_stays_or_is_refused_by_name(make, message):
    body = of(make)
    assert_copies_fuse(body, ROWS)  # Its width stays, the others grow.
    assert_refused(body, ROWS, message, distinct=True)
