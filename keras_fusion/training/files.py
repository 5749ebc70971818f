"""Files and folders that are whole or not there, whenever the process is killed."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from keras_fusion.errors import FusionError

# Of the JSON files.
VERSION = 1


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


@contextlib.contextmanager
def as_before_on_error(path: Path) -> Iterator[None]:
    """Opens a scope after which a file has its old content, if anything in it failed.

    Args:
        path: `Path` of a file, or of none yet.
    """
    content = path.read_bytes() if path.exists() else None
    try:
        yield
    except BaseException:
        if content is None:
            path.unlink(missing_ok=True)
        elif path.read_bytes() != content:
            with whole(path) as unfinished:
                unfinished.write_bytes(content)
        raise


def remove_folder(path: Path) -> None:
    """Removes a folder such that a kill leaves it whole or without its name."""
    unfinished = _unfinished(path)
    path.rename(unfinished)
    shutil.rmtree(unfinished, ignore_errors=True)


def _unfinished(path: Path) -> Path:
    return path.with_name(f"unfinished-{os.getpid()}-{path.name}")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file that must be there.

    Raises:
        FusionError: naming the file, if it cannot be read.
    """
    try:
        return sha256(path)
    except OSError as error:
        raise FusionError(
            f"{path} cannot be read ({error}). Restore it from a copy, or delete its "
            "folder."
        ) from error


# JSON with a version and a checksum.


def write_json(path: str | os.PathLike, body: dict) -> None:
    """Writes plain data, in one piece."""
    content = {"version": VERSION, "sha256": _checksum(body), "body": body}
    with whole(Path(path)) as unfinished:
        unfinished.write_text(json.dumps(content, indent=1), encoding="utf-8")


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """Reads what `write_json` wrote.

    Raises:
        FusionError: if the file is not there, damaged, or of another version.
    """
    advice = "Restore it from a copy, or delete it and train from the start."
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        version, body, checksum = (content[k] for k in ("version", "body", "sha256"))
        found = _checksum(body)
    except (ValueError, KeyError, TypeError, RecursionError, OSError) as error:
        raise FusionError(
            f"{path} is damaged: its JSON cannot be read ({error!r:.300}). {advice}"
        ) from error
    if version != VERSION:
        raise FusionError(
            f"{path} has version {str(version)[:20]}, and this keras_fusion reads "
            f"version {VERSION}. Resume with the keras_fusion that wrote it."
        )
    if checksum != found or not isinstance(body, dict):
        raise FusionError(f"{path} is damaged: its checksum is wrong. {advice}")
    return body


def _checksum(body: dict) -> str:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
