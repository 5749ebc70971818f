"""A process that grows models under TensorFlow strategies; prints what came of them.

Usage: python mirrored.py OUTPUT.npz STRATEGY [STRATEGY ...], of "none", "one",
"mirrored2" and "mirrored4". One mirrored strategy a process: TensorFlow numbers the
collectives of each anew, and they would meet.
"""

import json
import sys

import keras
import models
import numpy as np
import tensorflow as tf

import keras_fusion

DEVICES = 4
BATCH, STEPS = 8, 4

# Model, optimizer and dtype.
CASES = {
    "functional": ("functional", "momentum", "float32"),
    # In float64, since Adam blows the rounding of a gradient of zero up to a whole step.
    "subclassed": ("subclassed", "adam", "float64"),
    "keras_hub": ("gpt2", "momentum", "float32"),
}
OPTIMIZERS = {
    "adam": lambda: keras.optimizers.Adam(0.003),
    "momentum": lambda: keras.optimizers.SGD(0.05, momentum=0.9),
}


def make_strategy(name):
    if name == "none":
        return tf.distribute.get_strategy()  # The one that does nothing.
    if name == "one":
        return tf.distribute.OneDeviceStrategy("CPU:0")
    count = int(name.removeprefix("mirrored"))
    return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(count)])


class Replicas(keras.callbacks.Callback):
    """How far the devices' copies of a variable are apart, right after a growth."""

    def on_train_batch_end(self, batch, logs=None):
        if batch == 1:
            self.apart = apart(self.model)


def copies(variable):
    """The value on each device."""
    return [v.numpy() for v in getattr(variable.value, "values", [variable.value])]


def variables(model):
    return [*model.variables, *model.optimizer.variables]


def apart(model):
    """The largest difference between the devices' copies of any variable."""
    return max(
        float(np.max(np.abs(copies(v)[0] - copy)))
        for v in variables(model)
        for copy in copies(v)
    )


def train(kind, optimizer, dtype, strategy, draw=0, **compile_options):
    """One epoch, with a growth in its middle; returns the model and what was seen.

    `draw` seeds the generator from which the growth's own seed is drawn.
    """
    keras.config.set_floatx(dtype)
    keras.config.set_dtype_policy(dtype)
    with strategy.scope():
        model = models.KINDS[kind]()
        model.compile(OPTIMIZERS[optimizer](), models.loss(), **compile_options)
    grow, seen = keras_fusion.DeepFusion(at_step=2), Replicas()
    np.random.seed(draw)
    x, y = models.data_for(kind, BATCH * STEPS)
    options = {"batch_size": BATCH, "shuffle": False, "verbose": 0}
    history = model.fit(x, y, callbacks=[grow, seen], **options)
    return model, {
        "losses": history.history["loss"],
        "steps": [event.step for event in grow.events],
        "change": max(event.function_change for event in grow.events),
        "iterations": int(models.numpy(model.optimizer.iterations)),
        "shapes": [list(v.shape) for v in model.weights],
        "kinds": sorted({type(v.value).__name__ for v in variables(model)}),
        "replicas": min(len(copies(v)) for v in variables(model)),
        "apart_at_growth": seen.apart,
        "apart_at_end": apart(model),
    }


def main(output, *names):
    cpu = tf.config.list_physical_devices("CPU")[0]
    split = [tf.config.LogicalDeviceConfiguration()] * DEVICES
    tf.config.set_logical_device_configuration(cpu, split)
    reports, weights = {}, {}
    for name in names:
        # On one device also compiled with XLA, two steps a call.
        one, strategy = name == "one", make_strategy(name)
        compiled = {"jit_compile": one, "steps_per_execution": 1 + one}
        for case, options in CASES.items():
            if name in ("one", "mirrored4") and case != "functional":
                continue
            model, report = train(*options, strategy, **compiled)
            reports[f"{name}/{case}"] = report
            for i, value in enumerate(models.values(model)):
                weights[f"{name}/{case}/{i}"] = value
    np.savez(output, **weights)
    print(json.dumps(reports))


if __name__ == "__main__":
    main(*sys.argv[1:])
