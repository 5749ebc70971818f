"""What is measured around a growth inside fit, and what it is used for."""

import keras
import numpy as np
import pytest
from keras import layers
from models import data_for, functional, loss, norm_free, numpy, t5

import keras_fusion
from keras_fusion import DeepFusion, FusionError
from keras_fusion.dynamics import BracketRate, DynamicsMonitor, rate_factor

pytestmark = pytest.mark.skipif(
    keras.config.backend() == "torch",
    reason="second derivatives are for TensorFlow and JAX",
)
OPTIONS = {"batch_size": 8, "verbose": 0, "shuffle": False}


def monitored(kind, epochs=2, callbacks=(), monitor=None, **growth):
    model = kind()
    x, y = data_for(kind.__name__)
    y = y % 5  # as many classes as the smallest readout has
    model.compile(keras.optimizers.Adam(0.01), loss(), metrics=[])
    grow = DeepFusion(at_step=4, seed=0, verbose=0, **growth)
    watch = DynamicsMonitor(grow, x, y, **(monitor or {"every": 2}))
    history = model.fit(
        x, y, epochs=epochs, callbacks=[watch, grow, *callbacks], **OPTIONS
    )
    return model, watch, grow, history


@pytest.mark.core("functional")
@pytest.mark.parametrize("kind", [functional, t5])
def test_records_around_a_growth(kind):
    _, watch, grow, history = monitored(kind, noise_scale=0.1)
    steps = [(r.step, r.growths) for r in watch.records]
    # Step 4: as asked, right before the growth, and right after it.
    assert steps == [(2, 0), (4, 0), (4, 0), (4, 1), (6, 1), (8, 1)]
    before, after = watch.records[2:4]
    assert before.parameters == grow.events[0].params_before
    assert after.parameters == grow.events[0].params_after
    assert after.loss == pytest.approx(before.loss, rel=1e-4)
    assert np.isnan(before.bracket_norm) and np.isnan(before.activation_jump)
    assert after.bracket_norm > 0 and 0 < after.block_share < 1
    assert after.activation_jump >= 1
    # Copies part: right after the growth only the little paired noise tells them apart.
    assert after.block_alignment > 0.5
    assert 0 < after.asymmetry < 0.3
    assert watch.records[-1].asymmetry != after.asymmetry
    last = history.history["dynamics_bracket_norm"]
    assert last == [after.bracket_norm, watch.records[-1].bracket_norm]
    assert history.history["dynamics_loss"][-1] == watch.records[-1].loss


def test_exact_copies_are_symmetric():
    _, watch, _, _ = monitored(functional, off_diagonal="zeros")
    for record in watch.records[3:]:
        assert record.asymmetry == pytest.approx(0, abs=1e-5)
        assert record.block_alignment == pytest.approx(1, abs=1e-5)
    # In a width-independent architecture nothing jumps but a block's own share.
    assert watch.records[3].activation_jump == pytest.approx(1, abs=1e-4)


def test_parents_of_unequal_widths_have_no_symmetry():
    partner = norm_free(12, seed=1)
    model, watch, _, _ = monitored(
        norm_free, partners=[partner], optimizer_state="reset"
    )
    after = watch.records[3]
    assert np.isnan(after.asymmetry) and np.isnan(after.block_alignment)
    assert after.bracket_norm > 0


