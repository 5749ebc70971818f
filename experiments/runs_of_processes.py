"""The run of several JAX processes that `experiments.kill_processes` kills.

A small model is sharded over the devices of all processes (`ModelParallel`), grows twice
in `fit`, and is saved by Keras's `OrbaxCheckpoint` at each epoch's end. Started again, the
script resumes from the last checkpoint, as docs/distribution.md shows it.
"""

import json

import jax
import keras
import numpy as np
from jax.experimental import multihost_utils

import keras_fusion
from experiments.killed_runs import EPOCHS, STEPS, Phase

DEVICES = 4
GROWTHS = [STEPS + 2, 3 * STEPS]  # in mid-epoch, and at an epoch's end
RESULT, WEIGHTS = "result.json", "weights.npz"


class WatchedCheckpoint(keras.callbacks.OrbaxCheckpoint):
    """Tells when it saves."""

    def __init__(self, folder, phase):
        super().__init__(str(folder), save_on_background=False)
        self.phase = phase

    def on_epoch_end(self, epoch, logs=None):
        """Saves the model."""
        self.phase.set("backup")
        super().on_epoch_end(epoch, logs)
        self.phase.set("train")


def model_parallel(layouts):
    """Variables over all devices, and so over all processes.

    Args:
        layouts: dict from the path of a variable to the axes that it is split along.
    """
    mesh = keras.distribution.DeviceMesh((1, DEVICES), ("batch", "model"))
    layout_map = keras.distribution.LayoutMap(mesh)
    for path, axes in layouts.items():
        layout_map[path] = axes
    return keras.distribution.ModelParallel(
        layout_map=layout_map, auto_shard_dataset=False
    )


def join(port, count, rank):
    """Joins the other processes of this machine, if there are any."""
    if count > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        keras.distribution.initialize(f"localhost:{port}", count, rank)


def built():
    """The small model that the script builds."""
    layers = keras.layers
    inputs = keras.Input((6,), name="features")
    x = layers.Dense(8, "relu", name="hidden")(inputs)
    x = layers.Dense(8, name="second")(layers.LayerNormalization(name="norm")(x))
    outputs = layers.Dense(1, name="out")(x)
    model = keras.Model(inputs, outputs, name="net")
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9, name="sgd"), "mse")
    return model


def epochs_saved(checkpoints):
    """The number of epochs that the last checkpoint has behind it."""
    if not checkpoints.exists():
        return 0
    steps = (int(step.name) for step in checkpoints.iterdir() if step.name.isdigit())
    return max(steps, default=-1) + 1


def script(folder, port, count, rank):
    """A whole run of one process: in the middle of it the process may be killed."""
    phase = Phase(folder / f"phase_{rank}")
    phase.set("start")
    join(port, count, rank)
    layouts = {
        "net/hidden/kernel": (None, "model"),
        "net/second/kernel": ("model", None),
    }
    keras.distribution.set_distribution(model_parallel(layouts))
    keras.utils.set_random_seed(0)
    model = built()
    grow = keras_fusion.DeepFusion(
        at_step=GROWTHS,
        learning_rate_factor=0.7,
        rewarmup_steps=5,
        record=folder / "growth.json",
        verbose=0,
    )
    grow.watchers.append(phase)
    checkpoints = folder / "checkpoints"
    begin = epochs_saved(checkpoints)
    if begin:
        phase.set("resume")
        grow.replay(model, growths=checkpoints)
        model.load_weights(checkpoints)
    x = np.random.default_rng(0).standard_normal((8 * STEPS, 6)).astype("float32")
    phase.set("train")
    model.fit(
        x,
        x[:, :1] * x[:, 1:2],
        batch_size=8,
        epochs=EPOCHS,
        initial_epoch=begin,
        shuffle=False,
        verbose=0,
        callbacks=[grow, WatchedCheckpoint(checkpoints, phase)],
    )
    values = {
        f"{i}": multihost_utils.process_allgather(variable.value, tiled=True)
        for i, variable in enumerate([*model.weights, *model.optimizer.variables])
    }
    if rank == 0:
        np.savez(folder / WEIGHTS, **values)
        growths = [event.step for event in grow.events]
        (folder / RESULT).write_text(json.dumps({"growths": growths}))
    phase.set("end")
