"""Trains studies and tabulates them.

python -m experiments run STUDY      # trains what is missing, run by run
python -m experiments together STUDY   # the same, many at a time, on an accelerator
python -m experiments status STUDY   # says what has finished
python -m experiments table STUDY    # prints the tables

A study is a file in experiments/studies, or the path of another. Each run is written to
experiments/results when it is done, and not done again. Several processes share the work;
`--threads 1` gives each a core.
"""

import argparse
import os
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: list[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: list of strings. By default those of the command line.

    Returns:
        int. The exit status.
    """
    options = _parser().parse_args(arguments)
    if options.threads:  # before a backend starts
        for name in (
            "TF_NUM_INTRAOP_THREADS",
            "TF_NUM_INTEROP_THREADS",
            "OMP_NUM_THREADS",
        ):
            os.environ[name] = str(options.threads)
    # keras-hub's T5 takes its padding masks as inputs of their own.
    warnings.filterwarnings("ignore", message=r".*does not support masking")
    try:
        _run(options)
    except (FileNotFoundError, ValueError) as error:
        print(f"experiments: {error}", file=sys.stderr)
        return 1
    return 0


def _run(options):
    # Only now, since a backend starts with these.
    from experiments.harness import study_files, tables
    from experiments.harness.results import Results
    from experiments.harness.work import Worker
    from keras_fusion.t5 import markdown

    study = study_files.load(options.study)
    if options.command == "table":
        pictures = options.page.parent if options.page else None
        text = tables.text(study, options.results, pictures)
        if options.page:
            markdown.insert(text, options.page)
        print(text)
        return
    results = Results(options.results / study.name)
    worker = Worker(study, results, options.work)
    if options.command == "together":
        from experiments.harness import together

        named = [study_files.load(name) for name in (options.study, *options.beside)]
        together.run(
            [(one, Results(options.results / one.name)) for one in named],
            options.work,
            3600 * options.hours,
            options.processes,
        )
    if options.command == "run":
        worker.work(options.runs, options.hours)
    for course in study.courses(results.loss):
        done = "finished" if results.read(course) else "to do"
        print(f"{done:<9} rate {course.rate:<7g} seed {course.seed}  {course.setting}")


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m experiments",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=("run", "together", "status", "table"))
    parser.add_argument("study")
    parser.add_argument("--beside", nargs="*", default=(), help="further studies")
    parser.add_argument("--threads", type=int, help="of this process")
    parser.add_argument("--processes", type=int, default=2, help="that grow models")
    parser.add_argument("--runs", type=float, default=float("inf"), help="at most")
    parser.add_argument(
        "--hours", type=float, default=float("inf"), help="begin no run after"
    )
    parser.add_argument("--work", type=Path, default=ROOT / "experiments_output")
    parser.add_argument(
        "--results", type=Path, default=ROOT / "experiments" / "results"
    )
    parser.add_argument(
        "--page", type=Path, help="page to put the tables into, with pictures beside it"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
