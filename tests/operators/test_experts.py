"""Growth of mixtures of experts: copies that share a token, and part in training."""

import keras
import numpy as np
import pytest
from models import (
    functional,
    gradients,
    loss,
    numpy,
    outputs,
    perturbed,
    relative_change,
)

import keras_fusion
from keras_fusion import AtStep, ExpertGrowth, FusionError, GrowModel
from keras_fusion.testing import run_operator_test

SIZES = {
    "vocabulary_size": 20,
    "num_layers": 1,
    "num_query_heads": 2,
    "num_key_value_heads": 2,
    "hidden_dim": 8,
    "intermediate_dim": 16,
    "num_experts": 3,
    "top_k": 2,
    "sliding_window": 8,
}
QWEN = {"moe_intermediate_dim": 8, "shared_expert_intermediate_dim": 16}
FAMILIES = {
    "Mixtral": SIZES | {"router_aux_loss_coef": 0.0},
    # Weights of the chosen experts that do not sum to one.
    "QwenMoe": {k: v for k, v in SIZES.items() if k != "sliding_window"}
    | QWEN
    | {"norm_top_k_prob": False, "router_aux_loss_coefficient": 0.0},
    "GptOss": SIZES,
}


def mixture(family="Mixtral"):
    from keras_hub import models

    keras.utils.set_random_seed(0)
    backbone = getattr(models, f"{family}Backbone")(**FAMILIES[family])
    model = getattr(models, f"{family}CausalLM")(backbone, preprocessor=None)
    return perturbed(model)


def data(count=16):
    ids = np.random.default_rng(0).integers(0, 20, (count, 6))
    return {"token_ids": ids, "padding_mask": np.ones_like(ids)}, ids


def bank(model, name="output_dense"):
    """The kernel of the experts of that name, of shape `(experts, in, out)`."""
    return next(numpy(v) for v in model.weights if v.path.endswith(name))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("factor", [2, 3])
def test_the_function_stays_where_top_k_grows_as_well(family, factor):
    model, (x, _) = mixture(family), data(8)
    plan = ExpertGrowth(factor, seed=0).plan(model)
    grown = plan.fill()
    assert plan.exact and relative_change(outputs(model, x), outputs(grown, x)) < 1e-5
    config = grown.backbone.get_config()
    assert (config["num_experts"], config["top_k"]) == (3 * factor, 2 * factor)
    name = "down_proj" if family == "GptOss" else "output_dense"
    own, new = bank(model, name), np.split(bank(grown, name), factor)
    np.testing.assert_allclose(np.mean(new, axis=0), own, atol=1e-6)
    noise = np.std(new[0] - own) / np.std(own)
    assert noise == pytest.approx(0.25, rel=0.3)


def test_the_function_changes_with_another_top_k_and_that_is_told():
    model, (x, _) = mixture(), data(8)
    operator = ExpertGrowth(2, top_k=2, seed=0)
    seen = keras_fusion.preview(model, operator, verbose=0)
    assert not seen.exact
    (note,) = [note for note in seen.notes if note.startswith("Experts: 3 -> 6")]
    assert "2 -> 2" in note and "top_k=4 keeps it" in note
    before = outputs(model, x)
    event = keras_fusion.grow(model, operator, probe=x, verbose=0)
    change = relative_change(before, outputs(model, x))
    assert event.function_change == pytest.approx(change, rel=1e-3) and change > 1e-3


def test_router_noise_is_not_promised_to_keep_the_function():
    model = mixture()
    plan = ExpertGrowth(router_noise=0.1, noise_scale=0.0, seed=0).plan(model)
    own = {id(x.target): numpy(x.sources[0]) for x in plan.layouts}
    (router,) = [x.target for x in plan.layouts if tuple(x.target.shape) == (8, 6)]
    plan.fill()
    first, second = np.split(numpy(router), 2, axis=1)
    np.testing.assert_allclose((first + second) / 2, own[id(router)], atol=1e-6)
    assert not plan.exact and np.abs(first - second).max() > 1e-3


@pytest.mark.parametrize("family", ["Mixtral", "QwenMoe"])
def test_moments_are_carried_at_the_scale_of_the_gradients(family):
    model, (x, y) = mixture(family), data(4)
    plan = ExpertGrowth(2, noise_scale=0.0).plan(model)
    grown = plan.fill()
    small, large = gradients(model, x, y), gradients(grown, x, y)
    largest = max(np.abs(move).max() for move in small.values())
    for layout in plan.layouts:
        if layout.target.trainable:
            moment = plan.filler.moment(
                keras_fusion.Slot(1.0), layout, [small[id(layout.sources[0])]], True
            )
            error = np.abs(large[id(layout.target)] - moment).max()
            assert error < 1e-3 * largest, layout


def test_in_fit_the_copies_part():
    model, (x, y) = mixture(), data()
    grow = run_operator_test(ExpertGrowth(seed=0), model, x, y, loss=loss())
    first, second = np.split(bank(grow.model, "gate_dense"), 2)
    assert np.abs(first - second).max() > 1e-4
    assert grow.events[0].operator == "experts x2"


@pytest.mark.parametrize(
    ("make", "pattern"),
    [
        (
            lambda: ExpertGrowth().plan(functional()),
            "has no experts.*is not turned into experts; grow its width",
        ),
        (lambda: ExpertGrowth(top_k=7).plan(mixture()), "`top_k=7` is more than the 6"),
        (lambda: ExpertGrowth(1.5), "must be an integer.*factor=1.5"),
        (lambda: ExpertGrowth(top_k=0), "`top_k` must be.*top_k=0"),
        (lambda: ExpertGrowth(router_noise=-1), "`router_noise` must be"),
    ],
)
def test_what_cannot_be_is_refused(make, pattern):
    with pytest.raises(FusionError, match=pattern):
        make()


def test_a_dense_model_is_refused_when_training_begins():
    model = functional()
    model.compile("adam", loss())
    grow = GrowModel(ExpertGrowth(), AtStep(100))
    ids = np.zeros((8, 6), "int32")
    with pytest.raises(FusionError, match="has no experts"):
        model.fit(ids, ids, verbose=0, callbacks=[grow])
