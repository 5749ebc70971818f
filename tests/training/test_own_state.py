"""What a user's class of models or optimizers keeps beside the network goes on."""

import keras
import numpy as np
import pytest
from keras import layers
from models import numpy

import keras_fusion
from keras_fusion import DeepFusion, FusionError

pytestmark = [pytest.mark.core, pytest.mark.eager]


def points(count=32):
    x = np.random.default_rng(0).standard_normal((count, 4)).astype("float32")
    return x, x[:, :1]


def fit(model, *callbacks, **options):
    x, y = points()
    options = {"batch_size": 8, "epochs": 3, "verbose": 0, "shuffle": False} | options
    return model.fit(x, y, callbacks=list(callbacks), **options)


class Weighted(keras.Model):
    """A functional model with a loss of its own, as in Keras's guides."""

    def __init__(self, *args, alpha=0.1, **kwargs):
        super().__init__(*args, **kwargs)
        self.alpha = alpha
        self.class_weights = None
        self.penalty = None
        self.seen = 0
        self.settings = {"names": ["a"], "depth": 1}
        self.trackers = {"parts": [keras.metrics.Mean(name="distance")]}

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        value = self.alpha * keras.ops.mean(keras.ops.square(y - y_pred))
        self.trackers["parts"][0].update_state(value)
        return value


class Configured(Weighted):
    """The same with a config, and with numbers that it computes from its width."""

    def __init__(self, units=8, alpha=0.1, **kwargs):
        inputs = keras.Input((4,))
        hidden = layers.Dense(units, activation="relu", name="hidden")(inputs)
        super().__init__(inputs, layers.Dense(1)(hidden), alpha=alpha, **kwargs)
        self.units = units
        self.share = 1.0 / units
        self.scales = np.full(units, 0.5)
        self.scaled = lambda: self.units * self.alpha

    def get_config(self):
        return {"units": self.units, "alpha": self.alpha}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def of_a_graph():
    inputs = keras.Input((4,))
    hidden = layers.Dense(8, activation="relu", name="hidden")(inputs)
    return Weighted(inputs, layers.Dense(1)(hidden), alpha=0.9)


def of_a_config():
    keras_fusion.register(Configured, widths=("units",))
    return Configured(alpha=0.9)


@pytest.mark.parametrize("make", [of_a_graph, of_a_config])
def test_attributes_of_a_class_of_models(make):
    model = make()
    model.compile(keras.optimizers.SGD(0.0))
    model.class_weights, model.seen = np.ones(3), 42
    model.penalty = penalty = keras.losses.MeanAbsoluteError()
    model.settings["depth"] = 5
    tracker = model.trackers["parts"][0]
    history = fit(model, DeepFusion(at_epoch=1, verbose=0)).history
    assert model.get_layer("hidden").units == 16
    assert model.alpha == 0.9 and model.seen == 42
    assert model.penalty is penalty and np.array_equal(model.class_weights, np.ones(3))
    assert model.settings == {"names": ["a"], "depth": 5}
    # The metric that counts is the one that is logged.
    assert model.trackers["parts"][0] is tracker
    assert sum(metric is tracker for metric in model.metrics) == 1
    np.testing.assert_allclose(history["distance"], history["loss"], rtol=1e-5)
    np.testing.assert_allclose(history["loss"], history["loss"][0], rtol=1e-5)
    if make is of_a_config:  # The network's, since they come from its width.
        assert (model.units, model.share, len(model.scales)) == (16, 1 / 16, 16)
        model.units = 10
        assert model.scaled() == 9.0


class Damped(keras.optimizers.SGD):
    """An optimizer with options that its config does not tell."""

    def __init__(self, learning_rate=0.1, damp=1.0, **kwargs):
        super().__init__(learning_rate, **kwargs)
        self.damp = damp
        self.notes = []

    def update_step(self, gradient, variable, learning_rate):
        super().update_step(gradient * self.damp, variable, learning_rate)


class Demanding(Damped):
    def __init__(self, damp, **kwargs):
        super().__init__(damp=damp, **kwargs)


def network():
    hidden = layers.Dense(8, activation="relu")
    return keras.Sequential([keras.Input((4,)), hidden, layers.Dense(1)])


