"""A layer for each registered rule, to try the rule on."""

import importlib

from keras import layers

FEATURES = (3, 4, 6)


def twice(layer, x):
    return layer(x, x)


def joined(layer, x):
    """For layers that take several tensors: a second one beside the first."""
    return layer([x, layers.Dense(6)(x)])


def of_convnext(name):
    """A layer that Keras does not export."""
    module = importlib.import_module("keras.src.applications.convnext")
    return getattr(module, name)


def hub(name):
    import keras_hub

    return getattr(keras_hub.layers, name)


# For each rule: a layer, the shape of its inputs, and how run_rule_test calls it.
SAMPLES = {
    layers.Dense: (lambda: layers.Dense(5), FEATURES, {}),
    layers.EinsumDense: (
        lambda: layers.EinsumDense("abc,cd->abd", (None, 5), bias_axes="d"),
        FEATURES,
        {},
    ),
    layers.Embedding: (
        lambda: layers.Embedding(3, 5),
        (3, 4),
        {"input_dtype": "int32"},
    ),
    layers.MultiHeadAttention: (
        lambda: layers.MultiHeadAttention(2, 3),
        FEATURES,
        {"call": twice},
    ),
    layers.GroupQueryAttention: (
        lambda: layers.GroupQueryAttention(3, 4, 2),
        FEATURES,
        {"call": twice},
    ),
    layers.LayerNormalization: (layers.LayerNormalization, FEATURES, {}),
    layers.RMSNormalization: (layers.RMSNormalization, FEATURES, {}),
    layers.Normalization: (layers.Normalization, FEATURES, {}),
    layers.BatchNormalization: (layers.BatchNormalization, (8, 6), {}),
    layers.GroupNormalization: (
        lambda: layers.GroupNormalization(2),
        FEATURES,
        {},
    ),
    layers.Conv1D: (lambda: layers.Conv1D(5, 2), FEATURES, {}),
    layers.Conv2D: (lambda: layers.Conv2D(5, 2), (2, 4, 4, 3), {}),
    layers.Conv3D: (lambda: layers.Conv3D(5, 2), (2, 3, 3, 3, 2), {}),
    layers.Conv1DTranspose: (lambda: layers.Conv1DTranspose(5, 2), FEATURES, {}),
    layers.Conv2DTranspose: (lambda: layers.Conv2DTranspose(5, 2), (2, 4, 4, 3), {}),
    layers.Conv3DTranspose: (lambda: layers.Conv3DTranspose(5, 2), (2, 3, 3, 3, 2), {}),
    layers.DepthwiseConv1D: (lambda: layers.DepthwiseConv1D(2), FEATURES, {}),
    layers.DepthwiseConv2D: (lambda: layers.DepthwiseConv2D(2), (2, 4, 4, 3), {}),
    layers.SeparableConv1D: (lambda: layers.SeparableConv1D(5, 2), FEATURES, {}),
    layers.SeparableConv2D: (
        lambda: layers.SeparableConv2D(5, 2, depth_multiplier=2),
        (2, 4, 4, 3),
        {},
    ),
    layers.LSTM: (lambda: layers.LSTM(5), FEATURES, {}),
    layers.GRU: (lambda: layers.GRU(5), FEATURES, {}),
    layers.SimpleRNN: (lambda: layers.SimpleRNN(5), FEATURES, {}),
    layers.ConvLSTM1D: (lambda: layers.ConvLSTM1D(5, 2), (2, 3, 4, 3), {}),
    layers.ConvLSTM2D: (lambda: layers.ConvLSTM2D(5, 2), (2, 3, 4, 4, 3), {}),
    layers.ConvLSTM3D: (lambda: layers.ConvLSTM3D(3, 2), (2, 2, 3, 3, 3, 3), {}),
    layers.LSTMCell: (lambda: layers.RNN(layers.LSTMCell(5)), FEATURES, {}),
    layers.GRUCell: (
        lambda: layers.RNN(layers.GRUCell(5, reset_after=False)),
        FEATURES,
        {},
    ),
    layers.SimpleRNNCell: (lambda: layers.RNN(layers.SimpleRNNCell(5)), FEATURES, {}),
    "keras>ConvLSTMCell": (
        lambda: layers.ConvLSTM1D(5, 2, padding="same", return_sequences=True),
        (2, 3, 4, 3),
        {},
    ),
    layers.RNN: (lambda: layers.RNN(layers.GRUCell(5)), FEATURES, {}),
    layers.Bidirectional: (lambda: layers.Bidirectional(layers.GRU(5)), FEATURES, {}),
    layers.TimeDistributed: (
        lambda: layers.TimeDistributed(layers.Dense(5)),
        FEATURES,
        {},
    ),
    layers.PReLU: (layers.PReLU, FEATURES, {}),
    "keras>LayerScale": (lambda: of_convnext("LayerScale")(0.5, 6), FEATURES, {}),
    # It drops nothing, since the parent and the fused model would drop other rows.
    "keras>StochasticDepth": (
        lambda: of_convnext("StochasticDepth")(0.0),
        FEATURES,
        {},
    ),
    layers.Concatenate: (layers.Concatenate, FEATURES, {"call": joined}),
    layers.Permute: (
        lambda: layers.Permute((2, 1)),
        FEATURES,
        {"call": lambda layer, x: layers.Permute((2, 1))(layers.Dense(5)(layer(x)))},
    ),
    "keras_hub>TransformerEncoder": (
        lambda: hub("TransformerEncoder")(8, 2),
        FEATURES,
        {},
    ),
    "keras_hub>TransformerDecoder": (
        lambda: hub("TransformerDecoder")(8, 2),
        FEATURES,
        {},
    ),
    "keras_hub>PositionEmbedding": (lambda: hub("PositionEmbedding")(4), FEATURES, {}),
    "keras_hub>TokenAndPositionEmbedding": (
        lambda: hub("TokenAndPositionEmbedding")(3, 4, 5),
        (3, 4),
        {"input_dtype": "int32"},
    ),
}
SAMPLES |= {
    merge: (merge, FEATURES, {"call": joined})
    for merge in (
        layers.Add,
        layers.Average,
        layers.Maximum,
        layers.Minimum,
        layers.Multiply,
        layers.Subtract,
    )
}
REFUSING = {
    layers.Attention: joined,
    layers.AdditiveAttention: joined,
    layers.Dot: lambda layer, x: layers.Dot(axes=2)([x, x]),
    layers.Softmax: None,
    layers.UnitNormalization: None,
    layers.SpectralNormalization: lambda layer, x: layers.SpectralNormalization(
        layers.Dense(6)
    )(x),
    layers.Lambda: lambda layer, x: layers.Lambda(lambda h: 2 * h)(x),
    layers.Reshape: lambda layer, x: layers.Reshape((8, 3))(x),
}
