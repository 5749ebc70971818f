"""Layers on features that grow and on others that stay: exact, or refused by name."""

import numpy as np
import pytest
from bodies import (
    IMAGE,
    ROW,
    ROWS,
    around,
    assert_copies_fuse,
    assert_distinct_fuse,
    assert_refused,
    batch,
    dense,
)
from keras import layers, ops
from models import mean_of, outputs, relative_change

from keras_fusion import FusionError, fuse, register

pytestmark = pytest.mark.core


def joined(x, units):
    """Features that grow, and the inputs, which stay."""
    return layers.Concatenate()([dense(x, units, "relu"), x])


def joined_twice(x, units):
    inner = layers.Concatenate()([x, dense(x, units)])
    return layers.Concatenate()([inner, dense(x, 2 * units), x])


# A weight for each feature: distinct parents have their own for the inputs as well.

BY_FEATURE = {
    "batch norm": (ROW, lambda x, n: layers.BatchNormalization()(joined(x, n))),
    "PReLU": (ROW, lambda x, n: layers.PReLU()(joined(x, n))),
    "batch norm, then a hidden layer": (
        ROW,
        lambda x, n: dense(layers.BatchNormalization()(joined(x, n)), n, "tanh"),
    ),
    "joined twice": (ROW, lambda x, n: layers.PReLU()(joined_twice(x, n))),
    "flattened": (
        ROWS,
        lambda x, n: layers.Flatten()(layers.BatchNormalization()(joined(x, n))),
    ),
    "an operation": (
        ROW,
        lambda x, n: layers.PReLU()(ops.concatenate([x, dense(x, n)], -1)),
    ),
}


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", BY_FEATURE)
def test_a_weight_for_each_feature(name):
    shape, body = BY_FEATURE[name]
    assert_copies_fuse(body, shape)
    assert_distinct_fuse(body, shape)
    assert_distinct_fuse(body, shape, widths=(8, 4))


def test_the_inputs_are_there_once_for_each_distinct_parent():
    shape, body = BY_FEATURE["PReLU"]
    parents = [around(body, shape, seed=i) for i in range(3)]
    fused = fuse(parents)
    (prelu,) = (x for x in fused.layers if isinstance(x, layers.PReLU))
    assert prelu.alpha.shape == (3 * (8 + 4),)
    again = fuse([fused, fused])
    x = batch(shape)
    assert relative_change(mean_of(parents, x), outputs(again, x)) < 1e-5


# One statistic for all features is over one kind of them only.

STATISTICS = {
    "layer norm": (ROW, lambda x, n: layers.LayerNormalization()(joined(x, n))),
    "RMS norm": (ROW, lambda x, n: layers.RMSNormalization()(joined(x, n))),
    "layer norm, joined twice": (
        ROW,
        lambda x, n: layers.LayerNormalization()(joined_twice(x, n)),
    ),
}


@pytest.mark.parametrize("name", STATISTICS)
def test_one_statistic_over_features_that_grow_and_others_is_refused(name):
    shape, body = STATISTICS[name]
    message = "'(layer|rms)_normalization.*others that stay"
    assert_refused(body, shape, message)
    assert_refused(body, shape, message, distinct=True)


def test_it_keeps_its_features_where_others_can_grow():
    def body(x, units):
        return dense(layers.LayerNormalization()(joined(x, 6)), units, "relu")

    fused = assert_copies_fuse(body, ROW)
    assert sorted(x.units for x in fused.layers if hasattr(x, "units")) == [2, 6, 16]


def test_a_norm_over_features_all_of_which_grow():
    def body(x, units):
        parts = [dense(x, units), dense(x, 2 * units)]
        return layers.LayerNormalization()(layers.Concatenate()(parts))

    assert_copies_fuse(body, ROW)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layers.LayerNormalization(axis=[1, 2]), r"its axis is \[1, 2\]"),
        (lambda: layers.UnitNormalization(), "it mixes the features"),
    ],
)
def test_a_norm_of_another_axis_is_refused(make, message):
    assert_refused(lambda x, n: make()(dense(x, n)), ROWS, message)


# Groups keep their size.


def conv(x, filters, **options):
    return layers.Conv2D(filters, 1, **options)(x)


def grouped(groups, *shares):
    def body(x, units):
        parts = [conv(x, share * units) for share in shares]
        x = layers.Concatenate()(parts) if len(parts) > 1 else parts[0]
        return layers.GlobalMaxPooling2D()(layers.GroupNormalization(groups)(x))

    return body


