"""Recipes: what they grow, at which moments and rates."""

import inspect

import keras
import pytest
from models import data_for, functional, loss

from keras_fusion import (
    AfterSteps,
    BackupAndRestore,
    FusionError,
    GrowModel,
    HyperCloning,
    Moment,
    recipes,
)

pytestmark = pytest.mark.eager

STEPS = 10


def trained(callbacks, model=None):
    x, y = data_for("functional", 8 * STEPS)
    if model is None:
        model = functional(8)
        model.compile(keras.optimizers.Adam(0.01), loss())
    model.fit(x, y, batch_size=8, shuffle=False, verbose=0, callbacks=callbacks)
    return model


def rate(model):
    return float(model.optimizer.learning_rate)


@pytest.mark.core("few_data-0.01")
@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("parents_exist", 0.5),
        ("overtrained_parents_exist", 0.25),
        ("few_data", 0.01),
    ],
)
def test_parents_that_exist_are_fused_exactly_at_a_lower_rate(name, factor):
    live, other = trained([]), trained([])
    (grow,) = getattr(recipes, name)([other], verbose=0)
    model = trained([grow], live)
    assert grow.events[0].step == STEPS + 1 and grow.events[0].function_change < 1e-5
    assert rate(model) == pytest.approx(0.01 * factor)
    assert model.count_params() > 2 * other.count_params()


def test_one_parent_gets_new_features():
    (grow,) = recipes.parent_exists(1.5, after=2, verbose=0)
    model = trained([grow], trained([]))
    assert grow.events[0].step == STEPS + 2 and rate(model) == pytest.approx(0.005)


def test_a_shallow_parent_becomes_deeper():
    (grow,) = recipes.shallow_parent_exists(verbose=0)
    parent = trained([])
    before = parent.count_params()
    model = trained([grow], parent)
    assert grow.events[0].step == STEPS + 1 and rate(model) == pytest.approx(0.005)
    assert before < model.count_params() < 2 * before


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
    public = {
        name
        for name, value in vars(recipes).items()
        if inspect.isfunction(value) and value.__module__ == recipes.__name__
    }
    assert set(recipes.FIGURES) == public
    for figure in recipes.FIGURES.values():
        assert figure.share is None or f"{figure.share:.2f}" in figure.text


def test_a_run_that_goes_on_does_not_begin_anew():
    schedule = AfterSteps(5)
    schedule.reset()
    schedule.check(Moment(10, 0, 0), None)
    asked = [schedule.should_grow(Moment(step, 0, 0)) for step in (12, 14, 15, 16)]
    assert asked == [False, False, True, True]
    resumed = AfterSteps(5)
    resumed.set_state(schedule.get_state())
    resumed.check(Moment(13, 0, 0), None)
    assert resumed.should_grow(Moment(15, 0, 0))
    assert not resumed.should_grow(Moment(16, 0, 1)) and resumed.is_done(1)
    with pytest.raises(FusionError, match="steps"):
        AfterSteps(0)


def test_a_killed_run_grows_where_it_would_have(tmp_path):
    def run(folder, at=None):
        model = trained([])
        grow = GrowModel(HyperCloning(), AfterSteps(3), verbose=0)
        backup = BackupAndRestore(tmp_path / folder, save_freq=1)
        try:
            trained([backup, grow, *([Crash(STEPS + at)] if at else [])], model)
        except Crashed:
            return run(folder)
        return grow.events

    (event,), (again,) = run("whole"), run("killed", 2)
    assert event.step == again.step == STEPS + 3


class Crashed(Exception):
    pass


class Crash(keras.callbacks.Callback):
    """Ends the run behind an optimizer step."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.optimizer.iterations) == self.step:
            raise Crashed
