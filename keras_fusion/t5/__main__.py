"""The command line: `python -m keras_fusion.t5 --help`."""

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from keras_fusion.errors import FusionError
from keras_fusion.t5 import requirements, strategy

_MODULE = "keras_fusion.t5"

_EPILOG = """
A whole table at tiny scale, some hours on two cores, or less with a second process
that is started in the same way:
  python -m keras_fusion.t5 pretrain --scale tiny
  python -m keras_fusion.t5 finetune --scale tiny
  python -m keras_fusion.t5 table --scale tiny
  python -m keras_fusion.t5 plot --scale tiny
One tree, on all devices of a machine:
  python -m keras_fusion.t5 pretrain --scale small --strategy mirrored --tree 'M(S, S)'
Any command can be stopped and run again: it resumes.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: sequence of strings. By default those of the command line.

    Returns:
        int. The exit status: 0; 2 if the command cannot work with its arguments, files or
        machine, after one line that says why; or 130 after an interrupt.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        options = _parser().parse_args(words)
    except SystemExit as stop:
        return int(stop.code or 0)
    try:
        requirements.check_packages(_MODULE)
        _choose_backend(options.backend, words)
        with warnings.catch_warnings():
            # keras-hub's T5 takes its padding masks as inputs of their own.
            warnings.filterwarnings("ignore", message=r".*does not support masking")
            _run(options)
    except KeyboardInterrupt:
        _say("interrupted. The same command resumes.")
        return 130
    except (FusionError, ImportError, OSError) as error:
        if os.environ.get("KERAS_FUSION_DEBUG"):
            raise
        _say(error)
        return 2
    return 0


def _say(text):
    """Writes one line to the error stream."""
    print(f"{_MODULE}: {' '.join(str(text).split())}", file=sys.stderr)


def _choose_backend(backend, words):
    """Sets the backend before Keras is imported, or else starts again with it."""
    if backend is None:
        return
    if "keras" not in sys.modules:
        os.environ["KERAS_BACKEND"] = backend
        return
    import keras

    if backend != keras.config.backend():
        command = [sys.executable, "-m", _MODULE, *words]
        os.execve(sys.executable, command, os.environ | {"KERAS_BACKEND": backend})


def _run(options):
    # Only now: it takes a moment, and --help is to answer at once.
    from keras_fusion.t5 import commands

    words = {k: v for k, v in vars(options).items() if k not in ("command", "backend")}
    getattr(commands, options.command)(commands.Options(**words))


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{_MODULE}: {message}. See `{self.prog} --help`.\n")


def _parser():
    parser = _Parser(
        prog=f"python -m {_MODULE}",
        description="Pre-trains T5s by span corruption in trees of fusions, fine-tunes "
        "them, and writes tables and curves of the results.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    pretrain = _command(
        commands, "pretrain", "train the recipe's trees; resumes if run again"
    )
    _trees(pretrain)
    pretrain.add_argument(
        "--only",
        action="store_true",
        help="train the roots of --tree alone; their parents must be there",
    )
    pretrain.add_argument(
        "--dry-run", action="store_true", help="list the trainings and their status"
    )
    pretrain.add_argument(
        "--strategy",
        choices=strategy.STRATEGIES,
        default="none",
        help="which devices to use; with JAX, mirrored and tpu both mean all of them",
    )
    finetune = _command(commands, "finetune", "fine-tune what has been trained")
    _trees(finetune)
    finetune.add_argument(
        "--task",
        action="append",
        dest="tasks",
        default=[],
        help="such as builtin or cola; may be given again (default: the recipe's)",
    )
    _plan(commands)
    for name, text in (
        ("table", "collect the results, and write them as tables in Markdown"),
        ("plot", "draw what `table` has collected"),
    ):
        command = _command(commands, name, text)
        command.add_argument("--results", type=Path, help="JSON file of the results")
        command.add_argument(
            "--docs",
            type=Path,
            help="page that gets the tables between its marks, and the pictures beside it",
        )
    return parser


def _plan(commands):
    """The command that predicts."""
    plan = _command(
        commands,
        "plan",
        "predict what the recipe's trees cost and save; train nothing",
    )
    _choice_of_trees(plan)
    plan.add_argument(
        "--devices", type=_count, default=1, help="of each training (default: 1)"
    )
    plan.add_argument(
        "--peak-tflops",
        type=_positive,
        default=197.0,
        help="of a device (default: 197, a TPU v5e in bfloat16)",
    )
    plan.add_argument(
        "--utilization",
        type=_share,
        default=0.4,
        help="share of the peak that a training uses (default: 0.4)",
    )
    plan.add_argument(
        "--law",
        type=Path,
        help="JSON file with the constants of a keras_fusion.ScalingLaw (default: two "
        "published fits)",
    )
    plan.add_argument(
        "--mixing",
        type=float,
        nargs=2,
        default=(0.0, 0.0),
        metavar=("LOW", "HIGH"),
        help="see keras_fusion.plan_growth (default: 0 0)",
    )
    plan.add_argument(
        "--docs", type=Path, help="page that gets the tables between its marks"
    )


def _command(commands, name, text):
    command = commands.add_parser(name, help=text, description=text)
    command.add_argument(
        "--scale",
        default="tiny",
        help="recipe: tiny, small, paper, or a TOML file (default: tiny)",
    )
    command.add_argument(
        "--output", type=Path, help="folder of the trainings (default: t5_SCALE)"
    )
    command.add_argument(
        "--backend", choices=("tensorflow", "jax"), help="default: KERAS_BACKEND"
    )
    command.add_argument(
        "--source", default="", help="text: standard-library, c4/en, or a folder"
    )
    return command


def _choice_of_trees(command):
    command.add_argument(
        "--tree",
        action="append",
        dest="trees",
        default=[],
        help="such as 'M(S, S)'; may be given again (default: the recipe's tables)",
    )


def _trees(command):
    _choice_of_trees(command)
    command.add_argument(
        "--seeds",
        type=_count,
        help="at most so many runs (default: the recipe's; 1 with --tree)",
    )


def _count(text):
    """An integer of at least 1."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected an integer above 0, not {text!r}")
    return number


def _positive(text):
    """A number above 0."""
    number = _number(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, not {text!r}")
    return number


def _share(text):
    """A number above 0 and at most 1."""
    number = _number(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(
            f"expected a number above 0 and at most 1, not {text!r}"
        )
    return number


def _number(text):
    try:
        return float(text)
    except ValueError:
        return float("nan")


if __name__ == "__main__":
    sys.exit(main())
