"""Kills one of the processes of a run on JAX at random moments, and resumes them all.

Each run has two processes, whose model is sharded over the devices of both; it is in
`runs_of_processes.py`. One of them is killed with SIGKILL, the other a moment later, as a
scheduler does it; both are started again and killed again, until the run comes to its end.
Then weights and optimizer state must be within 1e-6 of those of one process that nobody
killed. A quarter of the kills comes at any moment from the start on; the others wait for
a growth, for a checkpoint or for the resuming, and come at a random moment of it.

python -m experiments.kill_processes --kills 20
"""

import argparse
import collections
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

if __name__ == "__main__":  # Tests import it, with an environment of their own.
    os.environ["KERAS_BACKEND"] = "jax"
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

import keras
import numpy as np

from experiments.killed_runs import EPOCHS, Phase, await_moment, told
from experiments.runs_of_processes import DEVICES, GROWTHS, RESULT, WEIGHTS, script

ROOT = Path(__file__).parent.parent
MOST = 5  # kills of one run
AIMS = ("any", "growth", "backup", "resume")
TOLERANCE = 1e-6
LONGEST = 600  # seconds of a run that nobody kills


class Run:
    """The processes of one run, under way.

    Args:
        folder: `Path` of the run's folder.
        count: int. Number of processes.
    """

    def __init__(self, folder, count):
        self.phases = [Phase(folder / f"phase_{rank}") for rank in range(count)]
        for phase in self.phases:
            phase.set("start")
        devices = f"--xla_force_host_platform_device_count={DEVICES // count}"
        command = [sys.executable, "-m", "experiments.kill_processes", "--script"]
        words = [str(folder), str(_free_port()), str(count)]
        self.log = (folder / "log.txt").open("a")
        self.processes = [
            subprocess.Popen(
                [*command, *words, str(rank)],
                cwd=ROOT,
                env=os.environ | {"XLA_FLAGS": devices},
                stdout=self.log,
                stderr=self.log,
            )
            for rank in range(count)
        ]

    def has_ended(self):
        """Whether a process has come to its end."""
        return any(process.poll() is not None for process in self.processes)

    def wait(self):
        """Waits for the end, and returns how long the first was in each phase."""
        seconds, last = collections.Counter(), time.monotonic()
        end = last + LONGEST
        while any(process.poll() is None for process in self.processes):
            time.sleep(0.01)
            now = time.monotonic()
            seconds[self.phases[0].name] += now - last
            last = now
            if now > end:
                break
        self.stop()
        codes = [process.returncode for process in self.processes]
        if any(codes):
            text = Path(self.log.name).read_text()[-3000:]
            raise RuntimeError(f"A run failed with exit statuses {codes}: {text}")
        return seconds

    def stop(self):
        """Kills the processes that still run."""
        for process in self.processes:
            process.kill()
            process.wait()
        self.log.close()


def _free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def killed_once(run, aim, seconds, rng):
    """Kills a process of a run at a random moment, then the others.

    Returns:
        The phase in which it was; `None` if the run has ended before.
    """
    rank = rng.randrange(len(run.processes))
    phase, victim = run.phases[rank], run.processes[rank]
    visits = {"growth": len(GROWTHS), "backup": EPOCHS}.get(aim, 1)
    seconds = {"resume": 1.0} | seconds  # Nothing resumes in the run that was timed.
    if not await_moment(phase, aim, seconds, visits, rng, run.has_ended):
        return None
    hit = phase.name
    victim.kill()
    time.sleep(rng.uniform(0, 0.5))  # What the others do then is no matter.
    run.stop()
    return hit if victim.wait() == -signal.SIGKILL else None


def outcome(folder):
    """What a run that came to its end has left: the steps of its growths, and arrays."""
    growths = json.loads((folder / RESULT).read_text())["growths"]
    with np.load(folder / WEIGHTS) as values:
        return growths, [values[key] for key in values]


def uninterrupted(count):
    """What a run comes to that nobody kills, and its seconds in each phase."""
    with tempfile.TemporaryDirectory() as name:
        seconds = Run(Path(name), count).wait()
        return outcome(Path(name)), seconds


def killed(seconds, rng, limit):
    """What a run comes to that is killed at most `limit` times, and its kills' phases."""
    hits = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        while len(hits) < limit:
            run = Run(folder, 2)
            # Nothing resumes in a run that begins.
            aims = AIMS if (folder / "checkpoints").exists() else AIMS[:3]
            hit = killed_once(run, rng.choice(aims), seconds, rng)
            if hit is None:
                run.wait()
                return outcome(folder), hits
            hits.append(hit)
        Run(folder, 2).wait()
        return outcome(folder), hits


def difference(ours, theirs):
    """The largest difference of two outcomes; infinite if their growths differ."""
    if ours[0] != theirs[0] or [x.shape for x in ours[1]] != [
        x.shape for x in theirs[1]
    ]:
        return float("inf")
    pairs = zip(ours[1], theirs[1], strict=True)
    return max(float(np.max(np.abs(x - y), initial=0.0)) for x, y in pairs)


def measure(kills, seed=0):
    """Kills until `kills` processes have died, and lets the last run come to its end."""
    rng, begin = random.Random(seed), time.monotonic()
    one, _ = uninterrupted(1)
    two, seconds = uninterrupted(2)
    hits, runs = collections.Counter(), []
    while sum(hits.values()) < kills:
        limit = min(MOST, kills - sum(hits.values()))
        found, own = killed(seconds, rng, limit)
        hits.update(own)
        runs.append({"kills": len(own), "difference": difference(found, one)})
        print(f"{sum(hits.values())} kills, {len(runs)} runs: {runs[-1]}", flush=True)
    return {
        "kills": sum(hits.values()),
        "killed_while": dict(hits),
        "runs": len(runs),
        "equal_runs": sum(run["difference"] <= TOLERANCE for run in runs),
        "largest_difference": max(run["difference"] for run in runs),
        "difference_without_kills": difference(two, one),
        "growths_after_steps": one[0],
        "minutes": round((time.monotonic() - begin) / 60, 1),
        "keras": keras.__version__,
    }


def main():
    """Parses the command, and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--script", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.script:
        folder, *numbers = arguments.script
        script(Path(folder), *map(int, numbers))
        return
    found = measure(arguments.kills, arguments.seed)
    told(found, arguments.results)
    sys.exit(found["equal_runs"] < found["runs"])


if __name__ == "__main__":
    main()
