"""Files and folders that are there whole or not at all, whenever the process is killed."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Gives a path to write to, which takes the place of `path` at the end.

    Args:
        path: `Path`. Folders above it are made.

    Yields:
        `Path` in the same folder, with the same suffix.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = _unfinished(path)
    try:
        yield unfinished
        _sync(unfinished)  # on the disk before the name is
        unfinished.replace(path)
        _sync(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Gives an empty folder to fill, which becomes `path` at the end.

    Args:
        path: `Path` that does not exist yet. Folders above it are made.

    Yields:
        `Path` of a folder beside it.
    """
    unfinished = _unfinished(path)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        for inside in [*unfinished.rglob("*"), unfinished]:
            _sync(inside)
        unfinished.rename(path)
        _sync(path.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Removes a folder such that a kill leaves it whole or without its name."""
    unfinished = _unfinished(path)
    path.rename(unfinished)
    shutil.rmtree(unfinished, ignore_errors=True)


def remove_unfinished(folder: Path) -> None:
    """Removes what killed processes left in a folder that nobody else writes to."""
    for left in folder.glob("unfinished-*"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def _unfinished(path):
    return path.with_name(f"unfinished-{os.getpid()}-{path.name}")


def _sync(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
