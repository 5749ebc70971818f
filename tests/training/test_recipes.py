"""Recipes: what they grow, at which moments and rates."""

import keras
import numpy as np
import pytest
from models import data_for, functional, loss

from keras_fusion import FusionError, recipes

STEPS = 10


def trained(callbacks, model=None):
    model = model or functional(8)
    x, y = data_for("functional", 8 * STEPS)
    model.compile(keras.optimizers.Adam(0.01), loss())
    model.fit(x, y, batch_size=8, verbose=0, callbacks=callbacks)
    return model


def rate(model):
    return float(model.optimizer.learning_rate)


@pytest.mark.core("few_data-0.01")
@pytest.mark.parametrize(
    ("name", "factor"), [("parents_exist", 0.5), ("few_data", 0.01)]
)
def test_parents_that_exist_are_fused_exactly_at_a_lower_rate(name, factor):
    other = trained([], functional(8, seed=1))
    (grow,) = getattr(recipes, name)([other], verbose=0)
    model = trained([grow])
    assert grow.events[0].step == 1 and grow.events[0].function_change < 1e-5
    assert rate(model) == pytest.approx(0.01 * factor)
    assert model.count_params() > 2 * other.count_params()


def test_one_parent_gets_new_features():
    (grow,) = recipes.parent_exists(1.5, at_step=2, verbose=0)
    model = trained([grow])
    assert grow.events[0].step == 2 and rate(model) == pytest.approx(0.005)


@pytest.mark.core
def test_from_scratch_grows_in_width_and_then_in_depth():
    small = functional(8).count_params()
    wider, deeper = recipes.from_scratch(STEPS, depth=2, verbose=0)
    model = trained([wider, deeper])
    (wide,), (deep,) = wider.events, deeper.events
    assert (wide.step, deep.step) == (3, 6)
    assert small < wide.params_after < deep.params_after == model.count_params()
    assert rate(model) == pytest.approx(0.005)


def test_options_go_to_the_callbacks():
    (grow,) = recipes.parent_exists(learning_rate_factor=0.25, rewarmup_steps=5)
    assert (grow.learning_rate_factor, grow.rewarmup_steps) == (0.25, 5)
    with pytest.raises(FusionError, match="steps"):
        recipes.from_scratch(5)


def test_every_recipe_has_a_figure():
    assert all(callable(getattr(recipes, name)) for name in recipes.FIGURES)
    for figure in recipes.FIGURES.values():
        assert figure.share is None or f"{figure.share:.2f}" in figure.text
        assert np.isfinite(figure.seeds) and figure.seeds > 0
