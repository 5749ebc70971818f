"""Files that are there whole or not at all, whenever the process is killed."""

import contextlib
import os
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
    unfinished = path.with_name(f"unfinished-{os.getpid()}-{path.name}")
    try:
        yield unfinished
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())  # on the disk before the name is
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
