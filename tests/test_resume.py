"""Runs with growths that are taken up again in a new process end as if uninterrupted."""

import dataclasses
import json
import re

import keras
import numpy as np
import pytest

import keras_fusion
from keras_fusion import AnnealBlockNorms, AtEpoch, AtStep, DeepFusion, FusionError
from keras_fusion.files import whole_folder

EPOCHS, STEPS = 4, 4  # of eight examples each


class Crash(Exception):
    """What stands for the process's end."""


class CrashAt(keras.callbacks.Callback):
    """Ends the run at a moment: `(epoch, batch)`, or `(epoch, None)` at its end."""

    def __init__(self, moment):
        super().__init__()
        self.moment = moment

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.moment:
            raise Crash

    def on_epoch_end(self, epoch, logs=None):
        if (epoch, None) == self.moment:
            raise Crash


def net(norm=None):
    layers = keras.layers
    stack = [keras.Input((6,)), layers.Dense(8, "relu"), layers.Dropout(0.2)]
    stack += [norm()] if norm else []
    return keras.Sequential([*stack, layers.Dense(8, "relu"), layers.Dense(1)])


def optimizer(schedule=False):
    rate = keras.optimizers.schedules.CosineDecay(0.02, 20) if schedule else 0.02
    return keras.optimizers.Adam(rate)


def data():
    x = np.random.default_rng(1).standard_normal((8 * STEPS, 6)).astype("float32")
    return x, x[:, :1] * x[:, 1:2]


def run(*callbacks, crash=None, schedule=False, norm=None, model=None, epochs=EPOCHS):
    """A script from its start: the small model is built, and trained with callbacks."""
    if model is None:
        keras.utils.set_random_seed(7)
        model = net(norm)
        model.compile(optimizer(schedule), "mse")
    x, y = data()
    callbacks = [*callbacks, *([CrashAt(crash)] if crash else [])]
    options = {"batch_size": 8, "epochs": epochs, "shuffle": False, "verbose": 0}
    try:
        model.fit(x, y, callbacks=callbacks, validation_data=(x, y), **options)
    except Crash:
        pass
    else:
        assert crash is None
    return model


def state(model):
    return [np.asarray(v) for v in (*model.weights, *model.optimizer.variables)]


def assert_equal(model, other):
    ours, theirs = state(model), state(other)
    assert [a.shape for a in ours] == [a.shape for a in theirs]
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


def untimed(events):
    return [dataclasses.replace(event, seconds=0) for event in events]


GROWTHS = {
    "steps": lambda **k: DeepFusion(at_step=[3, 9], **k),
    "epochs": lambda **k: DeepFusion(at_epoch=[1, 2], **k),
    "ramps": lambda **k: DeepFusion(
        at_step=[3, 9],
        optimizer_state="reset",
        learning_rate_factor=0.7,
        learning_rate_multipliers="width",
        rewarmup_steps=6,
        **k,
    ),
    "plateau": lambda **k: DeepFusion(
        schedule=keras_fusion.OnPlateau(
            "val_loss", patience=2, min_delta=100.0, max_growths=1
        ),
        **k,
    ),
}
CRASHES = [(0, 1), (0, 2), (0, None), (1, 0), (1, None), (2, 0), (2, 3), (3, 2)]


@pytest.fixture(scope="module")
def uninterrupted():
    """The runs that the others must equal, made once."""
    made = {}

    def of(kind, schedule):
        if (kind, schedule) not in made:
            grow = GROWTHS[kind](verbose=0)
            model = run(grow, schedule=schedule)
            made[kind, schedule] = (state(model), untimed(grow.events))
        return made[kind, schedule]

    return of


def assert_same_run(model, grow, expected):
    values, events = expected
    ours = state(model)
    assert untimed(grow.events) == events and events
    assert [a.shape for a in ours] == [b.shape for b in values]
    for a, b in zip(ours, values, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
@pytest.mark.parametrize("schedule", [False, True], ids=["rate", "schedule"])
@pytest.mark.parametrize("kind", GROWTHS)
def test_backup_and_restore(kind, schedule, first, tmp_path, uninterrupted):
    crashes = CRASHES if kind == "steps" else [(0, None), (1, 1), (2, 3)]

    def callbacks():
        grow = GROWTHS[kind](verbose=0)
        backup = keras_fusion.BackupAndRestore(tmp_path / "backup")
        return (grow, backup, grow) if first else (grow, grow, backup)

    for crash in crashes:
        grow, *order = callbacks()
        run(*order, crash=crash, schedule=schedule)
    grow, *order = callbacks()
    model = run(*order, schedule=schedule)
    assert_same_run(model, grow, uninterrupted(kind, schedule))
    assert not (tmp_path / "backup").exists()
