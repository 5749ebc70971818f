"""The learning rate after a growth: factors, re-warm-ups, a fresh bias correction."""

import keras
import numpy as np
import pytest
from keras import layers
from models import data_for, functional, loss, norm_free, numpy, t5, t5_untied
from rates import Rates, mean_of_outputs

import keras_fusion
from keras_fusion import DeepFusion, GrownSchedule, graft
from keras_fusion.training.learning_rate import Ramp

pytestmark = [pytest.mark.core, pytest.mark.eager]


def fit(optimizer, *callbacks, epochs=2):
    model = functional()
    model.compile(optimizer, mean_of_outputs)
    train(model, *callbacks, epochs=epochs)
    return model


def train(model, *callbacks, epochs=2):
    x, y = data_for("functional")
    options = {"batch_size": 8, "shuffle": False, "verbose": 0, "epochs": epochs}
    model.fit(x, y, callbacks=list(callbacks), **options)


def test_a_rate_that_is_a_variable():
    grow = DeepFusion(
        at_step=3, learning_rate_factor=0.5, rewarmup_steps=2, seed=0, verbose=0
    )
    rates = Rates()
    model = fit(keras.optimizers.SGD(0.1), grow, rates)
    expected = [0.1, 0.1, 0.1, 0.025, 0.05, 0.05, 0.05, 0.05]
    np.testing.assert_allclose(rates.values, expected, rtol=1e-3)
    # Outside of an update others see the rate proper: within the ramp it was so, too.
    assert rates.seen == pytest.approx([0.1] * 3 + [0.05] * 5)
    assert float(numpy(model.optimizer.learning_rate)) == pytest.approx(0.05)


def test_weight_decay_follows_the_ramp():
    """It is a part of the update, at the rate of the update."""
    decays = []
    for rate in (0.1, keras.optimizers.schedules.PolynomialDecay(0.1, 1, 0.1)):
        optimizer = keras.optimizers.SGD(rate, weight_decay=0.1)
        grow = DeepFusion(at_step=3, rewarmup_steps=4, seed=0, verbose=0)
        model = fit(optimizer, grow)
        decays.append([numpy(v) for v in model.trainable_variables])
    for a, b in zip(*decays, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("hook", ["on_train_batch_begin", "on_train_batch_end"])
def test_an_interrupted_batch_leaves_the_rate(hook):
    """A fit that has no callback goes on along the ramp."""

    class Stop(keras.callbacks.Callback):
        """Ctrl-C in the second batch of the re-warm-up."""

        seen = 0

        def stop(self, batch, logs=None):
            self.seen += 1
            if self.seen == 5:
                raise KeyboardInterrupt

    setattr(Stop, hook, Stop.stop)
    model = functional()
    model.compile(keras.optimizers.SGD(0.1), mean_of_outputs)
    grow = DeepFusion(at_step=3, rewarmup_steps=8, seed=0, verbose=0)
    with pytest.raises(KeyboardInterrupt):
        train(model, grow, Stop())
    assert float(numpy(model.optimizer.learning_rate)) == pytest.approx(0.1)
    done = 2 if hook.endswith("end") else 1
    train(model, rates := Rates(), epochs=1)
    expected = 0.1 * (np.arange(4) + done + 1) / 8
    np.testing.assert_allclose(rates.values, expected, rtol=1e-3)


def test_a_schedule_goes_on():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)
    model = fit(
        keras.optimizers.SGD(schedule), DeepFusion(at_step=3, seed=0, verbose=0)
    )
    assert float(numpy(model.optimizer.learning_rate)) == pytest.approx(0.1 * 0.5**8)
    # Itself, since nothing was asked of it, and not in a `GrownSchedule`.
    assert graft.schedule_of(model.optimizer) is schedule
    config = model.optimizer.get_config()["learning_rate"]
    assert config["class_name"] == "ExponentialDecay"


@pytest.mark.tensorflow
def test_a_schedule_with_a_factor():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)
    grow = DeepFusion(at_step=3, learning_rate_factor=0.5, seed=0, verbose=0)
    model = fit(keras.optimizers.SGD(schedule), grow)
    rate = float(numpy(model.optimizer.learning_rate))
    assert rate == pytest.approx(0.05 * 0.5**8)
    grown = graft.schedule_of(model.optimizer)
    assert isinstance(grown, GrownSchedule) and grown.schedule is schedule
    assert grown.ramp == Ramp(0.5)  # A ramp that is over needs no start.
    again = type(model.optimizer).from_config(model.optimizer.get_config())
    again.iterations.assign(8)
    assert float(numpy(again.learning_rate)) == pytest.approx(rate)


