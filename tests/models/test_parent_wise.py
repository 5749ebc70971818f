"""Routings of mixtures of experts and cosines of embeddings: by parent, as in each."""

import keras
import numpy as np
import pytest
from fitting import Watch
from models import numpy, perturbed, relative_change
from processes import REFUSES, run_code

import keras_fusion
from keras_fusion import AnnealBlockNorms, DeepFusion, FusionError, fuse
from keras_fusion.graft.norms import stock_norms
from keras_fusion.models import exchange, probe, samples, tree
from keras_fusion.models.parent_wise import ParentWise, decision_of

families = pytest.importorskip("experiments.families")

MIXTURES = ["Mixtral", "QwenMoe", "Qwen3_5Moe", "GptOss"]
PAIRS = ["CLIP", "SigLIP"]


def build(family, scale=1, seed=0):
    """A language model, or two towers; the features of odd seeds are 3 times larger."""
    name = "backbone" if family in PAIRS else "CausalLM"
    width = 1 if family in PAIRS else scale  # The towers' sizes are one family's.
    model = perturbed(families.model(family, name, width, seed=seed), seed)
    for variable in model.trainable_variables:
        if seed % 2 and "embedding" in variable.path:
            variable.assign(3.0 * variable)
        # Scales of cosines and biases of routers that differ.
        if variable.name in ("logit_scale", "logit_bias"):
            variable.assign(0.3 * seed + keras.ops.ones(()))
    return model


def deciding(model):
    """The layers of a model that decide for all features."""
    return [layer for _, layer in tree.walk(model) if decision_of(layer)]


def close(expected, found, tolerance=1e-5):
    """Whether outputs are the same but for rounding."""
    return probe.change(expected, found) < tolerance


def unchanged(model, grown):
    inputs = samples.accepted(model)
    return close(probe.outputs(model, inputs), probe.outputs(grown, inputs))


def new_features(model, factor, norms, seed):
    return keras_fusion.NewFeatures(factor, norms).plan(model, seed).fill()


def is_mean(parents, fused):
    inputs = samples.accepted(parents[0])
    return close(probe.mean_outputs(parents, inputs), probe.outputs(fused, inputs))


@pytest.mark.core("GptOss", "CLIP")
@pytest.mark.parametrize("family", MIXTURES + PAIRS)
def test_trees_of_distinct_parents_and_copies(family):
    first, second = build(family), build(family, 2, 1)
    fused = fuse([first, second], norms="block")
    assert type(fused) is type(first) and is_mean([first, second], fused)
    stock = [type(layer) for layer in deciding(first)]
    for layer, cls in zip(deciding(fused), stock, strict=True):
        assert isinstance(layer, cls) and layer.groups == len(layer.blocks) == 2
    # Copies decide together, so that noise between them cancels.
    twice = fuse(fused, factor=2, off_diagonal="paired", seed=0)
    assert unchanged(fused, twice)
    assert {(x.groups, len(x.blocks)) for x in deciding(twice)} == {(2, 4)}
    third = build(family, seed=2)
    assert is_mean([twice, third], fuse([twice, third], norms="block"))
    assert unchanged(fused, fuse(fused, factor=2, only="feed_forward", seed=0))
    assert unchanged(first, fuse(first, factor=2, norms="block", seed=0))


def test_without_block_norms_all_features_decide_at_once():
    parents = [build("Mixtral"), build("Mixtral", seed=1)]
    joint = fuse(parents, norms="joint")
    assert not any(isinstance(x, ParentWise) for x in deciding(joint))
    assert not is_mean(parents, joint)


@pytest.mark.parametrize("operator", [fuse, new_features])
@pytest.mark.parametrize("family", [*MIXTURES, "SigLIP"])
def test_new_features_beside_those_of_parents(family, operator):
    own, both = build(family, 2), fuse([build(family), build(family, 1, 1)])
    for model, groups in ((own, 1), (both, 2)):
        fused = operator(model, factor=1.5, norms="block", seed=0)
        assert unchanged(model, fused)
        for layer in deciding(fused):
            assert (layer.groups, len(layer.blocks)) == (groups, groups + 1)
            # They take part in a routing; in a comparison none would be the same.
            members = [numpy(group.members) for group in layer._groups()]
            new = np.stack(members)[:, -layer.blocks[-1] :].sum(axis=0)
            np.testing.assert_array_equal(new, 0.0 if family in PAIRS else 1.0)