def test_attributes_of_a_class_of_optimizers():
    model = network()
    model.compile(Damped(momentum=0.9, damp=0.0), "mse")
    model.optimizer.notes.append("seen")
    before = [numpy(v) for v in model.trainable_variables]
    fit(model, DeepFusion(at_step=2, off_diagonal="zeros", verbose=0))
    assert model.optimizer.damp == 0.0 and model.optimizer.notes == ["seen"]
    assert model.optimizer.momentum == 0.9
    kernel = numpy(model.trainable_variables[0])
    np.testing.assert_array_equal(kernel, np.tile(before[0], 2))  # Nothing was learned.


def test_an_optimizer_without_a_whole_config_is_refused_at_once():
    model, steps = network(), []
    model.compile(Demanding(0.5), "mse")
    count = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda *_: steps.append(1)
    )
    with pytest.raises(
        FusionError, match="Demanding cannot be made from its own config"
    ):
        fit(model, count, DeepFusion(at_step=6, verbose=0))
    assert not steps
    refused = keras_fusion.preview(model, verbose=0).refused
    assert "get_config with all arguments" in refused
    fit(model)


def by_rank():
    """Matrices with Adam, vectors with SGD; the function is all that knows it."""
    own = {2: keras.optimizers.Adam(0.01), 1: keras.optimizers.SGD(0.01)}
    return keras.optimizers.MultiOptimizer(lambda variable: own[len(variable.shape)])


def test_several_optimizers_before_their_first_step():
    model = network()
    model.compile(by_rank(), "mse")
    assert keras_fusion.preview(model, verbose=0).refused is None
    assert not model.optimizer.built
    event = keras_fusion.grow(model, learning_rate_factor=0.5, verbose=0)
    assert event.params_after > event.params_before and model.layers[0].units == 16
    fit(model)
    rates = [float(numpy(one.learning_rate)) for one in model.optimizer.optimizers]
    np.testing.assert_allclose(rates, 0.005, rtol=1e-6)


def test_several_optimizers_resume_after_an_exception(tmp_path):
    """The new process knows its optimizers only once they are built."""

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    def run(folder, *others):
        keras.utils.set_random_seed(0)
        model = network()
        model.compile(by_rank(), "mse")
        back = keras_fusion.BackupAndRestore(tmp_path / folder)
        fit(model, back, DeepFusion(at_step=2, seed=0, verbose=0), *others, epochs=4)
        return [numpy(v) for v in model.weights]

    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("stopped", Stop())
    for a, b in zip(whole, run("stopped"), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def test_a_value_that_not_every_epoch_has():
    model = network()
    model.compile(keras.optimizers.SGD(0.0), "mse")
    flat = keras_fusion.OnPlateau("val_loss", patience=1)
    grow = DeepFusion(schedule=flat, verbose=0)
    fit(model, grow, epochs=6, validation_data=points(8), validation_freq=2)
    assert [event.epoch for event in grow.events] == [4]


def classifier(classes, *metrics):
    hidden, head = layers.Dense(8), layers.Dense(classes, activation="softmax")
    model = keras.Sequential([keras.Input((4,)), hidden, head])
    model.compile("adam", "categorical_crossentropy", metrics=list(metrics))
    return model


def test_metrics_that_count_by_class():
    """They are refused by the first batch, which makes their state."""
    model, steps = classifier(3, keras.metrics.F1Score()), []
    count = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda *_: steps.append(1)
    )
    grow = keras_fusion.GrowModel(
        keras_fusion.ClassGrowth(5), keras_fusion.AtStep(3), verbose=0
    )
    x, y = points()[0], np.eye(3, dtype="float32")[np.arange(32) % 3]
    with pytest.raises(FusionError, match="state for 3 classes"):
        model.fit(x, y, batch_size=8, verbose=0, callbacks=[grow, count])
    assert len(steps) <= 1


def test_a_metric_with_as_many_thresholds_as_there_are_classes():
    model = classifier(200, keras.metrics.AUC())
    x, y = points()[0], np.eye(200, dtype="float32")[:32]
    model.fit(x, y, verbose=0)
    keras_fusion.grow(model, keras_fusion.ClassGrowth(202), verbose=0)
    assert model.layers[-1].units == 202