@pytest.mark.parametrize(("groups", "shares"), [(2, [2]), (3, [1, 2]), (4, [1, 2, 1])])
def test_groups_of_one_parent_each(groups, shares):
    assert_copies_fuse(grouped(groups, *shares), IMAGE)
    assert_distinct_fuse(grouped(groups, *shares), IMAGE)


@pytest.mark.parametrize(("groups", "shares"), [(2, [1, 2, 1]), (4, [1, 2])])
def test_groups_that_would_hold_features_of_several_are_refused(groups, shares):
    body = grouped(groups, *shares)
    if groups == 2:
        body = grouped(3, 1, 2, 3)
    message = "'group_normalization.*its groups would hold"
    assert_refused(body, IMAGE, message)
    assert_refused(body, IMAGE, message, distinct=True)


def test_groups_of_features_that_stay():
    def body(x, units):
        x = layers.GroupNormalization(3)(x)
        return layers.GlobalMaxPooling2D()(conv(x, units))

    fused = assert_copies_fuse(body, IMAGE)
    assert next(x for x in fused.layers if hasattr(x, "groups")).groups == 3


# So do the groups of a convolution, each of which makes as many features as it reads.


def grouped_conv(rank, groups, *shares, activation=None):
    conv, pool = (
        getattr(layers, f"Conv{rank}D"),
        getattr(layers, f"GlobalMaxPool{rank}D"),
    )

    def body(x, units):
        parts = [conv(share * units, 1)(x) for share in shares]
        x = layers.Concatenate()(parts) if len(parts) > 1 else parts[0]
        filters = x.shape[-1]
        x = conv(filters, 2, groups=groups, activation=activation)(x)
        return pool()(x)

    return body


@pytest.mark.compiled  # TensorFlow has no eager Conv3D with groups on a CPU.
@pytest.mark.parametrize(
    ("rank", "groups", "shares"),
    [(1, 2, [1]), (1, 8, [1]), (1, 6, [1, 2]), (3, 4, [1])],
)
def test_groups_of_a_convolution(rank, groups, shares):
    shape = (*(4,) * rank, 3)
    body = grouped_conv(rank, groups, *shares, activation="relu")
    fused = assert_copies_fuse(body, shape)
    assert 2 * groups in [getattr(layer, "groups", 1) for layer in fused.layers]
    assert_distinct_fuse(body, shape)


def test_groups_of_distinct_sizes_are_refused():
    body = grouped_conv(1, 4, 1)
    parents = [around(body, ROWS, width) for width in (8, 12)]
    with pytest.raises(FusionError, match="its groups would hold"):
        fuse(parents)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (grouped_conv(1, 2, 1, 2), "its groups would hold"),
        (
            lambda x, n: layers.GlobalMaxPool1D()(
                layers.Conv1D(2 * n, 2, groups=n)(layers.Conv1D(n, 1)(x))
            ),
            "has groups=8, and makes more or fewer features than it reads",
        ),
    ],
    ids=["across parts", "more features than it reads"],
)
def test_groups_of_a_convolution_that_cannot_grow_are_refused(body, message):
    assert_refused(body, ROWS, message)
    assert_refused(body, ROWS, message, distinct=True)


# One weight for all features.


class Tempered(layers.Layer):
    """Multiplies all features by one number."""

    def build(self, shape):
        self.factor = self.add_weight(shape=(), initializer="ones", name="factor")

    def call(self, x):
        return x * self.factor


register(Tempered, roles={"factor": ()})
COMMON = {
    "a factor": (ROW, lambda x, n: Tempered()(dense(x, n)), "'factor'"),
    "PReLU": (
        ROWS,
        lambda x, n: layers.PReLU(shared_axes=[1, 2])(dense(x, n)),
        "'alpha'",
    ),
}


@pytest.mark.parametrize("name", COMMON)
def test_one_weight_for_all_features(name):
    shape, body, weight = COMMON[name]
    assert_copies_fuse(body, shape)
    assert_refused(body, shape, f"weight {weight} is one for all", distinct=True)


def test_a_normalization_by_constants_is_refused():
    def body(x, units):
        constants = {"mean": [0.5] * units, "variance": [2.0] * units}
        return layers.Normalization(**constants)(dense(x, units))

    assert_refused(body, ROW, "'normalization.*holds the mean and variance")