@pytest.mark.parametrize("factor", [1.5, 2.5])
@pytest.mark.parametrize("family", ["Qwen3", "Llama"])
def test_new_heads_and_features_beside_those_of_fused_parents(family, factor):
    # Norms by head, and epsilons that are no smaller for what is block-wise.
    fused = fuse([build(family), build(family, 1, 1)], norms="block")
    for norms in ("auto", "block"):
        grown = fuse(fused, factor=factor, norms=norms, seed=0)
        assert unchanged(fused, grown)
        assert is_mean([grown, build(family, 1, 2)], fuse([grown, build(family, 1, 2)]))


def test_a_parent_twice_beside_another():
    first, second = build("Mixtral"), build("Mixtral", seed=1)
    parents = [first, second, first]
    assert is_mean(parents, fuse(parents, norms="block"))


def test_into_a_model_that_was_built():
    parents = [build("Mixtral"), build("Mixtral", seed=1)]
    bigger = families.model("Mixtral", "CausalLM", 2)
    assert is_mean(parents, fuse(parents, into=bigger, norms="block"))


@pytest.mark.parametrize("family", ["GptOss", "SigLIP"])
def test_saved_with_its_decisions(family, tmp_path):
    parents = [build(family), build(family, seed=1)]
    model = fuse(fuse(parents, norms="block"), factor=2, seed=0)
    inputs = samples.accepted(parents[0])
    expected = probe.outputs(model, inputs)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    run_code(REFUSES, tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    stock = fuse(fuse(parents[0], factor=2), factor=2)
    stock.load_weights(tmp_path / "model.weights.h5")
    for again in (loaded, stock):
        for one, other in zip(probe.outputs(again, inputs), expected, strict=True):
            np.testing.assert_array_equal(one, other)
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        with pytest.raises(FusionError, match=r"cannot hold.*weights\.h5"):
            tf.train.Checkpoint(model=model).save(str(tmp_path / "model"))


def plain(seed=0):
    """A decoder with experts and a head of CLIP in a graph of a user's own."""
    from keras_hub.src.models.clip.clip_layers import CLIPHead
    from keras_hub.src.models.mixtral.mixtral_decoder import MixtralTransformerDecoder

    keras.utils.set_random_seed(seed)
    keras.saving.register_keras_serializable("tests")(MixtralTransformerDecoder)
    keras.saving.register_keras_serializable("tests")(CLIPHead)
    inputs = keras.Input((6,), dtype="int32")
    x = keras.layers.Embedding(20, 8)(inputs)
    x = MixtralTransformerDecoder(16, 2, 2, num_experts=3, sliding_window=6)(x)
    x = keras.layers.GlobalAveragePooling1D()(keras.layers.LayerNormalization()(x))
    pairs = CLIPHead()(keras.layers.Dense(8)(x), keras.layers.Dense(8)(x))
    return perturbed(keras.Model(inputs, pairs), seed)


def test_in_a_graph_of_a_users_own(tmp_path):
    keras_fusion.register(
        "keras_hub>MixtralTransformerDecoder",
        widths=("intermediate_dim", "num_query_heads", "num_key_value_heads"),
    )
    # Both embeddings grow here, of which the package knows in keras-hub's models alone.
    keras_fusion.register("keras_hub>CLIPHead", roles={"logit_scale": ()})
    parents = [plain(), plain(1)]
    fused = fuse(parents, norms="block")
    assert is_mean(parents, fused)
    fused.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert unchanged(fused, loaded)
    assert unchanged(fused, keras.models.clone_model(fused)) is False  # other weights
    assert is_mean([loaded, plain(2)], fuse([loaded, plain(2)], norms="block"))


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "bfloat16"])
@pytest.mark.parametrize("family", ["GptOss", "SigLIP"])
def test_half_precision(family, policy):
    keras.config.set_dtype_policy(policy)
    parents = [build(family), build(family, seed=1)]
    fused = fuse(parents, norms="block")
    inputs = samples.accepted(parents[0])
    expected = probe.mean_outputs(parents, inputs)
    assert close(expected, probe.outputs(fused, inputs), 0.05)
    extra = [v for x in deciding(fused) for v in exchange.extra_variables(x)]
    assert {v.dtype for v in extra} == {"float32"}


