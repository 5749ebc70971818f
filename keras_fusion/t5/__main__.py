"""The command line: `python -m keras_fusion.t5 --help`."""

import argparse
import os
import sys
import warnings
from pathlib import Path

import keras

from keras_fusion.errors import FusionError
from keras_fusion.t5 import requirements, strategy

_EPILOG = """
A whole table at tiny scale, some hours on two cores, or less with a second process
that is started in the same way:
  python -m keras_fusion.t5 pretrain --scale tiny
  python -m keras_fusion.t5 finetune --scale tiny
  python -m keras_fusion.t5 table --scale tiny
  python -m keras_fusion.t5 plot --scale tiny
One tree, on all devices of a machine:
  python -m keras_fusion.t5 pretrain --scale small --strategy mirrored --tree 'M(S, S)'
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: list of strings. By default those of the command line.

    Returns:
        int. The exit status.
    """
    words = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(words)
    if options.backend not in (None, keras.config.backend()):
        _start_again(options.backend, words)
    try:
        requirements.check("keras_fusion.t5")
        with warnings.catch_warnings():
            # keras-hub's T5 takes its padding masks as inputs of their own.
            warnings.filterwarnings("ignore", message=r".*does not support masking")
            _run(options)
    except (FusionError, ImportError, OSError, RuntimeError, ValueError) as error:
        if os.environ.get("KERAS_FUSION_DEBUG"):
            raise
        print(f"keras_fusion.t5: {error}", file=sys.stderr)
        return 1
    return 0


def _start_again(backend, words):
    """Keras takes its backend at its import, which is behind us."""
    command = [sys.executable, "-m", "keras_fusion.t5", *words]
    os.execve(sys.executable, command, os.environ | {"KERAS_BACKEND": backend})


def _run(options):
    # Only now: it takes seconds, and what is missing was to be said before.
    from keras_fusion.t5 import commands

    words = {k: v for k, v in vars(options).items() if k not in ("command", "backend")}
    getattr(commands, options.command)(commands.Options(**words))


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m keras_fusion.t5",
        description="Pre-trains T5s by span corruption in trees of fusions, fine-tunes "
        "them, and draws up tables and curves of the results.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    pretrain = _command(
        commands, "pretrain", "train the recipe's trees; goes on if run again"
    )
    _trees(pretrain)
    pretrain.add_argument(
        "--only", action="store_true", help="the trees' roots, whose parents are there"
    )
    pretrain.add_argument(
        "--dry-run", action="store_true", help="list the trainings and how they stand"
    )
    pretrain.add_argument(
        "--strategy",
        choices=strategy.STRATEGIES,
        default="none",
        help="which devices; with JAX, mirrored and tpu are all there are",
    )
    finetune = _command(commands, "finetune", "fine-tune what has been trained")
    _trees(finetune)
    finetune.add_argument(
        "--task",
        action="append",
        dest="tasks",
        default=[],
        help="such as builtin or cola; may be given again",
    )
    for name, text in (
        ("table", "gather the results, and write them as tables in Markdown"),
        ("plot", "draw what `table` has gathered"),
    ):
        command = _command(commands, name, text)
        command.add_argument("--results", type=Path, help="JSON file of the results")
        command.add_argument(
            "--docs", type=Path, help="page between whose marks to put the tables"
        )
    return parser


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


def _trees(command):
    command.add_argument(
        "--tree",
        action="append",
        dest="trees",
        default=[],
        help="such as 'M(S, S)'; may be given again (default: the recipe's tables)",
    )
    command.add_argument(
        "--seeds",
        type=int,
        help="at most so many runs (default: the recipe's; 1 with --tree)",
    )


if __name__ == "__main__":
    sys.exit(main())
