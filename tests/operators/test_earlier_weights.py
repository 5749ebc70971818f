"""Weights of before a growth, which become those of the model grown from them."""

import gc
import weakref

import keras
import numpy as np
import pytest
from models import perturbed

from keras_fusion import Chain, DeepFusion, DepthStacking, FusionOperator, fuse
from keras_fusion.models import host, probe, samples

families = pytest.importorskip("experiments.families")

# What all features of a parent share: biases of routers, scales of cosines, norms by
# head; and models without such.
CASES = [
    ("GptOss", "CausalLM"),
    ("QwenMoe", "CausalLM"),
    ("Qwen3", "CausalLM"),
    ("SigLIP", "backbone"),
    ("CLIP", "backbone"),
    ("Llama", "CausalLM"),
    ("Bert", "MaskedLM"),
]


def build(family, name, seed=0, amount=None):
    model = perturbed(families.model(family, name, 1, seed=seed), seed)
    for variable in model.trainable_variables if amount is not None else ():
        if variable.name in ("logit_scale", "logit_bias"):
            variable.assign(amount * keras.ops.ones_like(variable))
    return model


def assert_equal(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.core("GptOss-CausalLM", "Qwen3-CausalLM")
@pytest.mark.parametrize(("family", "name"), CASES)
def test_grow_as_the_model_that_has_them(family, name):
    live, partner = build(family, name, 0, 1.5), build(family, name, 1, 2.0)
    plan = FusionOperator(partners=[partner], norms="block").plan(live, seed=0)
    plan.fill()
    adapter, earlier = plan.weights_adapter(), build(family, name, 2, 0.5)
    expected = fuse([earlier, partner], norms="block").get_weights()
    assert_equal(adapter(earlier.get_weights()), expected)
    # And once more, by a growth of what was fused itself.
    third = build(family, name, 3, 1.0)
    again = FusionOperator(partners=[third], norms="block").plan(plan.fused, seed=0)
    again.fill()
    found = again.weights_adapter()(adapter(earlier.get_weights()))
    grown = fuse([earlier, partner], norms="block")
    assert_equal(found, fuse([grown, third], norms="block").get_weights())


@pytest.mark.parametrize(("family", "name"), CASES)
def test_a_plan_reads_as_filled_with_any_weights(family, name):
    parents = [build(family, name, seed, 1.0 + seed) for seed in (0, 1)]
    plan = FusionOperator(partners=parents[1:], norms="block").plan(parents[0], seed=0)
    rng, x = np.random.default_rng(0), samples.accepted(parents[0])
    drawn = [
        (v, probe.random_value(v, rng)) for m in parents for v in m.trainable_variables
    ]
    with host.assumed(drawn):
        expected = probe.mean_outputs(parents, x)
        with plan.assumed():
            assert probe.change(expected, probe.outputs(plan.fused, x)) < 1e-5


def test_keep_none_of_the_first_parents_variables():
    live, partner = build("GptOss", "CausalLM"), build("GptOss", "CausalLM", 1)
    plan = FusionOperator(partners=[partner], norms="block").plan(live, seed=0)
    plan.fill()
    adapter, earlier = plan.weights_adapter(), live.get_weights()
    gone = [weakref.ref(v) for v in live.variables]
    del live, plan
    gc.collect()
    assert not any(reference() is not None for reference in gone)
    assert len(adapter(earlier)) > len(earlier)


class Worsening(keras.callbacks.Callback):
    """Says that the first epoch is the best, and keeps its outputs."""

    def __init__(self, x):
        super().__init__()
        self.x, self.best = x, None

    def on_epoch_end(self, epoch, logs=None):
        logs["watched"] = float(epoch)
        if epoch == 0:
            self.best = probe.outputs(self.model, self.x)


@pytest.mark.parametrize(("family", "name"), CASES[:4])
def test_early_stopping_restores_weights_of_before_a_fusion(family, name):
    live, partner = build(family, name), build(family, name, 1)
    x = samples.accepted(live)
    targets = [np.zeros_like(y) for y in probe.outputs(live, x)]
    y = keras.tree.pack_sequence_as(live(x), targets)
    for model in (live, partner):
        none = {"metrics": [], "weighted_metrics": []}
        model.compile(keras.optimizers.Adam(0.01), "mse", **none)
    options = {"batch_size": len(targets[0]), "verbose": 0}
    partner.fit(x, y, epochs=2, **options)
    own, worsening = probe.outputs(partner, x), Worsening(x)
    stopping = keras.callbacks.EarlyStopping(
        "watched", mode="min", patience=4, restore_best_weights=True
    )
    grow = DeepFusion(at_step=3, partners=[partner], norms="block", verbose=0)
    live.fit(x, y, epochs=9, callbacks=[worsening, stopping, grow], **options)
    ensemble = [(a + b) / 2 for a, b in zip(worsening.best, own, strict=True)]
    assert probe.change(ensemble, probe.outputs(live, x)) < 1e-4


@pytest.mark.parametrize("family", ["GptOss", "Qwen3", "Llama"])
def test_of_chained_growths(family):
    live, partner, earlier = (build(family, "CausalLM", seed) for seed in range(3))
    chain = Chain(
        [
            FusionOperator(partners=[partner], norms="block"),
            DepthStacking(identity=True),
        ]
    )
    plans = chain.plan(live, seed=0)
    plans.fill()
    assert len(plans.layouts) and len(plans.fused.weights) > len(live.weights)
    found = plans.weights_adapter()(earlier.get_weights())
    again = chain.plan(earlier, seed=0)
    again.fill()
    assert_equal(found, again.fused.get_weights())
