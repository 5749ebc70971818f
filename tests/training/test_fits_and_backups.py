"""Several calls of `fit` with backups: what is counted, what is refused, what is held."""

import os
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers
from models import numpy

from keras_fusion import BackupAndRestore, DeepFusion, FusionError

pytestmark = [pytest.mark.core, pytest.mark.eager]

X = np.random.default_rng(0).standard_normal((32, 4)).astype("float32")


class Stop(keras.callbacks.Callback):
    """Ends a run at the beginning of an epoch, or of a batch."""

    def __init__(self, epoch=None, step=None):
        super().__init__()
        self.epoch, self.step, self.seen = epoch, step, 0

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KeyboardInterrupt

    def on_train_batch_begin(self, batch, logs=None):
        self.seen += 1
        if self.seen == self.step:
            raise KeyboardInterrupt


def network():
    keras.utils.set_random_seed(0)
    hidden = layers.Dense(8, activation="relu")
    model = keras.Sequential([keras.Input((4,)), hidden, layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.01), "mse")
    return model


def fit(model, *callbacks, epochs=4):
    options = {"batch_size": 8, "shuffle": False, "verbose": 0}
    model.fit(X, X[:, :1], epochs=epochs, callbacks=list(callbacks), **options)


@pytest.mark.filterwarnings("ignore:.*lies past the end of this fit")
@pytest.mark.parametrize("at_epoch", [4, 5])
def test_epochs_of_an_earlier_fit_count_after_a_resume(tmp_path, at_epoch):
    def run(folder, *stop):
        model, grow = network(), DeepFusion(at_epoch=at_epoch, seed=0, verbose=0)
        fit(model, grow, epochs=2)
        fit(model, grow, BackupAndRestore(tmp_path / folder), *stop)
        return model, grow

    whole, grow = run("whole")
    assert [event.epoch for event in grow.events] == [
        at_epoch - 2
    ]  # within the second fit
    with pytest.raises(KeyboardInterrupt):
        run("stopped", Stop(epoch=1))
    # The new process begins the second fit where it was stopped.
    model, grow = network(), DeepFusion(at_epoch=at_epoch, seed=0, verbose=0)
    fit(model, grow, BackupAndRestore(tmp_path / "stopped"))
    assert [event.epoch for event in grow.events] == [
        at_epoch - 2
    ]  # within the second fit
    for a, b in zip(whole.weights, model.weights, strict=True):
        np.testing.assert_allclose(numpy(a), numpy(b), rtol=1e-6, atol=1e-7)


def test_a_model_that_has_grown_since_the_backup(tmp_path):
    model, grow = network(), DeepFusion(at_step=6, verbose=0)
    with pytest.raises(KeyboardInterrupt):
        fit(model, grow, BackupAndRestore(tmp_path / "b"), Stop(step=8))
    for _ in range(2):
        with pytest.raises(FusionError, match="grown since. Build the model anew"):
            fit(model, grow, BackupAndRestore(tmp_path / "b"))
        assert len(grow.events) == 1 and model.layers[0].units == 16
    again = network()
    fit(again, grow, BackupAndRestore(tmp_path / "b"))
    assert again.layers[0].units == 16


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files")
def test_no_files_stay_open(tmp_path):
    model = network()
    fit(model, BackupAndRestore(tmp_path / "b"), epochs=1)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        fit(model, BackupAndRestore(tmp_path / "b"), epochs=1)
    assert len(os.listdir("/proc/self/fd")) <= before
