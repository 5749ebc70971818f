"""Trains what is missing of the study of savings, and writes docs/savings.md.

python -m benchmarks.savings           # trains what is missing, then writes
python -m benchmarks.savings --write   # only writes docs/savings.*

Each run is written to benchmarks/results/savings when it is done, and not done again.
Several processes share the work; `--threads 1` gives each a core. Some three hours on two
cores in all.
"""

import argparse
import json
import os
import pathlib
import time

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "savings"
TASKS = ["decoder-default", "t5-default", "decoder", "t5", "decoder-long"]
WRITTEN = [*TASKS, "t5-adam"]  # The last is a first try, given up.
PATIENCE = 15  # seconds until looking again for work that others do not have


def main():
    """Trains what is missing and writes the results."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.savings", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--task", action="append", choices=TASKS, help="all by default")
    parser.add_argument("--write", action="store_true", help="train nothing")
    parser.add_argument("--threads", type=int, help="of this process")
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "savings_output")
    parser.add_argument("--hours", type=float, default=24.0, help="begin no run after")
    options = parser.parse_args()
    if options.threads:  # before TensorFlow starts
        os.environ["TF_NUM_INTRAOP_THREADS"] = str(options.threads)
        os.environ["TF_NUM_INTEROP_THREADS"] = str(options.threads)
    if not options.write:
        train(options.task or TASKS, options.work, options.hours)
    write()


def train(tasks: list[str], work: pathlib.Path, hours: float = 24.0) -> None:
    """Trains what no other process is training, until nothing is missing.

    Args:
        tasks: list of strings.
        work: `Path` of the text and the small models' states.
        hours: float. No run begins later. Defaults to 24.
    """
    from benchmarks.savings import data, study
    from benchmarks.savings.results import Results
    from benchmarks.savings.running import Runner
    from benchmarks.savings.tasks import TASKS as models

    end = time.monotonic() + 3600 * hours
    text = data.prepare(work / "data")
    results = Results(RESULTS)
    runners = {name: Runner(models[name](text), work / "trunks") for name in tasks}
    while time.monotonic() < end:
        missing = [
            course
            for course in study.courses(tasks, results)
            if results.read(course) is None
        ]
        if not missing:
            return
        if not any(_done(c, runners[c.task], results, work) for c in missing):
            time.sleep(PATIENCE)


def write() -> None:
    """Writes docs/savings.md and its pictures from the results."""
    from benchmarks.savings import report

    found = {
        task: [
            json.loads(path.read_text(encoding="utf-8"))
            for path in sorted((RESULTS / task).glob("*.json"))
        ]
        for task in WRITTEN
    }
    report.write(found, ROOT / "docs" / "savings.md")


def _done(course, runner, results, work):
    """Runs a course unless another process has it or what it needs."""
    from benchmarks.savings.trunks import Claimed
    from keras_fusion.t5.store import Entry

    with Entry(work / "claims" / course.task / course.name).claimed() as mine:
        if not mine or results.read(course) is not None:
            return False
        try:
            result = runner(course)
        except Claimed:
            return False
        results.write(course, result)
        finals = ", ".join(
            f"{f['budget']:g}: {f['loss']:.4f}" for f in result["finals"]
        )
        print(
            f"{course.task} {course.setting} (rate {course.rate:g}, seed {course.seed}) "
            f"{finals} ({result['seconds']:.0f} s)",
            flush=True,
        )
        return True


if __name__ == "__main__":
    main()
