"""Norms inside blocks of keras-hub and of users, made block-wise in the built model."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers
from models import (
    LENGTH,
    VOCABULARY,
    bert,
    data_for,
    gpt2,
    llama,
    mean_of,
    numpy,
    outputs,
    perturbed,
    qwen3,
    relative_change,
    subclassed,
    t5,
)

import keras_fusion
from keras_fusion import fuse

MAKERS = {"t5": t5, "llama": llama, "gpt2": gpt2, "bert": bert, "qwen3": qwen3}


@keras.saving.register_keras_serializable("tests")
class Gain(layers.Layer):
    """A norm of a user's own: by the mean of magnitudes, with an epsilon and a gain."""

    def __init__(self, small=0.1, **kwargs):
        super().__init__(**kwargs)
        self.small = small

    def build(self, input_shape):
        self.gain = self.add_weight(shape=input_shape[-1:], name="gain")

    def call(self, x):
        size = keras.ops.mean(keras.ops.abs(x), axis=-1, keepdims=True)
        return x / (size + self.small) * (2.0 + self.gain)


keras_fusion.register(
    Gain,
    roles={"gain": ("out",)},
    scalable=("gain",),
    norm=keras_fusion.Norm("mean_square", scale="gain"),
)


IDS = data_for("functional", 4)[0]


def kind_of(name):
    return "gpt2" if name in ("llama", "qwen3") else name


def large(model):
    """The model, with features 3 times as large as those of others."""
    for variable in model.trainable_variables:
        if "embedding" in variable.path:
            variable.assign(3.0 * variable)
    return model


def pair(name):
    """Two parents of different widths and scales, and inputs for them."""
    make = MAKERS[name]
    parents = [perturbed(make(width=8)), large(perturbed(make(width=12, seed=1), 1))]
    return parents, data_for(kind_of(name), 4)[0]


@pytest.mark.core("t5", "llama")
@pytest.mark.parametrize("name", MAKERS)
def test_fusion_begins_at_the_mean_of_distinct_parents(name):
    parents, x = pair(name)
    fused = fuse(parents, norms="block")
    assert relative_change(mean_of(parents, x), outputs(fused, x)) < 1e-5
    assert type(fused) is type(parents[0])
    joint = outputs(fuse(parents, norms="joint"), x)
    assert relative_change(mean_of(parents, x), joint) > 0.01
    paths = [v.path for v in fused.trainable_variables]
    assert paths == [v.path for v in parents[0].trainable_variables]


@pytest.mark.core
def test_in_a_subclassed_model():
    parents = [perturbed(subclassed(8, 0)), perturbed(subclassed(12, 1), 1)]
    x, _ = data_for("subclassed", 4)
    fused = fuse(parents, norms="block")
    assert type(fused) is type(parents[0])
    assert all(isinstance(norm, layers.LayerNormalization) for norm in fused.norms)
    assert relative_change(mean_of(parents, x), outputs(fused, x)) < 1e-5


def own_norm(width, seed, norm=Gain):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((LENGTH,), dtype="int32")
    x = layers.Embedding(VOCABULARY, width)(inputs)
    x = x + layers.Dense(width, activation="gelu")(norm()(x))
    return perturbed(keras.Model(inputs, layers.Dense(3)(norm()(x))), seed)


@pytest.mark.core
def test_a_norm_of_a_users_own_needs_no_formula(tmp_path):
    parents = [own_norm(8, 0), large(own_norm(12, 1))]
    x, _ = data_for("functional", 4)
    fused = fuse(parents, norms="block")
    assert relative_change(mean_of(parents, x), outputs(fused, x)) < 1e-5
    fused.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(outputs(again, x), outputs(fused, x))
    tree = fuse([again, own_norm(4, 2)], norms="block")
    expected = mean_of([again, own_norm(4, 2)], x)
    assert relative_change(expected, outputs(tree, x)) < 1e-5


def test_what_saves_in_its_own_way_is_refused():
    with pytest.raises(
        keras_fusion.FusionError, match=r"Strange.*in its own way.*joint"
    ):
        fuse([own_norm(8, 0, Strange), own_norm(8, 1, Strange)], norms="block")


@keras.saving.register_keras_serializable("tests")
class RootMean(layers.Layer):
    """Features over the root of their mean square."""

    def call(self, x):
        return x / keras.ops.sqrt(keras.ops.mean(x * x, axis=-1, keepdims=True))


