"""Kills runs that grow at random moments until they are done, and compares.

Each run is a real process that builds a small model, grows it inside `fit()` and backs it
up with `keras_fusion.BackupAndRestore`; the set-ups are in `killed_runs.py`. It is killed
with SIGKILL, started again and killed again, until it comes to its end. Then its final
weights and optimizer state must be those of the run that nobody killed, by sha256.

A third of the kills comes at any moment from the process's start on. The others wait
until the process is in the middle of a growth, of a backup or of resuming, and
come at a random moment of that. Processes are forked from one that has imported Keras and
computed nothing, to save the seconds of the import; `--spawn` starts each anew.

python -m experiments.kill_resume --kills 200 --setups plain
python -m experiments.kill_resume --kills 100 --setups chain partner mixed
"""

import argparse
import collections
import dataclasses
import json
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

if __name__ == "__main__":  # Tests import it, with an environment of their own.
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
    os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")

import keras
import numpy as np

from experiments.killed_runs import (
    EPOCHS,
    RESULT,
    SETUPS,
    Phase,
    await_moment,
    script,
    told,
)

ROOT = Path(__file__).parent.parent
MOST = 6  # kills of one run
AIMS = ("any", "growth", "backup", "resume")


def start(folder, case, spawn):
    """Starts the script in a process of its own."""
    (folder / RESULT).unlink(missing_ok=True)
    (folder / "phase").unlink(missing_ok=True)
    phase = Phase(folder / "phase")
    if spawn:
        words = ["--script", str(folder), *map(str, case)]
        command = [sys.executable, "-m", "experiments.kill_resume", *words]
        return subprocess.Popen(command, cwd=ROOT).pid, phase
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            script(folder, *case)
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


def kill(pid, phase, aim, reference, rng):
    """Kills a process at a random moment; `None` if it has ended before."""
    visits = {"growth": len(reference.growths), "backup": EPOCHS}.get(aim, 1)
    moment = phase, aim, reference.seconds, visits, rng
    if not await_moment(*moment, has_ended=lambda: ended(pid) is not None):
        return None
    hit = phase.name
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return hit if os.waitstatus_to_exitcode(status) == -signal.SIGKILL else None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run that came to its end has left.

    Args:
        sha256: string. Digest of the weights and the optimizer's state.
        growths: list of the steps after which it grew.
        weights: array of all weights.
        seconds: dict of the time that it spent in each phase.
    """

    sha256: str
    growths: list
    weights: np.ndarray
    seconds: dict

    @classmethod
    def read(cls, folder, seconds):
        """Reads a folder."""
        path = folder / RESULT
        if not path.exists():
            raise RuntimeError(f"The run in {folder} failed; see above.")
        content = json.loads(path.read_text())
        return cls(**content, weights=np.load(folder / "weights.npy"), seconds=seconds)

    def comparison(self, other):
        """How two runs compare, as plain data."""
        same = self.sha256 == other.sha256 and self.growths == other.growths
        fits = self.weights.shape == other.weights.shape
        by = np.max(np.abs(self.weights - other.weights)) if fits else np.inf
        return {"identical": same, "largest_difference": float(by)}


def uninterrupted(case, spawn):
    """What a run comes to that nobody kills."""
    with tempfile.TemporaryDirectory() as name:
        pid, phase = start(Path(name), case, spawn)
        seconds = watch(pid, phase)
        return Outcome.read(Path(name), seconds)


def killed(case, reference, spawn, rng, limit):
    """A run that is killed at most `limit` times, and the phases of its kills."""
    hits = []
    with tempfile.TemporaryDirectory() as name:
        while True:
            pid, phase = start(Path(name), case, spawn)
            if len(hits) >= limit:
                watch(pid, phase)
                break
            hit = kill(pid, phase, rng.choice(AIMS), reference, rng)
            if hit is None:
                break
            hits.append(hit)
        return Outcome.read(Path(name), {}), hits


def measure(kills, seed, setups, variants, spawn):
    """Kills until `kills` processes have died, and lets the last run come to its end."""
    rng = random.Random(seed)
    cases = [(setup, variant) for variant in range(variants) for setup in setups]
    references, hits, runs = {}, collections.Counter(), []
    begin = time.monotonic()
    while sum(hits.values()) < kills:
        case = cases[len(runs) % len(cases)]
        if case not in references:
            references[case] = uninterrupted(case, spawn)
        limit = min(MOST, kills - sum(hits.values()))
        found, own = killed(case, references[case], spawn, rng, limit)
        hits.update(own)
        compared = found.comparison(references[case])
        runs.append({"setup": case[0], "kills": len(own), **compared})
        print(f"{sum(hits.values())} kills, {len(runs)} runs: {runs[-1]}", flush=True)
    return {
        "kills": sum(hits.values()),
        "killed_while": dict(hits),
        **totals(runs),
        "largest_difference": max(run["largest_difference"] for run in runs),
        "setups": {
            setup: {
                "kills": sum(run["kills"] for run in runs if run["setup"] == setup),
                **totals([run for run in runs if run["setup"] == setup]),
                "growths_after_steps": distinct(
                    reference.growths
                    for case, reference in references.items()
                    if case[0] == setup
                ),
            }
            for setup in dict.fromkeys(run["setup"] for run in runs)
        },
        "minutes": round((time.monotonic() - begin) / 60, 1),
        "processes": "spawned" if spawn else "forked",
        "backend": keras.config.backend(),
        "keras": keras.__version__,
        "python": platform.python_version(),
    }


def distinct(lists):
    """The lists that differ, in order."""
    return [list(x) for x in dict.fromkeys(map(tuple, lists))]


def totals(runs):
    """How many runs there were, how many were killed and how many are identical."""
    return {
        "runs": len(runs),
        "runs_killed": sum(run["kills"] > 0 for run in runs),
        "identical_runs": sum(run["identical"] for run in runs),
    }


def main():
    """Parses the command, and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    names = list(SETUPS)
    parser.add_argument("--setups", nargs="+", choices=names, default=names)
    parser.add_argument("--variants", type=int, default=6, help="of each set-up")
    parser.add_argument("--spawn", action="store_true")
    parser.add_argument("--results", type=Path)
    parser.add_argument("--script", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.script:
        folder, setup, variant = arguments.script
        script(Path(folder), setup, int(variant))
        return
    found = measure(
        arguments.kills,
        arguments.seed,
        arguments.setups,
        arguments.variants,
        arguments.spawn,
    )
    told(found, arguments.results)
    sys.exit(found["identical_runs"] < found["runs"])


if __name__ == "__main__":
    main()