def test_reset_corrects_the_bias_afresh():
    """The first updates after a reset are those of a brand-new Adam."""
    x, y = data_for("functional")

    def updates(model, *callbacks):
        result = []
        for i in range(4):
            before = [numpy(v) for v in model.trainable_variables]
            part = slice(8 * i, 8 * i + 8)
            options = {"batch_size": 8, "verbose": 0, "callbacks": list(callbacks)}
            model.fit(x[part], y[part], **options)
            after = [numpy(v) for v in model.trainable_variables]
            result.append([b - a for a, b in zip(before, after, strict=True)])
        return result

    optimizer = keras.optimizers.Adam(0.01, beta_2=0.99)
    grow = DeepFusion(at_step=8, optimizer_state="reset", seed=0, verbose=0)
    grown = functional()
    grown.compile(optimizer, loss())
    train(grown, grow)
    fresh = keras.models.clone_model(grown)
    fresh.set_weights(grown.get_weights())
    fresh.compile(keras.optimizers.Adam(0.01, beta_2=0.99), loss())
    for a, b in zip(updates(grown, grow), updates(fresh), strict=True):
        for p, q in zip(a, b, strict=True):
            np.testing.assert_allclose(p, q, rtol=0.02, atol=2e-4)
    assert int(numpy(optimizer.iterations)) == 12


@pytest.mark.tensorflow
def test_correction_is_needed():
    """Without it the first updates would be several times too large."""
    ramp = Ramp(start=10000, betas=(0.9, 0.999))
    factors = [float(ramp(10000 + i)) for i in range(40)]
    assert 1 / min(factors) == pytest.approx(6.6, abs=0.1)
    assert float(ramp(20000)) == 1.0


@pytest.mark.parametrize("betas", [None, (0.9, 0.99), (0.0, 0.99)])
def test_a_ramp_ends_where_it_is_over(betas):
    """Before the growth, as after it has ended, the rate is that of the ramp's end."""
    ramp = Ramp(0.5, rewarmup_steps=4, start=10, betas=betas)
    (last,) = (i for i in range(1000) if ramp.is_over(i + 1) and not ramp.is_over(i))
    for step in (0, 9, last + 1, 10000):
        assert float(numpy(ramp(step))) == 0.5
    assert float(numpy(ramp(last))) == pytest.approx(0.5, rel=0.011)
    tensor = keras.ops.convert_to_tensor(12)
    assert float(numpy(ramp(tensor))) == float(numpy(ramp(12)))
    if betas is None:
        factors = [float(numpy(ramp(i))) for i in range(10, 15)]
        assert factors == [0.125, 0.25, 0.375, 0.5, 0.5]


@pytest.mark.parametrize(
    ("make", "every"),
    [
        (lambda sgd: keras.optimizers.LossScaleOptimizer(sgd(0.1)), 1),
        (lambda sgd: sgd(0.1, gradient_accumulation_steps=2), 2),
    ],
)
def test_ramps_of_optimizers_in_wrappers_and_over_batches(make, every):
    grow = DeepFusion(at_step=1, rewarmup_steps=2, seed=0, verbose=0)
    fit(make(keras.optimizers.SGD), grow, rates := Rates(), epochs=3)
    steps = np.reshape(rates.values, (-1, every))
    assert np.abs(steps[:, :-1]).max(initial=0.0) < 1e-6
    np.testing.assert_allclose(steps[:4, -1], [0.1, 0.05, 0.1, 0.1], rtol=1e-3)


@pytest.mark.parametrize("multipliers", [None, "width"])
def test_ramps_of_an_optimizer_with_an_update_of_its_own(multipliers):
    """Its constructor puts an `apply` in place, and its update reads the rate itself."""

    class Own(keras.optimizers.SGD):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.apply = super().apply

        def update_step(self, gradient, variable, learning_rate):
            super().update_step(gradient, variable, self.learning_rate)

    Own.__name__ = "SGD"  # whose multipliers are known
    options = {"rewarmup_steps": 2, "learning_rate_multipliers": multipliers}
    grow = DeepFusion(at_step=[2, 4], seed=0, verbose=0, **options)
    fit(Own(0.1), grow, rates := Rates())
    expected = [0.1, 0.1, 0.05, 0.1, 0.05, 0.1, 0.1, 0.1]
    np.testing.assert_allclose(rates.values, expected, rtol=1e-3)


