"""Counted FLOPs against hand-made and analytic counts."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_fusion import FusionError
from keras_fusion.flops import training_step_flops

counted = pytest.mark.skipif(
    keras.config.backend() == "torch", reason="PyTorch has no graph to count in"
)


def flops(model, inputs_shape):
    model.compile("sgd", "mse")
    shape = (inputs_shape[0], *model.output_shape[1:])
    shapes = inputs_shape, shape, inputs_shape[:2]
    return training_step_flops(model, tuple(np.ones(s, "float32") for s in shapes))


@pytest.mark.core
@counted
def test_products_are_counted():
    def stack(*hidden):
        return flops(keras.Sequential([keras.Input((5, 6)), *hidden]), (2, 5, 6))

    # Forward, and backward by the kernel; nothing lies below the first layer.
    first = 2 * (2 * 10 * 6 * 8)
    assert stack(layers.Dense(8)) == first
    second = 3 * (2 * 10 * 8 * 4)
    assert stack(layers.Dense(8), layers.Dense(4)) == first + second
    einsum = layers.EinsumDense("abc,cd->abd", (5, 4))
    assert stack(layers.Dense(8), einsum) == first + second


@pytest.mark.core
@counted
def test_dense_transformer_equals_the_analytic_count():
    """Kaplan et al.'s 6 N a token, and 12 n d for attention, in one block of layers."""
    batch, length, width, heads, hidden, depth = 2, 16, 32, 4, 128, 3
    inputs = keras.Input((length, width))
    x = inputs
    for _ in range(depth):
        y = layers.LayerNormalization()(x)
        attention = layers.MultiHeadAttention(heads, width // heads)
        x = layers.Add()([x, attention(y, y)])
        y = layers.Dense(hidden, "relu")(layers.LayerNormalization()(x))
        x = layers.Add()([x, layers.Dense(width)(y)])
    found = flops(keras.Model(inputs, x), (batch, length, width))
    weights = depth * (4 * width * width + 2 * width * hidden)
    products = depth * 2 * length * width  # queries by keys, and by values
    analytic = 6 * batch * length * (weights + products)
    assert found == pytest.approx(analytic, rel=0.01)


@pytest.mark.core
@counted
def test_what_is_not_counted_is_refused():
    model = keras.Sequential([keras.Input((5, 6)), layers.Conv1D(4, 2, padding="same")])
    with pytest.raises(FusionError, match="(?i)conv.*not counted"):
        flops(model, (2, 5, 6))


@pytest.mark.core
@pytest.mark.skipif(keras.config.backend() != "torch", reason="has a graph")
def test_a_backend_without_graph_is_refused():
    with pytest.raises(FusionError, match="the backend 'torch'"):
        flops(keras.Sequential([keras.Input((5, 6)), layers.Dense(1)]), (2, 5, 6))
