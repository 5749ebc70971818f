"""The demo's command line: `python -m keras_fusion.demo --help`."""

import argparse
import sys
import time
import warnings
from pathlib import Path

from keras_fusion.t5 import requirements


def main(arguments: list[str] | None = None) -> int:
    """Runs the demo.

    Args:
        arguments: list of strings. By default those of the command line.

    Returns:
        int. The exit status.
    """
    options = _parse(arguments)
    try:
        requirements.check("keras_fusion.demo", ("tensorflow",))
    except (ImportError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 1
    with warnings.catch_warnings():
        # keras-hub's T5 takes its padding masks as inputs of their own.
        warnings.filterwarnings("ignore", message=r".*does not support masking")
        _run(options)
    return 0


def _parse(arguments):
    parser = argparse.ArgumentParser(
        prog="python -m keras_fusion.demo",
        description="Trains two small T5 models on the documentation strings of "
        "Python's standard library, fuses them inside fit(), trains the fused model on, "
        "and compares it with a model of the same size trained from scratch, and with a "
        "small model alone, each with the same number of FLOPs.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=8.0,
        help="cut the budget of FLOPs if this machine would take longer",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and data")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("demo_output"),
        help="folder for curves.png and figures.json",
    )
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="run everything once in less than a minute, with models that hardly learn",
    )
    return parser.parse_args(arguments)


def _run(options):
    began = time.monotonic()
    print("Loading TensorFlow and keras-hub ...", flush=True)
    # Only now: it takes seconds, and what is missing was to be said before.
    from keras_fusion.demo import plot, settings

    chosen = settings.SMOKE if options.smoke else settings.FULL
    report = _compare(chosen, options.seed, None if options.smoke else options.minutes)
    options.output.mkdir(parents=True, exist_ok=True)
    report.save(options.output / "figures.json")
    plot.draw(report, options.output / "curves.png")
    print(f"\n{report.table()}\n\n{report.verdict()}\n")
    print(f"Curves:  {options.output / 'curves.png'}")
    print(f"Figures: {options.output / 'figures.json'}")
    print(f"Done in {(time.monotonic() - began) / 60:.1f} minutes.")


def _compare(settings, seed, minutes):
    """Trains the parents, the fused model and what it is compared with."""
    from keras_fusion.demo import data
    from keras_fusion.demo.planning import make_plan
    from keras_fusion.demo.report import Report
    from keras_fusion.demo.training import Trainer

    loaded = data.load(settings, seed)
    data.show_example(loaded)
    trainer, timed = Trainer(settings, loaded), minutes is not None
    wide = trainer.cost(trainer.wide, timed=timed)
    small = trainer.cost(trainer.wide.halved(), timed=timed)
    plan = make_plan(settings, wide, small, 60 * minutes if timed else None)
    print(plan.describe(wide, small), flush=True)
    # Seeds apart, since a model's seed is also that of its batches.
    partner, parent = trainer.parent(plan, seed=3 * seed + 1, title="parent B")
    first = 3 * seed + 2
    fused, ensemble = trainer.fused(plan, partner, seed=first, title="parent A, fused")
    small = trainer.small(plan, seed=first, title="small model alone")
    twin = trainer.twin(plan, seed=3 * seed + 3, title="from-scratch twin")
    return Report(settings, seed, plan, parent, fused, ensemble, small, twin)


if __name__ == "__main__":
    sys.exit(main())
