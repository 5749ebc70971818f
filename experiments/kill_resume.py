"""Kills runs with two growths at random moments until they are done, and compares.

Each run is a real process that builds a small model, grows it twice inside `fit()` and
backs it up with `keras_fusion.BackupAndRestore`. It is killed with SIGKILL, started again
and killed again, until it comes to its end. Then its final weights and optimizer state
must be those of the run that nobody killed, by sha256.

A third of the kills comes at any moment from the process's start on. The others wait
until the process is in the middle of a growth, of a backup or of resuming, and
come at a random moment of that. Processes are forked from one that has imported Keras and
computed nothing, to save the seconds of the import; `--spawn` starts each anew.

python -m experiments.kill_resume --kills 200
"""

import argparse
import collections
import hashlib
import json
import mmap
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")

import keras
import numpy as np

import keras_fusion

PHASES = ("start", "resume", "train", "growth", "backup", "end")
AIMS = ("any", "growth", "backup", "resume")
EPOCHS, STEPS = 5, 4
RESULT = "result.json"


# The script that is killed.


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


def script(folder, variant):
    """A whole run: in the middle of it the process may be killed."""
    phase = Phase(folder / "phase")
    phase.set("start")
    keras.utils.set_random_seed(variant)
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
    layers = keras.layers
    inputs = keras.Input((6,))
    x = layers.Dropout(0.1)(layers.Dense(8, "relu")(inputs))
    x = layers.Add()([x, layers.Dense(8)(layers.LayerNormalization()(x))])
    model = keras.Model(inputs, layers.Dense(1)(x))
    rate = 0.02
    if variant % 2:
        rate = keras.optimizers.schedules.CosineDecay(0.02, EPOCHS * STEPS)
    model.compile(keras.optimizers.Adam(rate), "mse")
    # One growth in mid-epoch, and one at an epoch's end.
    grow = keras_fusion.DeepFusion(
        at_step=[STEPS + 2, 3 * STEPS],
        optimizer_state="reset" if variant % 3 == 2 else "carry",
        learning_rate_factor=0.7,
        rewarmup_steps=5,
        verbose=0,
    )
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
        callbacks=[WatchedBackup(folder / "backup", phase), grow],
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


# The killer.


def start(folder, variant, spawn):
    """Starts the script in a process of its own."""
    (folder / RESULT).unlink(missing_ok=True)
    (folder / "phase").unlink(missing_ok=True)
    phase = Phase(folder / "phase")
    if spawn:
        command = [sys.executable, __file__, "--script", str(folder), str(variant)]
        return subprocess.Popen(command).pid, phase
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            script(folder, variant)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return pid, phase


def ended(pid):
    """The exit status of a process, or `None` while it runs."""
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def watch(pid, phase):
    """Waits for the end, and returns how long the process was in each phase."""
    seconds = collections.Counter()
    last = time.monotonic()
    while (status := ended(pid)) is None:
        time.sleep(0.002)
        now = time.monotonic()
        seconds[phase.name] += now - last
        last = now
    if status:
        raise RuntimeError(f"A run failed with exit status {status}.")
    return seconds


def kill(pid, phase, aim, seconds, rng):
    """Kills a process at a random moment; `None` if it has ended before."""
    if aim != "any":
        while phase.name != aim:
            if ended(pid) is not None:
                return None
            time.sleep(0.001)
        visits = {"growth": 2, "backup": EPOCHS}.get(aim, 1)
        wait = rng.uniform(0, seconds[aim] / visits)
    else:
        wait = rng.uniform(0, sum(seconds.values()))
    deadline = time.monotonic() + wait
    while time.monotonic() < deadline:
        if ended(pid) is not None:
            return None
        time.sleep(0.001)
    hit = phase.name
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return hit if os.waitstatus_to_exitcode(status) == -signal.SIGKILL else None


def result(folder):
    """What a run that came to its end has left."""
    path = folder / RESULT
    if not path.exists():
        raise RuntimeError(f"The run in {folder} failed; see above.")
    return json.loads(path.read_text()), np.load(folder / "weights.npy")


def measure(kills, seed, variants, spawn):
    """Kills until `kills` processes have died, and lets the last run come to its end."""
    rng = random.Random(seed)
    references, hits, runs = {}, collections.Counter(), []
    begin = time.monotonic()
    while sum(hits.values()) < kills:
        variant = len(runs) % variants
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            if variant not in references:
                pid, phase = start(folder, variant, spawn)
                seconds = watch(pid, phase)
                references[variant] = (*result(folder), seconds)
        reference, weights, seconds = references[variant]
        with tempfile.TemporaryDirectory() as name:
            folder, killed = Path(name), 0
            while True:
                pid, phase = start(folder, variant, spawn)
                if sum(hits.values()) >= kills or killed >= 12:
                    watch(pid, phase)
                    break
                hit = kill(pid, phase, rng.choice(AIMS), seconds, rng)
                if hit is None:
                    break
                hits[hit] += 1
                killed += 1
            found, values = result(folder)
            runs.append(
                {
                    "kills": killed,
                    "identical": found == reference,
                    "largest_difference": float(np.max(np.abs(values - weights))),
                }
            )
        print(f"{sum(hits.values())} kills, {len(runs)} runs: {runs[-1]}", flush=True)
    return {
        "kills": sum(hits.values()),
        "killed_while": dict(hits),
        "runs": len(runs),
        "runs_killed": sum(run["kills"] > 0 for run in runs),
        "identical_runs": sum(run["identical"] for run in runs),
        "largest_difference": max(run["largest_difference"] for run in runs),
        "variants": len(references),
        "growths_in_each_run": len(reference["growths"]),
        "minutes": round((time.monotonic() - begin) / 60, 1),
        "processes": "spawned" if spawn else "forked",
        "backend": keras.config.backend(),
        "keras": keras.__version__,
        "python": platform.python_version(),
    }


def main():
    """Parses the command, and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--variants", type=int, default=6)
    parser.add_argument("--spawn", action="store_true")
    parser.add_argument("--results", type=Path)
    parser.add_argument("--script", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.script:
        script(Path(arguments.script[0]), int(arguments.script[1]))
        return
    found = measure(
        arguments.kills, arguments.seed, arguments.variants, arguments.spawn
    )
    text = json.dumps(found, indent=2)
    print(text)
    if arguments.results:
        arguments.results.write_text(text + "\n")
    sys.exit(found["identical_runs"] < found["runs"])


if __name__ == "__main__":
    main()
