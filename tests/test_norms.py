"""Distinct parents under norms: block-wise, annealed, calibrated; and their report."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers
from models import (
    LENGTH,
    VOCABULARY,
    data_for,
    functional,
    loss,
    numpy,
    outputs,
    perturbed,
    relative_change,
    subclassed,
    t5,
)

import keras_fusion
from keras_fusion import AnnealBlockNorms, DeepFusion, fuse, fusion_report
from keras_fusion.layers import BlockLayerNormalization, BlockRMSNormalization


class Blocks:
    """Transformer blocks of one width; `post` norms after the residual sum."""

    def __init__(self, width, norm, post=False, heads=None):
        self.width, self.norm, self.post = width, norm, post
        self.heads = heads or width // 4

    def residual(self, x, update):
        if self.post:
            return self.norm()(x + update(x))
        return x + update(self.norm()(x))

    def attend(self, x, memory=None, causal=False):
        attention = layers.MultiHeadAttention(self.heads, 4)
        return self.residual(
            x,
            lambda h: attention(
                h, h if memory is None else memory, use_causal_mask=causal
            ),
        )

    def feed_forward(self, x, factor=2):
        hidden = layers.Dense(factor * self.width, activation="gelu")
        return self.residual(x, lambda h: layers.Dense(self.width)(hidden(h)))

    def stack(self, x, memory=None, causal=False):
        x = self.attend(x, causal=causal)
        if memory is not None:
            x = self.attend(x, memory)
        return self.feed_forward(x)


def transformer(kind, width, seed, norm=layers.LayerNormalization, post=False, **kw):
    keras.utils.set_random_seed(seed)
    blocks = Blocks(width, norm, post, **kw)
    ids = keras.Input((LENGTH,), dtype="int32", name="ids")
    inputs, memory = ids, None
    x = layers.Embedding(VOCABULARY, width)(ids)
    if kind == "encoder_decoder":
        memory = norm()(blocks.stack(x))
        targets = keras.Input((LENGTH,), dtype="int32", name="targets")
        inputs = [ids, targets]
        x = layers.Embedding(VOCABULARY, width)(targets)
    x = blocks.stack(x, memory, causal=kind != "encoder")
    x = x if post else norm()(x)
    model = keras.Model(inputs, layers.Dense(VOCABULARY)(x))
    return perturbed(model, seed)


def ids_for(kind, count=4):
    x, _ = data_for("functional", count)
    return [x, x[::-1]] if kind == "encoder_decoder" else x


def mean_of(parents, x):
    return np.mean([outputs(parent, x) for parent in parents], axis=0)


@pytest.mark.core
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
        joint = outputs(fuse(parents), x)
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


LOAD = """
import sys, numpy as np, keras
model = keras.saving.load_model(sys.argv[1] + "/model.keras")
x = np.load(sys.argv[1] + "/x.npy")
np.save(sys.argv[1] + "/y.npy", keras.ops.convert_to_numpy(model(x)))
assert "keras_fusion" not in sys.modules
"""


@pytest.mark.core
@pytest.mark.parametrize("norm", ["LayerNormalization", "RMSNormalization"])
def test_annealing_ends_in_a_stock_model(norm, tmp_path):
    parents = [transformer("encoder", 8, i, getattr(layers, norm)) for i in range(2)]
    x, y = data_for("functional", 48)
    for parent in parents:
        parent.compile(keras.optimizers.Adam(0.01), loss())
        parent.fit(x, y, batch_size=8, verbose=0)
    live, partner = parents
    blends = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            norms = [v for v in self.model.variables if v.name == "blend"]
            blends.append(float(numpy(norms[0])) if norms else None)

    grow = DeepFusion(at_step=8, partners=[partner], norms="block", seed=0, verbose=0)
    anneal = AnnealBlockNorms(steps=4)
    stop = keras.callbacks.EarlyStopping(
        monitor="loss", patience=9, restore_best_weights=True
    )
    live.fit(
        x,
        y,
        batch_size=8,
        epochs=2,
        verbose=0,
        callbacks=[grow, anneal, Watch(), stop],
    )
    assert grow.events[0].function_change < 1e-5
    np.testing.assert_allclose(blends[2:6], [0.25, 0.5, 0.75, 1.0], atol=1e-6)
    assert blends[:2] + blends[6:] == [None] * len(blends[:2] + blends[6:])
    assert int(numpy(live.optimizer.iterations)) == 18
    assert not any("keras_fusion" in type(a).__module__ for a in live.layers)
    live.save(tmp_path / "model.keras")
    np.save(tmp_path / "x.npy", x)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path)],
        capture_output=True,
        text=True,
        env=os.environ | {"KERAS_BACKEND": keras.config.backend()},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    again = np.load(tmp_path / "y.npy")
    np.testing.assert_allclose(again, outputs(live, x), atol=1e-6)


def test_the_end_of_the_annealing_changes_nothing():
    """The stock model continues exactly where the blended one stood."""
    parents = [transformer("encoder", 8, seed) for seed in range(2)]
    fused = fuse(parents, norms="block")
    x, y = data_for("functional", 8)
    seen = {}

    class Before(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen["outputs"] = outputs(self.model, x)

    fused.compile("sgd", loss())
    fused.fit(x, y, verbose=0, callbacks=[Before(), AnnealBlockNorms(steps=1)])
    assert type(fused.layers[2]) is layers.LayerNormalization
    assert relative_change(seen["outputs"], outputs(fused, x)) < 1e-5


def mismatched(width, seed, scale, norm):
    """A pre-norm parent whose residual stream is `scale` times as large."""
    model = transformer("decoder", width, seed, norm)
    rng = np.random.default_rng(seed)
    table = model.layers[1].embeddings
    table.assign(scale * rng.standard_normal(table.shape).astype("float32"))
    return model


@pytest.mark.core
@pytest.mark.parametrize(
    ("norm", "gain"), [("RMSNormalization", 5), ("LayerNormalization", 5)]
)
def test_calibration_of_unequal_scales(norm, gain):
    parents = [
        mismatched(256, seed, scale, getattr(layers, norm))
        for seed, scale in enumerate((1.0, 3.0))
    ]
    measured, x = ids_for("decoder", 16), ids_for("decoder", 32)[16:]
    expected = mean_of(parents, x)

    def error(**options):
        y = outputs(fuse(parents, **options), x)
        return np.linalg.norm(y - expected) / np.linalg.norm(expected)

    assert error() > gain * error(norms="calibrated", batch=measured)


def test_calibration_of_t5():
    parents = [perturbed(t5(True, 32, seed), seed) for seed in (1, 2)]
    table = parents[1].backbone.token_embedding.embeddings
    table.assign(3 * numpy(table))
    x, _ = data_for("t5", 16)
    changes = []
    for norms in ("joint", "calibrated"):
        fused = fuse(parents, norms=norms, batch=x)
        expected = mean_of(parents, x)
        changes.append(np.linalg.norm(outputs(fused, x) - expected))
    assert changes[1] < changes[0] / 2


def test_what_cannot_be_block_wise_is_named():
    with pytest.raises(keras_fusion.FusionError, match=r"T5LayerNorm.*calibrated"):
        fuse([t5(), t5(seed=1)], norms="block")
    with pytest.raises(keras_fusion.FusionError, match="LayerNormalization at 'layers"):
        fuse([subclassed(), subclassed(seed=1)], norms="block")
    with pytest.raises(keras_fusion.FusionError, match="norms='blocks'"):
        fuse([functional(), functional()], norms="blocks")
    with pytest.raises(keras_fusion.FusionError, match="batch=None"):
        fuse([functional(), functional()], norms="calibrated")
    with pytest.raises(keras_fusion.FusionError, match="steps=0"):
        AnnealBlockNorms(steps=0)
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


def test_report():
    parents = [transformer("encoder", width, width) for width in (8, 12)]
    x, y = data_for("functional", 8)
    exact = fusion_report(parents, fuse(parents, norms="block"), x, y, loss())
    assert exact.difference.largest < 1e-5 and exact.first_departure() is None
    assert exact.fused_loss == pytest.approx(exact.ensemble_loss, rel=1e-5)
    assert exact.ensemble_loss < np.mean(exact.parent_losses)  # Jensen
    assert exact.difference.argmax_agreement == 1.0
    joint = fusion_report(parents, fuse(parents), x)
    first = joint.first_departure()
    assert first.kind == "LayerNormalization" and joint.fused_loss is None
    assert [d.difference for d in joint.layers if d.kind == "Embedding"] == [0.0]
    text = str(joint)
    assert f"first departs at {first.address!r}" in text and "same argmax" in text
    assert joint.plot().get_ylabel() == "relative difference"
    own = fusion_report(parents[0], fuse(parents[0], factor=2), x)
    assert own.first_departure() is None
    with pytest.raises(keras_fusion.FusionError, match="targets=given, loss=None"):
        fusion_report(parents, fuse(parents), x, y)
