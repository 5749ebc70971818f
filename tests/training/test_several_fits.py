"""One callback in several calls of `fit`, and what else keeps a model across a growth."""

import warnings

import keras
import numpy as np
import pytest
from fitting import fit, live_model
from models import data_for, outputs, values

import keras_fusion
from keras_fusion import AtEpoch, AtStep, DeepFusion, FusionError, OnPlateau

pytestmark = [pytest.mark.core, pytest.mark.eager]
STEPS = 4  # of an epoch


def in_turn(grow, fits=4, **options):
    """Trains in a loop of one epoch each."""
    model = live_model()
    for _ in range(fits):
        fit(model, grow, epochs=1, **options)
    return model


@pytest.mark.core("when1")
@pytest.mark.parametrize(
    "when",
    [{"at_step": 10}, {"at_epoch": 3}, {"at_step": [2, 10]}, {"at_epoch": [1, 3]}],
)
def test_a_loop_of_fits_grows_as_one_fit_does(when):
    once, several = DeepFusion(**when, verbose=0), DeepFusion(**when, verbose=0)
    keras.utils.set_random_seed(3)
    whole = live_model()
    fit(whole, once, epochs=4)
    keras.utils.set_random_seed(3)
    with pytest.warns(
        UserWarning, match="past the end of this fit.., which stops"
    ) as told:
        model = in_turn(several)
    assert sum("past the end" in str(w.message) for w in told) == 1
    assert [e.step for e in several.events] == [e.step for e in once.events]
    assert [v.shape for v in model.weights] == [v.shape for v in whole.weights]
    for ours, theirs in zip(values(model), values(whole), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_fit_that_goes_on_at_an_epoch_counts_from_there():
    grow, model = DeepFusion(at_epoch=3, verbose=0), live_model()
    with pytest.warns(UserWarning, match="at_epoch=3"):
        fit(model, grow, epochs=2)
    fit(model, grow, epochs=4, initial_epoch=2)
    assert [event.step for event in grow.events] == [3 * STEPS]


@pytest.mark.compiled
def test_a_growth_that_is_reached_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        in_turn(DeepFusion(at_step=3, verbose=0), fits=2)


def test_a_callback_for_each_fit_is_told_to_be_one():
    model = live_model()
    fit(model, DeepFusion(at_step=3, verbose=0), epochs=1)
    with pytest.raises(
        FusionError, match="has passed.*make the callback once and pass"
    ):
        fit(model, DeepFusion(at_step=3, verbose=0), epochs=1)


def test_a_plateau_is_seen_across_fits():
    flat = OnPlateau("loss", patience=2, min_delta=1e9)
    grow = DeepFusion(schedule=flat, verbose=0)
    model = in_turn(grow)
    assert [event.step for event in grow.events] == [3 * STEPS]
    assert model.layers[1].output_dim == 16


@pytest.mark.parametrize("schedule", [AtStep(3), AtEpoch(2)])
def test_another_model_begins_anew(schedule):
    grow = DeepFusion(schedule=schedule, verbose=0)
    fit(live_model(), grow, epochs=3)
    again = DeepFusion(schedule=schedule, verbose=0)
    model = live_model()
    fit(model, again, epochs=3)
    assert [e.step for e in again.events] == [e.step for e in grow.events]


# What keeps a model, across a growth.


def test_a_best_only_checkpoint_loads_by_itself(tmp_path):
    """Whether the best was before the growth or after it."""
    model, (x, _) = live_model(), data_for("functional")
    grow = DeepFusion(at_epoch=1, learning_rate_factor=1e-9, verbose=0)

    class Outputs(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append(outputs(self.model, x))

    for monitor, best in (("loss", -1), ("loss", 0)):
        seen, path = [], tmp_path / f"{best}.keras"
        mode = "min" if best else "max"
        checkpoint = keras.callbacks.ModelCheckpoint(
            path, monitor=monitor, mode=mode, save_best_only=True
        )
        model = live_model()
        grow = DeepFusion(at_epoch=1, verbose=0)
        # Before the callback that grows, so that the epoch's own model is saved.
        fit(model, checkpoint, Outputs(), grow, epochs=3)
        loaded = keras.models.load_model(path)
        assert loaded.layers[1].output_dim == (16 if best else 8)
        np.testing.assert_allclose(outputs(loaded, x), seen[best], atol=1e-5)


def test_early_stopping_restores_the_small_models_best_in_the_bigger_one():
    model, (x, _) = live_model(), data_for("functional")
    stop = keras.callbacks.EarlyStopping(
        "loss", mode="max", patience=2, restore_best_weights=True
    )
    expected = []

    class Outputs(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            expected.append(outputs(self.model, x))

    grow = DeepFusion(at_epoch=1, verbose=0)
    fit(model, Outputs(), stop, grow, epochs=5)
    assert model.layers[1].output_dim == 16 and len(expected) == 3
    np.testing.assert_allclose(outputs(model, x), expected[0], atol=1e-5)


@pytest.mark.compiled
def test_a_backup_of_keras_is_warned_of(tmp_path):
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    with pytest.warns(
        UserWarning, match="Use keras_fusion.BackupAndRestore, or give the"
    ):
        fit(live_model(), DeepFusion(at_step=3, verbose=0), backup)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        recorded = DeepFusion(
            at_step=3, record=tmp_path / "backup" / "growth.json", verbose=0
        )
        fit(live_model(), recorded, backup)
        ours = keras_fusion.BackupAndRestore(tmp_path / "ours")
        fit(live_model(), DeepFusion(at_step=3, verbose=0), ours)
