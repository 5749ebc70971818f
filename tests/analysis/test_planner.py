"""When to grow: curves, proposals, and the schedule that decides by itself."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import data_for, functional, loss

from keras_fusion import DeepFusion, FusionError, Moment
from keras_fusion.dynamics import LossCurve, WhenItPays, propose

curves = st.builds(
    LossCurve,
    floor=st.floats(0.5, 4.0),
    scale=st.floats(1.0, 100.0),
    exponent=st.floats(0.1, 1.0),
)


@given(curve=curves)
@settings(deadline=None)
def test_a_fit_finds_the_curve(curve):
    steps = np.geomspace(20, 4000, 15)
    found = LossCurve.fit(steps, [curve(n) for n in steps])
    for n in (30, 300, 3000):
        spread = curve(20) - curve(4000)
        assert found(n) == pytest.approx(curve(n), abs=0.01 * spread)


@given(curve=curves, steps=st.floats(10, 1e5))
@settings(deadline=None)
def test_a_curve_is_consistent(curve, steps):
    assert curve.steps_to(curve(steps)) == pytest.approx(steps, rel=1e-6)
    slope = (curve(steps * 0.9999) - curve(steps * 1.0001)) / (0.0002 * steps)
    assert curve.gain(steps) == pytest.approx(slope, rel=1e-3)
    assert curve.bigger(4.0)(steps) < curve(steps)


@given(small=curves, ratio=st.floats(1.5, 8.0), budget=st.floats(1e3, 1e5))
@settings(deadline=None)
def test_the_proposal_is_where_the_gains_cross(small, ratio, budget):
    big = small.bigger(ratio**2)
    found = propose(budget, small=small, big=big, small_cost=1.0, big_cost=ratio)
    assert found.loss == min(found.losses.values())
    assert found.loss <= found.losses[0]
    step = found.step
    inside = sorted(found.losses)[1] < step < sorted(found.losses)[-2]
    if inside:
        ours, theirs = small.gain(step), big.gain(big.steps_to(small(step))) / ratio
        # To the grain of the moments that are compared.
        assert ours == pytest.approx(theirs, rel=0.5)
    assert str(step) in found.reason or "from the start" in found.reason


def test_a_costly_big_model_waits_and_a_cheap_one_does_not():
    small, big = LossCurve(3.0, 30.0, 0.5), LossCurve(2.0, 30.0, 0.5)
    steps = [
        propose(1e5, small=small, big=big, small_cost=1.0, big_cost=cost).step
        for cost in (1.0, 2.0, 4.0, 8.0)
    ]
    assert steps == sorted(steps) and steps[0] == 0 and steps[-1] > 0
    # Parents count: two of them make the small phase cost twice as much.
    costs = {"small": small, "big": big, "small_cost": 1.0, "big_cost": 8.0}
    assert propose(1e5, parents=2, **costs).step < steps[-1]


def test_the_schedule_grows_at_the_crossing():
    small, big = LossCurve(3.0, 30.0, 0.5), LossCurve(2.0, 30.0, 0.5)
    expected = propose(1e5, small=small, big=big, small_cost=1.0, big_cost=4.0).step
    for schedule in (
        WhenItPays(4.0, big=big),
        WhenItPays(4.0, parameters_ratio=(3 / 2) ** (1 / 0.077)),
    ):
        again = WhenItPays.from_config(schedule.get_config())
        for candidate in (schedule, again):
            grown = next(
                step
                for step in range(50, 100_000, 50)
                if candidate.should_grow(
                    Moment(step, step // 50, 0, {"val_loss": small(step)})
                )
            )
            assert grown == pytest.approx(expected, abs=300)


@pytest.mark.core
def test_the_schedule_inside_fit():
    model = functional()
    x, y = data_for("functional", 32)
    model.compile(keras.optimizers.Adam(0.003), loss())
    # A bigger model that is expected to learn at once, once there are three epochs.
    schedule = WhenItPays(
        1.1, big=LossCurve(0.0, 9.0, 1.5), monitor="loss", min_epochs=3
    )
    grow = DeepFusion(schedule=schedule, verbose=0)
    model.fit(x, y, batch_size=8, epochs=8, verbose=0, callbacks=[grow])
    assert grow.events[0].epoch == 3
    assert model.layers[1].output_dim == 16
    config = keras.saving.serialize_keras_object(schedule)
    assert keras.saving.deserialize_keras_object(config).big == schedule.big


@pytest.mark.parametrize(
    "losses", [[1.0, 1.1, 1.2], [1.0] * 4, [1.0, float("nan")] * 4]
)
def test_losses_that_do_not_fall_are_no_reason_to_grow(losses):
    schedule = WhenItPays(3.0, parameters_ratio=3.0, monitor="loss", min_epochs=3)
    for epoch, value in enumerate(losses, start=1):
        moment = Moment(10 * epoch, epoch, 0, {"loss": value})
        assert not schedule.should_grow(moment)


def test_errors():
    with pytest.raises(FusionError, match="three different `steps`"):
        LossCurve.fit([1, 2], [3.0, 2.0])
    with pytest.raises(FusionError, match="must be finite and fall"):
        LossCurve.fit([1, 2, 3], [1.0, 2.0, 3.0])
    curve = LossCurve(1.0, 1.0, 0.5)
    with pytest.raises(FusionError, match="budget=0"):
        propose(0, small=curve, big=curve, small_cost=1, big_cost=2)
    with pytest.raises(FusionError, match="parameters_ratio=None"):
        propose(1, small=curve, small_cost=1, big_cost=2)
    with pytest.raises(FusionError, match="cost_ratio=0"):
        WhenItPays(0, 2.0)
    with pytest.raises(FusionError, match="min_epochs=2"):
        WhenItPays(2, 2.0, min_epochs=2)
    schedule = WhenItPays(2, 2.0)
    with pytest.raises(FusionError, match=r"val_loss.*\['loss'\]"):
        schedule.should_grow(Moment(1, 1, 0, {"loss": 1.0}))
