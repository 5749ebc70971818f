"""The runs that `experiments.kill_resume` kills, one for each set-up by its name.

Each builds a small model and grows it inside `fit()`. What differs is what else a run
carries from one process to the next: a schedule's counters, a policy's loss scale, moving
averages, gradients in the middle of their accumulation, norms in the middle of becoming
other ones, a partner in a file.
"""

import hashlib
import json
import mmap
import os
import time

import keras
import numpy as np

import keras_fusion

PHASES = ("start", "resume", "train", "growth", "backup", "end")
EPOCHS, STEPS = 5, 4
RESULT = "result.json"


class Phase:
    """What a process is doing, in a byte that another process can read."""

    def __init__(self, path):
        path.touch()
        os.truncate(path, 1)
        with path.open("r+b") as file:
            self._byte = mmap.mmap(file.fileno(), 1)

    def set(self, name):
        """Says what the process does now."""
        self._byte[0] = PHASES.index(name)

    @property
    def name(self):
        """What it does."""
        return PHASES[self._byte[0]]

    def before_growth(self, growth):
        """Called by the growth callback."""
        self.set("growth")

    def after_growth(self, growth):
        """Called by the growth callback."""
        self.set("train")


def await_moment(phase, aim, seconds, visits, rng, has_ended):
    """Waits for a random moment of a run.

    Args:
        phase: `Phase` of the process.
        aim: string. `"any"`, or the phase to wait for.
        seconds: dict of the seconds that a run spends in each phase.
        visits: int. How often it enters the phase.
        rng: `random.Random`.
        has_ended: function without arguments.

    Returns:
        bool. Whether the run is still under way.
    """
    while aim != "any" and phase.name != aim:
        if has_ended():
            return False
        time.sleep(0.001)
    longest = sum(seconds.values()) if aim == "any" else seconds[aim]
    deadline = time.monotonic() + rng.uniform(0, longest / visits)
    while time.monotonic() < deadline:
        if has_ended():
            return False
        time.sleep(0.001)
    return True


def told(found, path):
    """Prints what was found as JSON, and writes it to a file if there is to be one."""
    text = json.dumps(found, indent=2)
    print(text)
    if path:
        path.write_text(text + "\n")


class WatchedBackup(keras_fusion.BackupAndRestore):
    """Tells when it backs up and when it resumes."""

    def __init__(self, folder, phase):
        super().__init__(folder, delete_checkpoint=False)
        self.phase = phase

    def on_train_begin(self, logs=None):
        """Resumes the run."""
        self.phase.set("resume")
        super().on_train_begin(logs)
        self.phase.set("train")

    def on_epoch_end(self, epoch, logs=None):
        """Backs up."""
        self.phase.set("backup")
        super().on_epoch_end(epoch, logs)
        self.phase.set("train")


def built(seed, blocks=1):
    """A small residual network with pre-norm blocks."""
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    inputs = keras.Input((6,))
    x = layers.Dropout(0.1)(layers.Dense(8, "relu")(inputs))
    for _ in range(blocks):
        x = layers.Add()([x, layers.Dense(8)(layers.LayerNormalization()(x))])
    return keras.Model(inputs, layers.Dense(1)(x))


def fusion(variant=0, **options):
    """The growth by fusion: one in mid-epoch, and one at an epoch's end."""
    if "schedule" not in options:
        options = {"at_step": [STEPS + 2, 3 * STEPS], **options}
    options = {"optimizer_state": optimizer_state(variant), **options}
    return keras_fusion.DeepFusion(
        **options, learning_rate_factor=0.7, rewarmup_steps=5, verbose=0
    )


def optimizer_state(variant):
    """What happens to the optimizer's state; every third run starts it anew."""
    return "reset" if variant % 3 == 2 else "carry"


def adam(variant, **options):
    """The optimizer, of which every second one has a schedule."""
    rate = 0.02
    if variant % 2:
        rate = keras.optimizers.schedules.CosineDecay(0.02, EPOCHS * STEPS)
    return keras.optimizers.Adam(rate, **options)


# What each set-up returns is the model, its optimizer and the callbacks, the growth's
# first.


