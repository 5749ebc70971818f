"""Callbacks that are used again: for another model, or after an error."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_fusion
from keras_fusion import DeepFusion, FusionError, GrowthError, OnPlateau

pytestmark = pytest.mark.core

X = np.random.default_rng(0).standard_normal((32, 4)).astype("float32")


def made(width=8):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(width), layers.Dense(1)])
    model.compile("adam", "mse", jit_compile=False)
    return model


def fit(model, *callbacks, epochs=1, **options):
    options = {"batch_size": 8, "verbose": 0, "shuffle": False} | options
    return model.fit(X, X[:, :1], epochs=epochs, callbacks=list(callbacks), **options)


# Another model.


@pytest.mark.parametrize(
    "options",
    [{"at_step": 2}, {"at_step": [1, 3]}, {"schedule": OnPlateau("loss", min_delta=9)}],
    ids=["a step", "two steps", "a plateau"],
)
def test_the_second_model_grows_like_the_first(options):
    grow = DeepFusion(verbose=0, seed=0, **options)
    seen = []
    for _ in range(2):
        model = made()
        fit(model, grow, epochs=3)
        seen.append((model.count_params(), [event.step for event in grow.events]))
    assert seen[0] == seen[1] and seen[0][0] > made().count_params()


def test_back_to_the_first_model():
    """Each model's growths are its own, and none is repeated."""
    grow, first, second = DeepFusion(at_step=[2, 6], verbose=0), made(), made()
    fit(first, grow, epochs=2)
    (events, sizes) = list(grow.events), first.count_params()
    fit(second, grow, epochs=2)
    assert len(grow.events) == 2 and grow.events != events
    fit(first, grow)
    assert grow.events == events and first.count_params() == sizes


# `fit()` again after an error.


class Failing(DeepFusion):
    """Fails at its first growths, as one without memory would."""

    def __init__(self, failures, **options):
        super().__init__(verbose=0, **options)
        self.failures = failures

    def grow(self):
        if self.failures:
            self.failures -= 1
            raise GrowthError("no memory")
        return super().grow()


@pytest.mark.parametrize("failures", [1, 2])
def test_fit_again_after_a_growth_that_failed(failures):
    model, grow = made(), Failing(failures, at_step=3)
    for _ in range(failures):
        with pytest.raises(GrowthError, match="no memory"):
            fit(model, grow)
    fit(model, grow)
    assert [event.step for event in grow.events] == [3 + failures]


def test_fit_again_after_an_epochs_growth_that_failed():
    model, grow = made(), Failing(1, at_epoch=1)
    with pytest.raises(GrowthError):
        fit(model, grow, epochs=3)
    fit(model, grow, epochs=3, initial_epoch=1)
    assert [event.epoch for event in grow.events] == [2]


class Interrupt(keras.callbacks.Callback):
    def __init__(self, batch):
        super().__init__()
        self.batch = batch

    def on_train_batch_end(self, batch, logs=None):
        if batch == self.batch:
            raise KeyboardInterrupt


def test_fit_again_after_an_interrupt_right_before_the_growth():
    model, grow = made(), DeepFusion(at_step=3, verbose=0)
    with pytest.raises(KeyboardInterrupt):
        fit(model, Interrupt(2), grow)
    fit(model, grow)
    assert [event.step for event in grow.events] == [4]


def test_a_step_that_has_passed_is_refused_all_the_same():
    model, grow = made(), DeepFusion(at_step=3, verbose=0)
    fit(model)
    with pytest.raises(FusionError, match="at_step=3` has passed"):
        fit(model, grow)


# `fit()` again after a resumed run that was interrupted.


class StopAt(keras.callbacks.Callback):
    """Interrupts the run at the begin of an epoch, or of training."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_train_begin(self, logs=None):
        if self.epoch is None:
            raise KeyboardInterrupt

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KeyboardInterrupt


@pytest.mark.parametrize("epoch", [2, 3, None])
def test_plain_fit_after_a_resumed_run_was_interrupted(epoch, tmp_path):
    for stop in 2, epoch:
        model = made()
        backup = keras_fusion.BackupAndRestore(tmp_path / "backup")
        with pytest.raises(KeyboardInterrupt):
            fit(model, backup, StopAt(stop), epochs=5)
    assert fit(model, epochs=3).epoch == [0, 1, 2]


def test_plain_fit_after_a_resumed_run_was_refused(tmp_path):
    def backup():
        return keras_fusion.BackupAndRestore(tmp_path / "backup")

    with pytest.raises(KeyboardInterrupt):
        fit(made(), backup(), DeepFusion(at_step=99), StopAt(2), epochs=50)
    model = made()
    grow = DeepFusion(at_step=99)
    model.critic_optimizer = keras.optimizers.SGD()
    with pytest.raises(FusionError, match="second optimizer"):
        fit(model, backup(), grow, epochs=50)
    assert fit(model, epochs=2).epoch == [0, 1]


# At the very end.


@pytest.mark.parametrize(("at_epoch", "epochs"), [(1, 1), ([1, 2], 2), (3, 3)])
def test_growth_at_the_end_of_training_is_told(at_epoch, epochs):
    model, grow = made(), DeepFusion(at_epoch=at_epoch, verbose=0)
    with pytest.warns(UserWarning, match=f"at_epoch={epochs}` is the end of this fit"):
        fit(model, grow, epochs=epochs)
    assert model.layers[0].units > 8
