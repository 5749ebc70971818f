"""Norms with one statistic per parent: what they compute, and fusion under them."""

import keras
import numpy as np
import pytest
from keras import layers
from models import (
    LENGTH,
    functional,
    mean_of,
    numpy,
    outputs,
    relative_change,
)
from transformers import ids_for, transformer

import keras_fusion
from keras_fusion import fuse
from keras_fusion.layers import BlockLayerNormalization, BlockRMSNormalization


@pytest.mark.core(
    "encoder-pre-LayerNormalization",
    "encoder_decoder-post-LayerNormalization",
)
@pytest.mark.parametrize("norm", ["LayerNormalization", "RMSNormalization"])
@pytest.mark.parametrize("post", [False, True], ids=["pre", "post"])
@pytest.mark.parametrize("kind", ["encoder", "decoder", "encoder_decoder"])
def test_block_norms_give_the_mean_of_distinct_parents(kind, post, norm):
    # JAX has float64 only when asked for; on PyTorch a float64 model of Keras's own
    # layers rounds to float32 on its way.
    wide = 1e-10 if keras.config.backend() == "tensorflow" else 1e-5
    for dtype, tolerance in (("float32", 1e-5), ("float64", wide)):
        keras.mixed_precision.set_global_policy(dtype)
        norm_class = getattr(layers, norm)
        parents = [
            transformer(kind, width, i, norm_class, post)
            for i, width in enumerate((8, 12))
        ]
        fused, x = fuse(parents, norms="block"), ids_for(kind)
        assert relative_change(mean_of(parents, x), outputs(fused, x)) < tolerance
        joint = outputs(fuse(parents, norms="joint"), x)
        assert relative_change(mean_of(parents, x), joint) > 0.01
    found = {type(layer) for layer in fused.layers}
    assert not found & {layers.LayerNormalization, layers.RMSNormalization}


@pytest.mark.parametrize("count", [3, 8])
def test_many_parents_of_unequal_widths_and_heads(count):
    parents = [
        transformer("decoder", 4 * (1 + i % 3), i, heads=1 + i % 2)
        for i in range(count)
    ]
    x = ids_for("decoder")
    fused = fuse(parents, norms="block")
    assert relative_change(mean_of(parents, x), outputs(fused, x)) < 1e-5


def test_trees():
    leaves = [transformer("encoder", width, width) for width in (4, 8, 12, 16)]
    x = ids_for("encoder")
    pairs = [fuse(leaves[:2], norms="block"), fuse(leaves[2:], norms="block")]
    root = fuse(pairs)  # block norms stay block-wise
    assert relative_change(mean_of(leaves, x), outputs(root, x)) < 1e-5
    # A fused model and a plain one: each counts as one parent.
    uneven = fuse([pairs[0], leaves[2]], norms="block")
    expected = mean_of([pairs[0], leaves[2]], x)
    assert relative_change(expected, outputs(uneven, x)) < 1e-5


@pytest.mark.core
def test_a_block_normed_model_fuses_with_itself():
    parents = [transformer("encoder", 8, seed) for seed in range(2)]
    x = ids_for("encoder")
    fused = fuse(parents, norms="block")
    for mode in ("zeros", "paired"):
        wide = fuse(fused, factor=2, off_diagonal=mode, seed=0)
        assert relative_change(outputs(fused, x), outputs(wide, x)) < 1e-5


def test_what_cannot_be_block_wise_is_named():
    def flattened(seed):
        inputs = keras.Input((LENGTH, 4))
        x = layers.Flatten()(layers.Dense(8)(inputs))
        x = layers.LayerNormalization(name="wide")(x)
        return keras.Model(inputs, layers.Dense(1)(x))

    with pytest.raises(keras_fusion.FusionError, match=r"'wide'.*side by side.*calibr"):
        fuse([flattened(0), flattened(1)], norms="block")
    with pytest.raises(keras_fusion.FusionError, match="norms='blocks'"):
        fuse([functional(), functional()], norms="blocks")
    for cls in (BlockLayerNormalization, BlockRMSNormalization):
        with pytest.raises(keras_fusion.FusionError, match=r"blocks=\(\)"):
            cls(())
        with pytest.raises(keras_fusion.FusionError, match="axis=1"):
            cls((2,), axis=1)
        with pytest.raises(keras_fusion.FusionError, match=r"\(3, 4\).*\(2, 8\)"):
            cls((3, 4))(np.zeros((2, 8)))


@pytest.mark.core
def test_block_norms_are_norms_of_the_blocks():
    x = np.random.default_rng(0).standard_normal((2, 3, 12)).astype("float32")
    for cls, stock in (
        (BlockLayerNormalization, layers.LayerNormalization),
        (BlockRMSNormalization, layers.RMSNormalization),
    ):
        norm = cls((4, 8))
        parts = [numpy(stock()(part)) for part in (x[..., :4], x[..., 4:])]
        expected = np.concatenate(parts, axis=-1)
        np.testing.assert_allclose(numpy(norm(x)), expected, atol=1e-5)
        norm.blend.assign(1.0)
        np.testing.assert_allclose(numpy(norm(x)), numpy(stock()(x)), atol=1e-5)
        again = keras.saving.deserialize_keras_object(
            keras.saving.serialize_keras_object(norm)
        )
        assert again.blocks == (4, 8)
