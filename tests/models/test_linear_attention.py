"""Linear attention of Qwen 3.5, and layers that hold several tensors in one kernel."""

import keras
import numpy as np
import pytest
from models import perturbed

from keras_fusion import (
    AnnealBlockNorms,
    DepthStacking,
    FusionError,
    HyperCloning,
    StructureError,
    fuse,
    register,
)
from keras_fusion.models import probe, samples, tree
from keras_fusion.models.head_norms import HeadNorm

keras_hub = pytest.importorskip("keras_hub")


def build(seed=0, scale=1, values=2, kinds=1, task=False):
    """A model of blocks with linear attention and with full attention, in turn."""
    keras.utils.set_random_seed(seed)
    backbone = keras_hub.models.Qwen3_5Backbone(
        vocabulary_size=24,
        num_layers=2 * kinds,
        layer_types=["linear_attention", "full_attention"] * kinds,
        num_query_heads=2 * scale,
        num_key_value_heads=scale,
        head_dim=8,
        hidden_dim=16 * scale,
        intermediate_dim=24 * scale,
        linear_num_key_heads=scale,
        linear_num_value_heads=values * scale,
        linear_key_head_dim=4,
        linear_value_head_dim=8,
    )
    if task:
        model = keras_hub.models.Qwen3_5CausalLM(backbone=backbone, preprocessor=None)
        return perturbed(model, seed)
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


# Not in the core suite: JAX compiles each of the 63 steps of keras-hub's loop, for minutes.
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


@pytest.mark.parametrize("order", ["stacked", "interleaved"])
def test_in_depth(order):
    model = build(task=True)
    if order == "stacked":
        model = fuse([model, build(1, task=True)], norms="block")
    deep = DepthStacking(2, identity=True, order=order).plan(model, seed=0).fill()
    assert change([model], deep) < 1e-6
    kinds = deep.backbone.layer_types
    own = ["linear_attention", "full_attention"]
    assert kinds == (own * 2 if order == "stacked" else sorted(own * 2)[::-1])


def test_parents_of_unequal_depth():
    shallow, deep = build(task=True), build(1, kinds=2, task=True)
    assert change([shallow, deep], fuse([shallow, deep], norms="block")) < 1e-6


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


@keras.saving.register_keras_serializable("tests")
class Gated(keras.layers.Layer):
    """Two parts of a kernel of different sizes, one of which is summed up."""

    def __init__(self, value, gate, **kwargs):
        super().__init__(**kwargs)
        self.value, self.gate = value, gate

    def build(self, input_shape):
        self.both = [keras.layers.Dense(self.value + self.gate, activation="relu")]
        self.out = keras.layers.Dense(input_shape[-1])
        self.both[0].build(input_shape)
        self.out.build((*input_shape[:-1], self.value + self.gate))

    def call(self, x):
        y = self.both[0](x)
        value, gate = y[..., : self.value], y[..., self.value :]
        return x + self.out(keras.ops.concatenate([gate, value], axis=-1))

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return super().get_config() | {"value": self.value, "gate": self.gate}


def gated(value, gate, seed=0, width=12):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6,), dtype="int32")
    x = Gated(value, gate)(keras.layers.Embedding(11, width)(inputs))
    return perturbed(keras.Model(inputs, keras.layers.Dense(3)(x)), seed)


def in_parts(layer):
    both = ("out", (layer.value, layer.gate))
    return {
        "both.0": {"kernel": ("in", both), "bias": (both,)},
        "out": {"kernel": (("in", (layer.gate, layer.value)), "out")},
    }


def test_parts_of_other_proportions_in_each_parent():
    register(Gated, widths=("value", "gate"), inner=in_parts)
    for sizes in [(8, 4), (8, 8)], [(8, 4), (4, 8)], [(4, 8), (4, 8)]:
        parents = [gated(*own, seed=seed) for seed, own in enumerate(sizes)]
        fused = fuse(parents)
        assert change(parents, fused) < 1e-6
        both = fused.layers[2].both[0]
        assert both.units == sum(map(sum, sizes))
        # A growth of what was chosen alone, though the layer has roles for its kernels.
        model = parents[0]
        grown = fuse(model, factor=2, only=["gate"], seed=0)
        assert change([model], grown) < 1e-6
        assert (grown.layers[2].value, grown.layers[2].gate) == (
            sizes[0][0],
            2 * sizes[0][1],
        )
    smaller = gated(20, 8, width=24)
    with pytest.raises(FusionError, match="at least their sums"):
        fuse([gated(8, 4), gated(4, 8)], into=smaller)


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        ({"bot.0": {}}, "'bot.0'.*holds no layer"),
        ({"both.1": {}}, "'both.1'.*holds no layer"),
        ({"value": {}}, "'value'.*holds no layer"),
        ({"both.0": {"kernl": ("in", "out")}}, r"\['kernl'\].*has the variables"),
        ({"both.0": {"kernel": ("in", ("out", 5))}}, "parts 5.* has 12 entries"),
        ({"both.0": {"kernel": ("in", ("out", 2.0))}}, "parts 2.0"),
        ({"both.0": {"kernel": ("in", ("out", (7, 7)))}}, r"parts \(7, 7\)"),
        ({"both.0": {"kernel": ("in", ("out", ()))}}, r"parts \(\)"),
    ],
)
def test_roles_that_do_not_fit_are_refused_by_name(inner, message):
    register(Gated, widths=("value", "gate"), inner=inner)
    with pytest.raises(FusionError, match=message):
        fuse([gated(8, 4), gated(8, 4, 1)])


def test_a_stream_as_wide_as_the_parts_together():
    # 8 + 8 + 16 features of queries, keys and values, and 32 of the stream.
    parents = [build(seed, 2) for seed in (0, 1)]
    assert change(parents, fuse(parents, norms="block")) < 1e-6
    assert change(parents[:1], fuse(parents[0], factor=2, seed=0)) < 2e-6


@pytest.mark.core
def test_a_kernel_of_a_users_own_that_holds_several_tensors():
    # Without roles the heads of a parent's queries would be among another one's keys.
    register(JoinedProjections, widths=("heads",))
    with pytest.raises(FusionError, match="JoinedProjections|Dense"):
        fuse([joined(), joined(1)])
    register(
        JoinedProjections,
        widths=("heads",),
        inner={"qkv": {"kernel": ("in", ("out", 3)), "bias": (("out", 3),)}},
    )
    parents = [joined(), joined(1, 3)]
    assert change(parents, fuse(parents)) < 1e-6
    assert change(parents[:1], fuse(parents[0], factor=2, seed=0)) < 1e-6
