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
    shapes = inputs_shape, (inputs_shape[0], *model.output_shape[1:])
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
    """What a branch costs depends on the data."""

    def branch(x):
        kernel = keras.ops.ones((6, 6))
        positive = keras.ops.sum(x) > 0
        return keras.ops.cond(positive, lambda: x, lambda: keras.ops.matmul(x, kernel))

    model = keras.Sequential(
        [keras.Input((5, 6)), layers.Dense(6), layers.Lambda(branch)]
    )
    with pytest.raises(FusionError, match="(?i)(if|cond).*not counted"):
        flops(model, (2, 5, 6))


@pytest.mark.core
@counted
def test_convolutions_are_counted():
    """With kernels as wide as their stride they are products of matrices."""
    convolution = layers.Conv1D(7, 2, strides=2)
    found = flops(keras.Sequential([keras.Input((8, 6)), convolution]), (3, 8, 6))
    assert found == 2 * (2 * (3 * 4) * (2 * 6) * 7)
    stack = [layers.Conv2D(5, 2, strides=2), layers.Conv2D(3, 2, strides=2)]
    found = flops(keras.Sequential([keras.Input((8, 8, 6)), *stack]), (3, 8, 8, 6))
    first = 2 * (2 * (3 * 16) * (4 * 6) * 5)  # nothing lies below
    assert found == first + 3 * (2 * (3 * 4) * (4 * 5) * 3)
    stack[1] = layers.DepthwiseConv2D(2, strides=2, depth_multiplier=2)
    found = flops(keras.Sequential([keras.Input((8, 8, 6)), *stack]), (3, 8, 8, 6))
    assert found == first + 3 * (2 * (3 * 4) * 4 * (5 * 2))


@pytest.mark.core
@counted
def test_batches_are_those_of_fit():
    model = keras.Sequential([keras.Input((5, 6)), layers.Dense(4)])
    model.compile("sgd", "mse")
    x, y = np.ones((2, 5, 6), "float32"), np.ones((2, 5, 4), "float32")
    counts = {
        training_step_flops(model, b) for b in ((x, y), [x, y], (x, y, x[:, :, 0]))
    }
    assert counts == {2 * (2 * 10 * 6 * 4)}
    with pytest.raises(FusionError, match="`batch` must be a tuple .features, targets"):
        training_step_flops(model, x)
    with pytest.raises(FusionError, match="not compiled"):
        training_step_flops(keras.Sequential([keras.Input((5,))]), (x, y))


@pytest.mark.core
@pytest.mark.skipif(keras.config.backend() != "torch", reason="has a graph")
def test_a_backend_without_graph_is_refused():
    with pytest.raises(FusionError, match="the backend 'torch'"):
        flops(keras.Sequential([keras.Input((5, 6)), layers.Dense(1)]), (2, 5, 6))