def test_the_monitor_changes_nothing():
    plain = functional()
    x, y = data_for("functional")
    y = y % 5
    plain.compile(keras.optimizers.Adam(0.01), loss())
    grow = DeepFusion(at_step=4, seed=0, verbose=0)
    plain.fit(x, y, epochs=2, callbacks=[grow], **OPTIONS)
    watched, *_ = monitored(functional)
    for a, b in zip(plain.get_weights(), watched.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_pictures_and_tensorboard(tmp_path):
    monitor = {"at_steps": [1, 5], "log_dir": str(tmp_path / "logs")}
    board = keras.callbacks.TensorBoard(str(tmp_path / "board"))
    _, watch, _, _ = monitored(functional, callbacks=[board], monitor=monitor)
    assert [r.step for r in watch.records] == [1, 4, 4, 5]
    from tensorboard.backend.event_processing import event_accumulator

    events = event_accumulator.EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    assert "dynamics/bracket_norm" in events.Tags()["tensors"]
    found = [event.step for event in events.Tensors("dynamics/loss")]
    assert found == [1, 4, 4, 5]
    path = tmp_path / "dynamics.png"
    figure = keras_fusion.plot_dynamics(watch.records, path=str(path))
    assert path.stat().st_size > 0
    assert [len(axes.lines) for axes in figure.axes] == [2, 3, 2, 4]
    with pytest.raises(ValueError, match="nothing yet"):
        keras_fusion.plot_dynamics([])


def speed(model, x, y, rate):
    """How much of the loss one step takes away, in units of the rate."""
    first = np.ravel(model.test_on_batch(x, y))[0]
    model.train_on_batch(x, y)
    return (first - np.ravel(model.test_on_batch(x, y))[0]) / rate


# For Adam it is an estimate from the gradients, not from its moments.
@pytest.mark.parametrize(
    ("optimizer", "rate", "margin"), [("SGD", 1e-3, 0.1), ("Adam", 1e-4, 0.2)]
)
@pytest.mark.parametrize("kind", [norm_free, functional])
def test_the_rate_keeps_the_speed_of_descent(kind, optimizer, rate, margin):
    """On one batch, as its fields say, where the bracket has no time to act."""
    x, y = data_for(kind.__name__, 64)
    y = y % 5

    def trained(*callbacks):
        model = kind(16)
        own = getattr(keras.optimizers, optimizer)(0.01)
        # Compiling would take several times as long as these few steps.
        model.compile(own, loss(), run_eagerly=True)
        options = {"batch_size": 64, "verbose": 0}
        model.fit(x, y, epochs=5, **options)
        model.optimizer.learning_rate = 1e-9
        model.fit(x, y, callbacks=list(callbacks), **options)
        return model

    before = trained()
    before.optimizer.learning_rate = rate
    before = speed(before, x, y, rate)
    grow = DeepFusion(
        at_step=6,
        off_diagonal="zeros",
        learning_rate_factor=BracketRate(x, y),
        verbose=0,
    )
    model = trained(grow)
    factor = float(numpy(model.optimizer.learning_rate)) / 1e-9
    model.optimizer.learning_rate = factor * rate
    assert speed(model, x, y, rate) / before == pytest.approx(1, abs=margin)
    with pytest.raises(FusionError, match="no config"):
        grow.get_config()


def test_the_bracket_lowers_the_rate_where_it_hastens():
    model, watch, grow, _ = monitored(functional)
    x, y = data_for("functional")
    field = keras_fusion.dynamics.Bracket(model, grow.blocks.speeds())(x, y)
    still = rate_factor(field, 0.0)
    assert still == pytest.approx(field.small_descent / field.big_descent)
    hastens = sum(
        np.vdot(b, u) for b, u in zip(field.bracket, field.of_small, strict=True)
    )
    # Shorter than the memory, so that only the bracket makes the difference.
    time = 0.5 / field.small_curvature if field.small_curvature > 0 else 0.5
    assert (rate_factor(field, time) < still) == (hastens > 0)


@pytest.mark.core
def test_errors():
    x, y = data_for("functional")
    grow = DeepFusion(at_step=4)
    with pytest.raises(FusionError, match="growth=None"):
        DynamicsMonitor(None, x, y)
    with pytest.raises(FusionError, match="every=0"):
        DynamicsMonitor(grow, x, y, every=0)
    with pytest.raises(FusionError, match="smallest=3"):
        BracketRate(x, y, smallest=3)
    model = functional()
    model.compile(keras.optimizers.Lamb(0.01), loss())
    grow = DeepFusion(at_step=1, learning_rate_factor=BracketRate(x, y), verbose=0)
    with pytest.raises(FusionError, match="Received: Lamb"):
        model.fit(x, y, callbacks=[grow], **OPTIONS)
    assert model.layers[1].output_dim == 8


def test_a_factor_that_cannot_be_measured_leaves_the_rate():
    def failing(model, blocks, optimizer):
        raise RuntimeError("out of memory")

    with pytest.warns(UserWarning, match="out of memory.*stays as it is"):
        model, _, grow, _ = monitored(functional, learning_rate_factor=failing)
    assert len(grow.events) == 1
    assert float(numpy(model.optimizer.learning_rate)) == pytest.approx(0.01)


@pytest.mark.core
def test_a_model_without_growth_is_measured():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(4), layers.Dense(1)])
    model.compile("sgd", "mse")
    x = np.random.default_rng(0).standard_normal((16, 3))
    grow = DeepFusion(at_step=100, verbose=0)
    watch = DynamicsMonitor(grow, x, x[:, :1], every=1)
    watch.set_model(model)
    watch.on_train_begin()
    record = watch.measure()
    assert record.growths == 0 and record.gradient_norm > 0
    rate = float(numpy(model.optimizer.learning_rate))
    square = record.gradient_norm**2
    assert record.implicit_regularization == pytest.approx(rate / 4 * square)