@pytest.mark.core
def test_the_losses_of_routers_are_the_mean_of_the_parents():
    parents = [build("QwenMoe"), build("QwenMoe", seed=1)]
    fused = fuse(parents, norms="block")
    inputs = samples.accepted(parents[0])
    added = []
    for model in (*parents, fused):
        model(inputs, training=True)
        added.append([float(numpy(loss)) for loss in model.losses])
    own = np.sum(added[-1])
    assert own == pytest.approx((np.sum(added[0]) + np.sum(added[1])) / 2, rel=1e-5)
    assert own > 0


@pytest.mark.parametrize("family", ["Mixtral", "GptOss"])
def test_more_experts_and_more_layers(family):
    fused = fuse([build(family), build(family, seed=1)], norms="block")
    deep = keras_fusion.DepthStacking(factor=2, identity=True)
    assert unchanged(fused, deep.plan(fused, seed=0).fill())
    grown = keras_fusion.ExpertGrowth(2, seed=0).plan(fused).fill()
    assert unchanged(fused, grown)
    assert grown.backbone.num_experts == 2 * fused.backbone.num_experts


@pytest.mark.core("CLIP")
@pytest.mark.parametrize("family", ["GptOss", "QwenMoe", "CLIP"])
def test_grown_in_fit_and_annealed_to_the_stock_layers(family):
    live, partner = build(family), build(family, seed=1)
    x = samples.accepted(live)
    targets = [np.zeros_like(y) for y in probe.outputs(live, x)]
    y = keras.tree.pack_sequence_as(live(x), targets)
    for model in (live, partner):
        none = {"metrics": [], "weighted_metrics": []}
        model.compile(keras.optimizers.Adam(1e-3), "mse", **none)

    def train(*callbacks, model=live):
        options = {"batch_size": len(targets[0]), "epochs": 3, "verbose": 0}
        model.fit(x, y, callbacks=callbacks, **options)

    train(model=partner)
    before, after = Watch(2, x), Watch(2, x)
    grow = DeepFusion(at_step=2, partners=[partner], norms="block", verbose=0)
    train(before, grow, after)
    own = probe.outputs(partner, x)
    pairs = zip(keras.tree.flatten(before.outputs), own, strict=True)
    ensemble = [(one + other) / 2 for one, other in pairs]
    assert close(ensemble, keras.tree.flatten(after.outputs))
    train(AnnealBlockNorms(steps=3))
    assert not any(isinstance(layer, ParentWise) for layer in deciding(live))
    stock = fuse(build(family), factor=2, seed=0)
    stock.set_weights(live.get_weights())
    assert close(probe.outputs(live, x), probe.outputs(stock, x))


def test_a_model_built_anew_computes():
    parents = [build("CLIP"), build("CLIP", seed=1)]
    clone = keras.models.clone_model(fuse(parents, norms="block"))
    inputs = samples.accepted(parents[0])
    assert all(np.isfinite(y).all() for y in probe.outputs(clone, inputs))


def test_a_file_of_other_parents_is_refused(tmp_path):
    parents = [build("GptOss", seed=seed) for seed in range(4)]
    pairs = [fuse(parents[:2], norms="block"), fuse(parents[2:], norms="block")]
    fuse(pairs, norms="block").save_weights(tmp_path / "four.weights.h5")
    twice = fuse(pairs[0], factor=2, seed=0)
    with pytest.raises(ValueError, match="has other parents than in the file"):
        twice.load_weights(tmp_path / "four.weights.h5")


def test_what_would_not_keep_the_blocks_is_refused():
    parents = [build("Mixtral"), build("Mixtral", seed=1)]
    fused = fuse(parents, norms="block")
    for operator in (keras_fusion.HyperCloning(), keras_fusion.Net2Net()):
        with pytest.raises(FusionError, match=r"each of its blocks \(16, 16\) alone"):
            operator.plan(fused, seed=0)
    for layer in exchange.block_norms(fused):
        layer.blend.assign(0.5)
    assert unchanged(fused, fuse(fused, factor=2, seed=0))
    with pytest.raises(FusionError, match=r"its blend is 0\.5.*AnnealBlockNorms"):
        fuse([fused, parents[0]])


def test_back_to_what_it_was_where_a_change_fails():
    fused = fuse([build("GptOss"), build("GptOss", seed=1)], norms="block")
    inputs = samples.accepted(fused)
    expected = probe.outputs(fused, inputs)
    fused.compile("sgd", "mse")
    with pytest.raises(OSError), stock_norms(fused):
        raise OSError
    assert relative_change(expected[0], probe.outputs(fused, inputs)[0]) < 1e-6
