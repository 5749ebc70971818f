"""Keras's OrbaxCheckpoint across a growth: saved before it, at it and after it."""

import keras
import numpy as np
import pytest

from keras_fusion import DeepFusion, FusionError

EPOCHS, GROWN_AT = 4, 6  # steps, of which an epoch has four


def made():
    """The small model that the script builds."""
    keras.utils.set_random_seed(7)
    inputs = keras.Input((6,), name="features")
    x = keras.layers.Dense(8, "relu", name="hidden")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1, name="out")(x), name="net")
    model.compile(keras.optimizers.Adam(0.02, name="adam"), "mse")
    return model


def growth(folder):
    """The script's callback."""
    record = folder / "growth.json"
    return DeepFusion(at_step=GROWN_AT, seed=0, verbose=0, record=record)


def run(model, folder, *, epochs=EPOCHS, initial_epoch=0, checkpoints=True):
    """A script's `fit`, which grows the model and saves it."""
    x = np.random.default_rng(0).standard_normal((32, 6)).astype("float32")
    grow = growth(folder)
    callbacks = [grow]
    if checkpoints:
        saved = str(folder / "checkpoints")
        callbacks.append(
            keras.callbacks.OrbaxCheckpoint(saved, save_on_background=False)
        )
    options = {"batch_size": 8, "shuffle": False, "verbose": 0}
    model.fit(
        x,
        x[:, :1],
        epochs=epochs,
        initial_epoch=initial_epoch,
        callbacks=callbacks,
        **options,
    )
    return grow


def state(model):
    values = [*model.variables, *model.optimizer.variables]
    return [keras.ops.convert_to_numpy(v) for v in values]


@pytest.mark.core("at-model", "at-weights")
@pytest.mark.filterwarnings("ignore:`at_step=6` lies past the end")
@pytest.mark.filterwarnings("ignore:Sharding info not provided")
@pytest.mark.parametrize("how", ["model", "weights"])
@pytest.mark.parametrize("done", [1, 2, 3], ids=["before", "at", "after"])
def test_resumed_from_a_checkpoint(done, how, tmp_path):
    (tmp_path / "whole").mkdir()
    whole = made()
    run(whole, tmp_path / "whole", checkpoints=False)
    run(made(), tmp_path, epochs=done)
    folder = str(tmp_path / "checkpoints")
    if how == "model":
        model = keras.saving.load_model(folder)
    else:
        model = made()
        growth(tmp_path).replay(model, growths=folder)
        model.load_weights(folder)
    grow = run(model, tmp_path, initial_epoch=done)
    assert [event.step for event in grow.events] == [GROWN_AT]
    for ours, theirs in zip(state(model), state(whole), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_checkpoint_of_another_model_needs_a_record(tmp_path):
    run(made(), tmp_path, epochs=2)
    (tmp_path / "growth.json").unlink()
    with pytest.raises(FusionError, match="there is no record of a growth"):
        growth(tmp_path).replay(made(), growths=tmp_path / "checkpoints")


def test_a_folder_without_a_checkpoint(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FusionError, match="holds no checkpoint of Keras's OrbaxCheck"):
        growth(tmp_path).replay(made(), growths=tmp_path / "empty")
