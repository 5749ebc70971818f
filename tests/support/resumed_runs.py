"""A script whose run is cut off at a moment, and resumed by running it again."""

import contextlib
import dataclasses
import functools

import keras
import numpy as np

from keras_fusion import DeepFusion, OnPlateau

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


# On PyTorch, dropout without a seed draws from PyTorch's own generator.
DROPOUT = 0.0 if keras.config.backend() == "torch" else 0.2


def net(norm=None, width=8, dropout=DROPOUT):
    layers = keras.layers
    stack = [keras.Input((6,)), layers.Dense(width, "relu"), layers.Dropout(dropout)]
    stack += [norm()] if norm else []
    return keras.Sequential([*stack, layers.Dense(width, "relu"), layers.Dense(1)])


# Compiling takes most of the tests' time: on TensorFlow only one of them does it.
EAGERLY = keras.config.backend() == "tensorflow"


def made(scheduled=False, optimizer=None, eagerly=EAGERLY, **options):
    """The model as a script builds it."""
    keras.utils.set_random_seed(7)
    model = net(**options)
    rate = 0.02
    if scheduled:
        rate = keras.optimizers.schedules.CosineDecay(0.02, 20)
    optimizer = optimizer or keras.optimizers.Adam(rate)
    model.compile(optimizer, "mse", run_eagerly=eagerly)
    return model


def run(*callbacks, crash=None, model=None, epochs=EPOCHS, initial_epoch=0, **options):
    """A script from its start: the small model is built, and trained with callbacks."""
    model = model or made(**options)
    x = np.random.default_rng(1).standard_normal((8 * STEPS, 6)).astype("float32")
    y = x[:, :1] * x[:, 1:2]
    callbacks = [*callbacks, *([CrashAt(crash)] if crash else [])]
    with contextlib.suppress(Crash):
        model.fit(
            x,
            y,
            batch_size=8,
            epochs=epochs,
            initial_epoch=initial_epoch,
            shuffle=False,
            verbose=0,
            validation_data=(x, y),
            callbacks=callbacks,
        )
        assert crash is None
    return model


def state(model):
    values = (*model.weights, *model.optimizer.variables)
    return [keras.ops.convert_to_numpy(v) for v in values]


def assert_equal(ours, theirs):
    assert [a.shape for a in ours] == [b.shape for b in theirs]
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
        schedule=OnPlateau("val_loss", patience=2, min_delta=100.0), **k
    ),
}


@functools.cache
def uninterrupted(kind, **options):
    """State and events of the run that the others must equal, made once."""
    grow = GROWTHS[kind](verbose=0)
    return state(run(grow, **options)), untimed(grow.events)


def assert_same(model, grow, expected):
    values, events = expected
    assert untimed(grow.events) == events and events
    assert_equal(state(model), values)


class Steps(keras.callbacks.Callback):
    """Where a run began, and the epochs that it had."""

    def __init__(self):
        super().__init__()
        self.epochs, self.first = [], None

    def on_epoch_begin(self, epoch, logs=None):
        self.epochs.append(epoch)

    def on_train_batch_begin(self, batch, logs=None):
        if self.first is None:
            self.first = int(self.model.optimizer.iterations)
