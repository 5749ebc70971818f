"""The scaling law: fits, its inverse, and what it refuses."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_fusion
from keras_fusion import FusionError, ScalingLaw

exponents = st.floats(0.2, 0.6)
LAWS = st.builds(
    lambda floor, a, b, first, second: ScalingLaw(
        floor, first * 1e6**a, a, second * 2e7**b, b
    ),
    st.floats(0.5, 2.5),
    exponents,
    exponents,
    st.floats(0.3, 1.5),
    st.floats(0.3, 1.5),
)
PARAMS = np.repeat([1e5, 3e5, 1e6, 4e6], 6)
TOKENS = np.tile(np.geomspace(1e6, 1e8, 6), 4)


@settings(deadline=None, max_examples=10)
@given(LAWS)
def test_a_law_is_found_from_its_own_losses(law):
    fitted = ScalingLaw.fit(PARAMS, TOKENS, law.loss(PARAMS, TOKENS), resamples=0)
    params, tokens = np.meshgrid([2e5, 8e6], [5e6, 2e8])
    np.testing.assert_allclose(
        fitted.loss(params, tokens), law.loss(params, tokens), rtol=2e-3
    )


@settings(deadline=None, max_examples=50)
@given(LAWS, st.floats(1e5, 1e9), st.floats(1e6, 1e11))
def test_tokens_invert_the_loss(law, params, tokens):
    assert law.tokens(params, law.loss(params, tokens)) == pytest.approx(
        tokens, rel=1e-6
    )
    assert law.tokens(params, law.floor(params) * 0.999) == np.inf


def test_the_interval_holds_the_value_and_narrows_with_less_noise():
    law = ScalingLaw(1.7, 400.0, 0.34, 410.0, 0.28)
    random = np.random.default_rng(0).normal(size=len(PARAMS))
    widths = []
    for noise in (0.01, 0.001):
        losses = law.loss(PARAMS, TOKENS) * np.exp(noise * random)
        fitted = ScalingLaw.fit(PARAMS, TOKENS, losses, resamples=40)
        low, high = fitted.interval(lambda x: x.loss(1e6, 2e7))
        assert low <= law.loss(1e6, 2e7) * (1 + noise)
        assert high >= law.loss(1e6, 2e7) * (1 - noise)
        widths.append(high - low)
    assert widths[1] < widths[0] / 3


def test_equal_seeds_give_equal_fits():
    losses = ScalingLaw(1.7, 400.0, 0.34, 410.0, 0.28).loss(PARAMS, TOKENS) + 0.01
    fits = [ScalingLaw.fit(PARAMS, TOKENS, losses, resamples=3, seed=1) for _ in "ab"]
    assert fits[0] == fits[1]
    assert len(fits[0].resampled) == 3


@pytest.mark.parametrize(
    "params, tokens, losses, message",
    [
        ([1e6] * 6, range(1, 7), [3.0] * 6, "6 runs of 1 sizes"),
        ([1e6, 2e6], [1e6, 2e6], [3.0, 2.0], "at least 6 runs"),
        ([1e6, 2e6] * 3, [1e6, 2e6] * 3, [3.0] * 5, "6, 6, 5 values"),
        ([1e6, 2e6] * 3, [1e6, 2e6] * 3, [3.0] * 5 + [np.nan], "finite and positive"),
        ([1e6, -2e6] * 3, [1e6, 2e6] * 3, [3.0] * 6, "finite and positive"),
    ],
)
def test_runs_that_tell_too_little_are_refused(params, tokens, losses, message):
    with pytest.raises(FusionError, match=message):
        keras_fusion.ScalingLaw.fit(params, list(tokens), losses)
