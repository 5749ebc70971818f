"""Runs with growths that are resumed from Keras's own backups and checkpoints."""

import json

import keras
import pytest
from resumed_runs import GROWTHS, assert_same, made, run, state, uninterrupted, untimed


@pytest.mark.parametrize(
    ("kind", "order"), [("epochs", "backup first"), ("steps", "backup last")]
)
def test_beside_kerass_backup(kind, order, tmp_path):
    folder = tmp_path / "backup"
    for crash in [(1, 1), (2, 1), None]:
        grow = GROWTHS[kind](verbose=0, record=folder / "growth.json")
        backup = keras.callbacks.BackupAndRestore(folder)
        callbacks = [backup, grow] if order == "backup first" else [grow, backup]
        model = run(*callbacks, crash=crash, dropout=0.0)
    # Without dropout, whose state is not in Keras's files of weights.
    assert_same(model, grow, uninterrupted(kind, dropout=0.0))
    assert not folder.exists()


def test_a_record_ahead_of_the_backup(tmp_path):
    """The growth of step 3 came after the last backup: it is done at its time."""
    path = tmp_path / "growth.json"
    run(GROWTHS["steps"](verbose=0, record=path), crash=(1, 0), dropout=0.0)
    assert len(json.loads(path.read_text())["body"]["changes"]) == 1
    grow = GROWTHS["steps"](verbose=0, record=path)
    model = run(grow, dropout=0.0)
    assert_same(model, grow, uninterrupted("steps", dropout=0.0))


def test_weights_of_a_model_checkpoint(tmp_path):
    path = tmp_path / "growth.json"
    file = str(tmp_path / "{epoch}.weights.h5")
    checkpoint = keras.callbacks.ModelCheckpoint(file, save_weights_only=True)
    grow = GROWTHS["ramps"](verbose=0, record=path)
    run(grow, checkpoint, dropout=0.0)
    for epoch, growths, by_file in (1, 1, True), (2, 1, False), (3, 2, True):
        weights = file.format(epoch=epoch)
        model = made(dropout=0.0)
        grow = GROWTHS["ramps"](verbose=0, record=path)
        grow.replay(model, growths=weights if by_file else growths)
        model.load_weights(weights)
        assert len(grow.events) == growths
        if epoch == 2:  # in the middle of a ramp
            model = run(grow, model=model, initial_epoch=epoch)
            assert_same(model, grow, uninterrupted("ramps", dropout=0.0))


def test_a_whole_model_of_a_model_checkpoint(tmp_path):
    """It has its shape and optimizer; the callback counts its growths as done."""
    path, file = tmp_path / "growth.json", tmp_path / "model.keras"
    checkpoint = keras.callbacks.ModelCheckpoint(str(file))
    callbacks = GROWTHS["ramps"](verbose=0, record=path), checkpoint
    run(*callbacks, crash=(2, 1), dropout=0.0)
    grow = GROWTHS["ramps"](verbose=0, record=path)
    model = keras.models.load_model(file)
    model = run(grow, model=model, initial_epoch=2)
    # A file does not hold the multipliers; the rest is as it was.
    values, events = uninterrupted("ramps", dropout=0.0)
    assert untimed(grow.events)[0] == events[0]
    assert [e.step for e in grow.events] == [e.step for e in events]
    assert [v.shape for v in state(model)] == [v.shape for v in values]


def test_a_tensorflow_checkpoint(tmp_path):
    import tensorflow as tf

    path = tmp_path / "growth.json"

    class Save(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            checkpoint = tf.train.Checkpoint(
                model=self.model, optimizer=self.model.optimizer
            )
            checkpoint.write(str(tmp_path / str(epoch + 1)))

    run(GROWTHS["ramps"](verbose=0, record=path), Save(), dropout=0.0)
    model = made(dropout=0.0)
    grow = GROWTHS["ramps"](verbose=0, record=path)
    grow.replay(model, growths=1)
    checkpoint = tf.train.Checkpoint(model=model, optimizer=model.optimizer)
    checkpoint.read(str(tmp_path / "2")).assert_consumed()
    model = run(grow, model=model, initial_epoch=2)
    assert_same(model, grow, uninterrupted("ramps", dropout=0.0))
