"""Plans of growth: against the closed form, and laws that hold for all targets."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import growth_limit
from keras_fusion import ExistingParent, FusionError, ScalingLaw, plan_growth

A, B = growth_limit.LAWS["Hoffmann et al. 2022"]
LAW = ScalingLaw(1.7, 406.4, A, 410.7, B)
TARGETS = st.floats(1e7, 1e11)
SHARES = st.floats(0.1, 10.0)


def optimal_tokens(params):
    """Where another token is worth as much as what it costs in size."""
    return (LAW.data_scale * B / (LAW.size_scale * A) * params**A) ** (1 / B)


@settings(deadline=None, max_examples=10)
@given(TARGETS, st.sampled_from(growth_limit.TOKENS[1:]))
def test_one_growth_costs_what_the_exponents_say(params, share):
    # The limit is taken over ratios of 2 to 4, the plan over a few more.
    tokens = share * optimal_tokens(params)
    advice = plan_growth(params, law=LAW, tokens=tokens, most_growths=1)
    limit = growth_limit.counted((A, B), share)
    assert advice.best_growth.share == pytest.approx(limit, abs=0.03)


@settings(deadline=None, max_examples=10)
@given(TARGETS, st.sampled_from(growth_limit.FREE_RATIOS))
def test_a_parent_that_exists_saves_what_the_exponents_say(params, ratio):
    tokens = optimal_tokens(params)
    parent = ExistingParent(params / ratio, LAW.loss(params / ratio, tokens), tokens)
    advice = plan_growth(params, law=LAW, tokens=tokens, parents=parent)
    expected = growth_limit.free((A, B), ratio)
    assert advice.best_growth.share == pytest.approx(expected, abs=1e-6)
    assert advice.grow == (expected <= 0.95)


@settings(deadline=None, max_examples=15)
@given(TARGETS, SHARES, st.floats(0.0, 0.9))
def test_more_freedom_never_costs_more(params, share, mixing):
    tokens = share * optimal_tokens(params)
    plain = plan_growth(params, law=LAW, tokens=tokens)
    mixed = plan_growth(params, law=LAW, tokens=tokens, mixing=mixing)
    assert mixed.best_growth.share <= plain.best_growth.share + 1e-9
    assert plain.best_size.share <= plain.scratch.share + 1e-2
    assert plain.scratch.share == pytest.approx(1.0)
    assert plain.scratch.loss == pytest.approx(LAW.loss(params, tokens))


def test_flops_and_tokens_name_the_same_run():
    first = plan_growth(1e9, law=LAW, tokens=2e10)
    assert plan_growth(1e9, law=LAW, flops=6 * 1e9 * 2e10) == first


def test_a_model_counts_its_parameters():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5)])
    advice = plan_growth(model, law=LAW, tokens=500)
    assert advice.scratch.sizes == (25.0,)


def test_the_verdict_follows_the_worse_end_of_the_interval():
    random = np.random.default_rng(0)
    params = np.repeat([1e7, 1e8, 1e9], 4)
    tokens = np.tile([1e8, 1e9, 1e10, 1e11], 3)
    losses = LAW.loss(params, tokens) * np.exp(0.002 * random.normal(size=12))
    law = ScalingLaw.fit(params, tokens, losses, resamples=20)
    for read in (1e9, 2e10, 1e12):
        advice = plan_growth(1e9, law=law, tokens=read, mixing=(0.0, 0.2))
        low, high = advice.best_growth.interval
        assert low <= advice.best_growth.share <= high
        assert advice.grow == (high <= 0.95)
        assert str(advice).startswith("Grow: " if advice.grow else "Do not grow: ")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "either `tokens`"),
        ({"tokens": 1e9, "flops": 1e18}, "either `tokens`"),
        ({"tokens": -1}, "`tokens` must be finite and positive"),
        ({"tokens": 1e9, "mixing": 2.0}, "`mixing`"),
        ({"tokens": 1e9, "mixing": (0.5, 0.1)}, "`mixing`"),
        ({"tokens": 1e9, "most_growths": 3}, "`most_growths`"),
        (
            {"tokens": 1e9, "parents": ExistingParent(2e9, 3.0)},
            "smaller than the target",
        ),
    ],
)
def test_what_is_out_of_range_is_refused(arguments, message):
    with pytest.raises(FusionError, match=message):
        plan_growth(1e9, law=LAW, **arguments)


def test_a_parent_needs_a_finite_loss():
    with pytest.raises(FusionError, match="`loss` must be finite"):
        ExistingParent(1e6, float("nan"))