def plain(folder, variant):
    """Fusion with itself, twice."""
    return built(variant), adam(variant), [fusion(variant)]


def chain(folder, variant):
    """Growth in width and in depth at one moment."""
    grow = keras_fusion.GrowModel(
        keras_fusion.Chain([keras_fusion.HyperCloning(), keras_fusion.DepthStacking()]),
        keras_fusion.AtStep([STEPS + 2, 3 * STEPS]),
        optimizer_state=optimizer_state(variant),
        rewarmup_steps=3,
        verbose=0,
    )
    return built(variant, blocks=2), adam(variant), [grow]


def partner(folder, variant):
    """Fusion with a partner that is read from a file."""
    path = folder / "partner.keras"
    if not path.exists():
        # A kill leaves no half of it, and every process finds the same.
        built(variant + 100).save(folder / "written.keras")
        os.replace(folder / "written.keras", path)
    grow = fusion(
        partners=[path], at_step=STEPS + 2, optimizer_state="reset", norms="block"
    )
    return built(variant), adam(variant), [grow]


def mixed(folder, variant):
    """Half precision, with a loss scale that grows in every second run."""
    policy = ("mixed_float16", "mixed_bfloat16")[variant % 2]
    keras.mixed_precision.set_global_policy(policy)
    optimizer = adam(variant)
    if policy == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(
            optimizer, initial_scale=2.0**10, dynamic_growth_steps=3
        )
    return built(variant), optimizer, [fusion(variant)]


def average(folder, variant):
    """Moving averages of the weights, which overwrite them now and then."""
    options = {"ema_momentum": 0.9, "ema_overwrite_frequency": 7}
    return built(variant), adam(variant, use_ema=True, **options), [fusion(variant)]


def accumulation(folder, variant):
    """Gradients of three batches for each update, so that epochs end between them."""
    optimizer = adam(variant, gradient_accumulation_steps=3)
    return built(variant), optimizer, [fusion(variant, at_step=[2, 4])]


def annealing(folder, variant):
    """Norms of blocks that become Keras's over more than an epoch."""
    grow = fusion(
        partners=[built(variant + 100)],
        at_step=STEPS + 2,
        optimizer_state="reset",
        norms="block",
    )
    anneal = keras_fusion.AnnealBlockNorms(steps=STEPS + 3)
    return built(variant), adam(variant), [grow, anneal]


def plateau(folder, variant):
    """Growths at times that the losses decide."""
    schedule = keras_fusion.OnPlateau("loss", min_delta=0.3, max_growths=2)
    return built(variant), adam(variant), [fusion(variant, schedule=schedule)]


SETUPS = {
    setup.__name__: setup
    for setup in (
        plain,
        chain,
        partner,
        mixed,
        average,
        accumulation,
        annealing,
        plateau,
    )
}


def script(folder, setup, variant):
    """A whole run: in the middle of it the process may be killed."""
    phase = Phase(folder / "phase")
    phase.set("start")
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
    model, optimizer, callbacks = SETUPS[setup](folder, variant)
    # What was drawn to build it differs from process to process where a file is found.
    keras.utils.set_random_seed(variant)
    model.compile(optimizer, "mse")
    grow = callbacks[0]
    grow.watchers.append(phase)
    data = (
        np.random.default_rng(variant).standard_normal((8 * STEPS, 6)).astype("float32")
    )
    model.fit(
        data,
        data[:, :1] * data[:, 1:2],
        batch_size=8,
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
        callbacks=[WatchedBackup(folder / "backup", phase), *callbacks],
    )
    phase.set("end")
    digest = hashlib.sha256()
    for variable in (*model.weights, *model.optimizer.variables):
        digest.update(
            np.ascontiguousarray(keras.ops.convert_to_numpy(variable)).tobytes()
        )
    values = [keras.ops.convert_to_numpy(v).ravel() for v in model.weights]
    np.save(folder / "weights.npy", np.concatenate(values))
    result = {"sha256": digest.hexdigest(), "growths": [e.step for e in grow.events]}
    (folder / RESULT).write_text(json.dumps(result))