def test_a_state_of_another_run_has_no_ramp():
    """Weights that are loaded without a count of steps, and a count that begins anew."""
    grow = DeepFusion(at_step=3, rewarmup_steps=9, seed=0, verbose=0)
    model = fit(keras.optimizers.SGD(0.1), grow, epochs=1)
    model.optimizer.iterations.assign(0)
    train(model, rates := Rates(), epochs=1)
    np.testing.assert_allclose(rates.values[:3], 0.1, rtol=1e-3)


@pytest.mark.tensorflow
def test_a_factor_that_cannot_be_measured():
    """The model has grown by then, and trains on at its old rate."""

    def measure(model, blocks, optimizer):
        raise ZeroDivisionError("float division by zero")

    grow = DeepFusion(at_step=3, learning_rate_factor=measure, verbose=0)
    with pytest.warns(UserWarning, match="measure.*could not measure.*by zero"):
        model = fit(keras.optimizers.SGD(0.1), grow)
    assert len(grow.events) == 1
    assert float(numpy(model.optimizer.learning_rate)) == pytest.approx(0.1)


@pytest.mark.tensorflow
def test_a_callback_that_undoes_the_factor_is_named():
    scheduler = keras.callbacks.LearningRateScheduler(lambda epoch: 0.1)
    grow = DeepFusion(at_step=3, learning_rate_factor=0.5, seed=0, verbose=0)
    with pytest.warns(
        UserWarning, match="LearningRateScheduler sets the learning rate"
    ):
        fit(keras.optimizers.SGD(0.1), grow, scheduler)


def test_a_ramp_belongs_to_the_optimizer():
    """Another optimizer of the same model has none."""
    grow = DeepFusion(at_step=3, rewarmup_steps=9, seed=0, verbose=0)
    model = fit(keras.optimizers.SGD(0.1), grow, epochs=1)
    rates, again = Rates(), keras.optimizers.SGD(0.1)
    first = model.optimizer
    for optimizer, expected in ((again, 0.1), (first, 0.1 * 2 / 9)):
        model.compile(optimizer, mean_of_outputs)
        x, y = data_for("functional", 8)
        model.fit(x, y, batch_size=8, verbose=0, callbacks=[grow, rates])
        assert rates.values[-1] == pytest.approx(expected, rel=1e-3)


def test_grown_schedules_serialize():
    inner = keras.optimizers.schedules.CosineDecay(0.1, 100)
    schedule = GrownSchedule(inner, Ramp(0.5, 10, 20, (0.9, 0.99)))
    config = keras.saving.serialize_keras_object(schedule)
    again = keras.saving.deserialize_keras_object(config)
    for step in (20, 25, 90):
        assert float(again(step)) == pytest.approx(float(schedule(step)))


def test_ramps_of_two_growths_multiply():
    options = {"rewarmup_steps": 4, "seed": 0, "verbose": 0}
    rates = Rates()
    grow = DeepFusion(at_step=[2, 4], **options)
    fit(keras.optimizers.SGD(0.8), grow, rates)
    expected = [0.8, 0.8, 0.2, 0.4, 0.15, 0.4, 0.6, 0.8]
    np.testing.assert_allclose(rates.values, expected, rtol=1e-3)
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([100], [0.8, 0.4])
    optimizer = keras.optimizers.SGD(schedule)
    model = fit(optimizer, DeepFusion(at_step=[2, 4], **options), rates := Rates())
    np.testing.assert_allclose(rates.values, expected, rtol=1e-3)
    assert model.optimizer.get_config()["learning_rate"]["class_name"] == (
        "PiecewiseConstantDecay"
    )


def speed(model, x, y, rate):
    """How much of the loss one step takes away, in units of the rate."""
    model.optimizer.learning_rate = rate
    first = np.ravel(model.test_on_batch(x, y))[0]
    model.train_on_batch(x, y)
    return (first - np.ravel(model.test_on_batch(x, y))[0]) / rate