# Composites read features that lie side by side.


def test_attention_over_joined_features_is_refused():
    def body(x, units):
        x = joined(x, units)
        return layers.MultiHeadAttention(2, 3)(x, x)

    assert_refused(body, ROWS, "'multi_head_attention.*do not lie side by side")


@pytest.mark.parametrize(
    ("equation", "shape", "bias"),
    [
        ("abc,cd->abd", (6, 5), "d"),
        ("abc,bcd->abd", (6, 5), "d"),
        ("abc,bcd->ad", (5,), None),
        ("...x,xy->...y", (5,), "y"),
    ],
)
def test_einsum_dense(equation, shape, bias):
    def body(x, units):
        layer = layers.EinsumDense(equation, shape, bias_axes=bias, activation="relu")
        return layer(dense(x, units))

    assert_copies_fuse(body, ROWS)
    assert_distinct_fuse(body, ROWS)


@pytest.mark.parametrize("bias", ["d", "e", "de", None])
def test_einsum_dense_with_heads(bias):
    """Heads grow, and keep their size; one bias for all heads is each parent's own."""

    def body(x, units):
        x = layers.EinsumDense("abc,cde->abde", (6, units, 3), bias_axes=bias)(x)
        return layers.EinsumDense("abde,def->abf", (6, 4), activation="relu")(x)

    assert_copies_fuse(body, ROWS)
    if bias == "e":
        assert_refused(body, ROWS, "its bias is one for all", distinct=True)
    else:
        assert_distinct_fuse(body, ROWS)


def test_einsum_dense_over_lengths():
    def body(x, units):
        return layers.EinsumDense("abc,bd->adc", (5, units))(dense(x, units))

    assert_copies_fuse(body, ROWS)
    assert_refused(body, ROWS, "'einsum_dense.*kernel of its own", distinct=True)


# The noise of a dropout.


@pytest.mark.parametrize("noise", [(None, 1, 8), (None, 6, 8), (None, 6, 1)])
@pytest.mark.parametrize("make", [layers.Dropout, layers.AlphaDropout])
def test_the_noise_of_a_dropout_follows_the_width(make, noise):
    def body(x, units):
        return make(0.5, noise_shape=noise)(dense(x, units))

    fused = assert_copies_fuse(body, ROWS)
    fused(batch(ROWS), training=True)
    layer = next(x for x in fused.layers if isinstance(x, make))
    assert layer.noise_shape[-1] == (1 if noise[-1] == 1 else None)


# Layers of one's own without weights.


class Halved(layers.Layer):
    """Treats each feature by itself."""

    def call(self, x):
        return x / 2


class Centered(layers.Layer):
    """Subtracts the mean of all features."""

    def call(self, x):
        return x - ops.mean(x, axis=-1, keepdims=True)


class Paired(layers.Layer):
    """Holds a width that its config does not tell."""

    def call(self, x):
        return ops.reshape(ops.reshape(x, (-1, 2, 4)) * 2, (-1, 8))


def test_a_layer_of_ones_own_that_treats_each_feature_by_itself():
    assert_copies_fuse(lambda x, n: Halved()(dense(x, n)), ROW)
    assert_distinct_fuse(lambda x, n: Halved()(dense(x, n)), ROW, widths=(8, 4))


@pytest.mark.parametrize("layer", [Centered, Paired])
def test_a_layer_of_ones_own_that_mixes_features_is_refused(layer):
    message = f"of class {layer.__name__} cannot grow: no rule says.*register"
    assert_refused(lambda x, n: layer()(dense(x, n)), ROW, message)
    assert_refused(lambda x, n: layer()(dense(x, n)), ROW, message, distinct=True)


def test_no_raw_error_from_building_the_bigger_model():
    """What has a rule and lies about its width is named, too."""

    class Liar(layers.Layer):
        def build(self, shape):
            self.scale = self.add_weight(shape=(8,), name="scale")

        def call(self, x):
            return x * self.scale

    register(Liar, roles={"scale": ("out",)})
    with pytest.raises(FusionError, match="'liar.*|could not be built"):
        fuse(around(lambda x, n: Liar()(dense(x, n)), ROW), factor=2)


def test_a_constant_of_another_length_is_no_width():
    def body(x, units):
        return dense(x, units) * np.linspace(0, 1, 6, dtype="float32")[:, None]

    assert_copies_fuse(body, ROWS)
