"""Linear attention of Qwen 3.5, and layers that hold several tensors in one kernel."""

import keras
import numpy as np
import pytest
from models import perturbed

from keras_fusion import (
    AnnealBlockNorms,
    FusionError,
    HyperCloning,
    StructureError,
    fuse,
    register,
)
from keras_fusion.models import probe, samples, tree
from keras_fusion.models.head_norms import HeadNorm

keras_hub = pytest.importorskip("keras_hub")


def build(seed=0, scale=1, values=2, cls="Qwen3_5Backbone", **options):
    """A model of one block with linear attention and one with full attention."""
    keras.utils.set_random_seed(seed)
    backbone = getattr(keras_hub.models, cls)(
        vocabulary_size=24,
        num_layers=2,
        layer_types=["linear_attention", "full_attention"],
        num_query_heads=2 * scale,
        num_key_value_heads=scale,
        head_dim=8,
        hidden_dim=16 * scale,
        intermediate_dim=24 * scale,
        linear_num_key_heads=scale,
        linear_num_value_heads=values * scale,
        linear_key_head_dim=4,
        linear_value_head_dim=8,
        **options,
    )
    readout = keras.layers.Dense(3, name="readout")
    model = keras.Model(backbone.input, readout(backbone(backbone.input)))
    return perturbed(model, seed)


def change(parents, fused):
    inputs = samples.accepted(parents[0])
    return probe.change(
        probe.mean_outputs(parents, inputs), probe.outputs(fused, inputs)
    )


def gated_norms(model):
    return [
        layer for _, layer in tree.walk(model) if "NormGated" in type(layer).__name__
    ]


@pytest.mark.core
def test_distinct_parents_copies_and_trees():
    first, second, third = build(), build(1, 2), build(2)
    fused = fuse([first, second], norms="block")
    assert change([first, second], fused) < 1e-6
    (norm,) = gated_norms(fused)
    assert isinstance(norm, HeadNorm) and norm.blocks == (2, 4)
    assert change([fused, third], fuse([fused, third], norms="block")) < 1e-6
    for model in (first, fused):
        assert change([model], fuse(model, factor=2, seed=0)) < 2e-6
    assert change([second], fuse(second, factor=1.5, norms="block", seed=0)) < 1e-6
    assert change([second], HyperCloning(2).plan(second, seed=0).fill()) < 2e-6


def test_saved_and_annealed_to_stock_layers(tmp_path):
    parents = [build(), build(1)]
    fused = fuse(parents, norms="block")
    fused.save(tmp_path / "model.keras")
    assert change([fused], keras.saving.load_model(tmp_path / "model.keras")) == 0.0
    inputs = samples.accepted(fused)
    fused.compile("sgd", "mse")
    y = np.zeros_like(probe.outputs(fused, inputs)[0])
    fused.fit(inputs, y, epochs=3, verbose=0, callbacks=[AnnealBlockNorms(steps=2)])
    assert not any(isinstance(norm, HeadNorm) for norm in gated_norms(fused))
    stock = fuse(build(), factor=2, seed=0)
    stock.set_weights(fused.get_weights())
    assert change([fused], stock) < 1e-6


def test_value_heads_per_key_head_must_be_equal():
    with pytest.raises(StructureError, match="value heads per key head"):
        fuse([build(), build(1, values=4)])


@keras.saving.register_keras_serializable("tests")
class JoinedProjections(keras.layers.Layer):
    """Attention whose queries, keys and values come from one kernel."""

    def __init__(self, heads, **kwargs):
        super().__init__(**kwargs)
        self.heads = heads

    def build(self, input_shape):
        self.qkv = keras.layers.Dense(3 * 4 * self.heads)
        self.out = keras.layers.Dense(input_shape[-1])
        self.qkv.build(input_shape)
        self.out.build((*input_shape[:-1], 4 * self.heads))

    def call(self, x):
        q, k, v = (
            keras.ops.reshape(part, (-1, x.shape[1], self.heads, 4))
            for part in keras.ops.split(self.qkv(x), 3, axis=-1)
        )
        y = keras.ops.nn.dot_product_attention(q, k, v)
        return self.out(keras.ops.reshape(y, (-1, x.shape[1], 4 * self.heads)))

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return super().get_config() | {"heads": self.heads}


def joined(seed=0, heads=2):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6,), dtype="int32")
    x = keras.layers.Embedding(11, 4 * heads)(inputs)
    x = x + JoinedProjections(heads)(x)
    return perturbed(keras.Model(inputs, keras.layers.Dense(3)(x)), seed)


def test_a_kernel_of_a_users_own_that_holds_several_tensors():
    # Without roles the heads of a parent's queries would be among another one's keys.
    register(JoinedProjections, widths=("heads",))
    with pytest.raises(FusionError, match="JoinedProjections|Dense"):
        fuse([joined(), joined(1)])
    register(
        JoinedProjections,
        widths=("heads",),
        roles={"qkv.kernel": ("in", ("out", 3)), "qkv.bias": (("out", 3),)},
    )
    parents = [joined(), joined(1, 3)]
    assert change(parents, fuse(parents)) < 1e-6
    assert change(parents[:1], fuse(parents[0], factor=2, seed=0)) < 1e-6