RATES = {"SGD": 1e-3, "Adam": 1e-4, "Adafactor": 1e-3}
SMALL = [("SGD", norm_free), ("Adam", functional), ("Adafactor", functional)]


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    ("optimizer", "kind"), [*SMALL, ("Adafactor", t5), ("Adam", t5_untied)]
)
def test_multipliers_keep_the_speed_of_learning(optimizer, kind):
    """On one batch, right before a self-fusion and right after it."""
    x, y = data_for(kind.__name__.removesuffix("_untied"), 64)
    y = y % 5

    def trained(*callbacks):
        model = kind(16)
        own = getattr(keras.optimizers, optimizer)(0.01)
        # Compiling would take several times as long as these few steps.
        model.compile(own, loss(), run_eagerly=True)
        options = {"batch_size": 64, "verbose": 0}
        model.fit(x, y, epochs=5, **options)
        model.optimizer.learning_rate = 0.0
        model.fit(x, y, callbacks=list(callbacks), **options)
        return speed(model, x, y, RATES[optimizer])

    def grow(multipliers):
        return DeepFusion(
            at_step=6,
            off_diagonal="zeros",
            learning_rate_multipliers=multipliers,
            verbose=0,
        )

    before = trained()
    assert 0.9 < trained(grow("width")) / before < 1.1
    if optimizer != "Adafactor":
        assert abs(trained(grow(None)) / before - 1) > 0.05


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    ("optimizer", "rate", "expected"),
    [("SGD", 1e-3, (1 / 2, 1, 2)), ("Adam", 1e-4, (1, 2, 2))],
)
def test_without_multipliers_the_groups_have_these_speeds(optimizer, rate, expected):
    """After a self-fusion by 2 over before: input, hidden kernel, readout alone."""
    x, y = data_for("norm_free", 64)
    y = y % 5

    def trained(*callbacks):
        model = norm_free(16)
        model.compile(getattr(keras.optimizers, optimizer)(0.01), loss())
        options = {"batch_size": 64, "verbose": 0}
        model.fit(x, y, epochs=5, **options)
        model.optimizer.learning_rate = 0.0
        model.fit(x, y, callbacks=list(callbacks), **options)
        model.optimizer.learning_rate = rate
        return group_speeds(model)

    def group_speeds(model):
        kernels = [v for v in model.trainable_variables if v.name != "bias"]
        groups = [kernels[:1], kernels[1:-1], kernels[-1:]]
        before = [numpy(v).copy() for v in model.trainable_variables]
        first = np.ravel(model.test_on_batch(x, y))[0]
        model.train_on_batch(x, y)
        if hasattr(model, "jax_state_sync"):
            model.jax_state_sync()
        after = [numpy(v).copy() for v in model.trainable_variables]
        drops = []
        for group in groups:
            own = {id(v) for v in group}
            rows = zip(model.trainable_variables, before, after, strict=True)
            for variable, old, new in rows:
                variable.assign(new if id(variable) in own else old)
            drops.append(first - np.ravel(model.test_on_batch(x, y))[0])
        return np.array(drops)

    grow = DeepFusion(at_step=6, off_diagonal="zeros", verbose=0)
    np.testing.assert_allclose(trained(grow) / trained(), expected, rtol=0.1)


@pytest.mark.tensorflow
def test_multipliers_go_on_over_growths_and_are_checked():
    x, y = data_for("functional")
    grow = DeepFusion(
        at_step=[1, 2],
        optimizer_state="reset",
        learning_rate_multipliers="width",
        seed=0,
        verbose=0,
    )
    inputs = keras.Input((6,), dtype="int32")
    h = layers.Embedding(20, 8)(inputs)
    h = layers.Dense(16, activation="gelu", name="up")(h)
    model = keras.Model(inputs, layers.Dense(20)(h))
    model.compile(keras.optimizers.Adam(0.01), loss())
    steps = []

    class Moves(keras.callbacks.Callback):
        """How far a hidden kernel and the embedding move: Adam's first steps."""

        def on_train_batch_begin(self, batch, logs=None):
            self.before = [numpy(v).copy() for v in self.watched()]

        def on_train_batch_end(self, batch, logs=None):
            moved = zip(self.watched(), self.before, strict=True)
            steps.append([np.abs(numpy(v) - b).max() for v, b in moved])

        def watched(self):
            if hasattr(self.model, "jax_state_sync"):
                self.model.jax_state_sync()
            return [model.layers[1].embeddings, model.get_layer("up").kernel]

    model.fit(x, y, batch_size=8, verbose=0, callbacks=[Moves(), grow])
    ratios = [hidden / embedding for embedding, hidden in steps[:3]]
    ratios = np.divide(ratios, ratios[0])
    np.testing.assert_allclose(ratios, [1, 1 / 2, 1 / 4], rtol=0.2)
    with pytest.raises(keras_fusion.FusionError, match="multipliers='muP'"):
        DeepFusion(at_step=1, learning_rate_multipliers="muP")
    model = functional()
    model.compile(keras.optimizers.Ftrl(0.01), loss())
    grow = DeepFusion(at_step=1, learning_rate_multipliers="width", verbose=0)
    with pytest.raises(keras_fusion.FusionError, match="Received: Ftrl"):
        model.fit(x, y, verbose=0, callbacks=[grow])