def test_what_a_user_says_to_be_approximate_for_distinct_parents():
    why = "it divides by the mean of all features"
    keras_fusion.register(RootMean, approximate=why)
    parents = [own_norm(8, 0, RootMean), own_norm(8, 1, RootMean)]
    with pytest.raises(keras_fusion.FusionError, match=f"RootMean.*{why}.*joint"):
        fuse(parents, norms="block")
    with pytest.warns(UserWarning, match=f"not exact.*{why}"):
        fuse(parents)
    twice = fuse(parents[0], factor=2, seed=0)
    assert relative_change(outputs(parents[0], IDS), outputs(twice, IDS)) < 1e-5


def test_feed_forward_blocks_alone_beside_norms_by_head():
    parents, x = pair("qwen3")
    fused = fuse(parents, norms="block")
    wider = fuse(fused, factor=2, only="feed_forward", seed=0)
    assert relative_change(outputs(fused, x), outputs(wider, x)) < 1e-5


def test_trees_and_self_fusion():
    (first, second), x = pair("t5")
    third = perturbed(t5(width=8, seed=2), 2)
    root = fuse([fuse([first, second], norms="block"), third], norms="block")
    expected = (2 * mean_of([first, second], x) + outputs(third, x)) / 3
    by_pairs = (mean_of([first, second], x) + outputs(third, x)) / 2
    assert relative_change(by_pairs, outputs(root, x)) < 1e-5
    assert relative_change(expected, by_pairs) > 1e-3
    twice = fuse(root, factor=2, off_diagonal="paired", seed=0)  # it stays block-wise
    assert relative_change(outputs(root, x), outputs(twice, x)) < 1e-5


def test_half_as_wide_again_after_the_residual_sum():
    """One statistic would count the new features in its mean."""
    (model, _), x = pair("bert")
    fused = fuse(model, factor=1.5, norms="block", seed=0)
    assert relative_change(outputs(model, x), outputs(fused, x)) < 1e-5


def test_deeper_with_its_block_norms():
    """A model of blocks of keras-hub, and one whose graph is repeated."""
    for parents, x in (pair("gpt2"), ([own_norm(8, 0), own_norm(12, 1)], IDS)):
        fused = fuse(parents, norms="block")
        operator = keras_fusion.DepthStacking(factor=2, identity=True)
        deep = operator.plan(fused, seed=0).fill()
        assert relative_change(outputs(fused, x), outputs(deep, x)) < 1e-5


def test_into_a_larger_model_without_config():
    parents, x = pair("bert")
    fused = fuse(parents, into=bert(width=24, seed=2), norms="block")
    assert relative_change(mean_of(parents, x), outputs(fused, x)) < 1e-5


def test_auto_is_block_wise_where_it_can_be():
    parents, x = pair("bert")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "The fusion is not exact")
        fused = fuse(parents, norms="auto")
    assert relative_change(mean_of(parents, x), outputs(fused, x)) < 1e-5
    before = [v.path for v in parents[0].variables]
    twice = fuse(parents[0], factor=2, norms="auto")  # copies need nothing
    assert [v.path for v in twice.variables] == before


class Strange(layers.RMSNormalization):
    """A norm that loads its variables in its own way."""

    def load_own_variables(self, store):
        super().load_own_variables(store)


def test_auto_says_what_is_calibrated():
    parents = [own_norm(32, 0, Strange), large(own_norm(32, 1, Strange))]
    with pytest.warns(
        UserWarning, match=r"not exact.*Strange.*own way.*1 more.*calibr"
    ):
        fused = fuse(parents, norms="auto", probe=IDS)
    expected = mean_of(parents, IDS)
    joint = outputs(fuse(parents, norms="joint"), IDS)
    found = outputs(fused, IDS)
    assert np.linalg.norm(found - expected) < np.linalg.norm(joint - expected)


def test_half_precision():
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    parents, x = pair("llama")
    fused = fuse(parents, norms="block")
    before, after = mean_of(parents, x), outputs(fused, x).astype("float32")
    assert relative_change(before.astype("float32"), after) < 0.03
    blends = [v for v in fused.variables if v.name == "blend"]
    assert {v.dtype for v in blends} == {"float32"}
    assert all(float(numpy(v)) == 0 for v in blends)
