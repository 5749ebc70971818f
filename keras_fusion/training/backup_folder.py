"""The folder of a run's backups: which of its files are backups, and who may use it."""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from keras_fusion.errors import FusionError
from keras_fusion.training import fields, files, record
from keras_fusion.training.fields import WrongFieldError

try:
    import fcntl
except ImportError:  # A system without such locks.
    fcntl = None

WEIGHTS, STATE = "model.weights.h5", "state.json"
_OWN = {WEIGHTS, STATE}
_NAME = re.compile(r"backup-(\d{1,15})")

_AUTHOR = {"script": fields.is_dict, "progress": fields.is_dict}
_BODY = {
    "epoch": fields.is_count,
    "sha256": fields.is_digest,
    "random": fields.is_list,
    "callbacks": fields.list_of(fields.is_dict),
    "authors": fields.list_of(fields.none_or(fields.is_count)),
    "changes": fields.is_list,
    # Version 0.1.0 did not write them.
    "run": fields.is_dict,
    "behind": fields.is_count,
}

# The descriptors of the folders that this process has locked, by process and folder.
_LOCKED: dict[tuple[int, int, int], int] = {}


class BackupFolder:
    """A folder in which a run has its backups, perhaps among other files.

    Args:
        path: `Path` of the folder.
    """

    def __init__(self, path: Path):
        self.path = path
        self._locked: tuple[int, int, int] | None = None

    # Who may use it.

    def lock(self) -> None:
        """Keeps other processes out; the folder is made if it is not there.

        The system unlocks it when the process ends, however it does.

        Raises:
            FusionError: if another process has it, or it cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise FusionError(
                f"`backup_dir` {self.path} cannot be used ({error}). Name a folder on a "
                "local disk."
            ) from error
        key = self._locked = _key(descriptor)
        if key in _LOCKED or fcntl is None:
            os.close(descriptor)
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise FusionError(
                f"Another process uses `backup_dir` {self.path}. Two runs would overwrite "
                "each other's backups: end the other process, or name another folder."
            ) from None
        except OSError:  # The file system has no locks.
            os.close(descriptor)
            return
        _LOCKED[key] = descriptor

    def unlock(self) -> None:
        """Lets other processes in; the folder itself may be gone by now."""
        if self._locked in _LOCKED:
            os.close(_LOCKED.pop(self._locked))
        self._locked = None

    # What is in it.

    def backups(self) -> list[Path]:
        """The folders of the backups, the latest last; other files are passed over."""
        if not self.path.is_dir():
            return []
        found = [path for path in self.path.iterdir() if _is_backup(path)]
        return sorted(found, key=_number)

    def next(self) -> Path:
        """The path of the next backup."""
        taken = [path for path in self.path.iterdir() if _NAME.fullmatch(path.name)]
        return self.path / f"backup-{1 + max(map(_number, taken), default=0)}"

    def remove(self, backup: Path) -> None:
        """Removes a backup; a kill leaves it whole, or without its name."""
        if {path.name for path in backup.iterdir()} <= _OWN:
            files.remove_folder(backup)
            return
        for name in _OWN:  # Somebody has put files of their own beside.
            (backup / name).unlink(missing_ok=True)

    def remove_unfinished(self) -> None:
        """Removes what killed processes have left half written or half removed."""
        for path in list(self.path.iterdir()):
            if re.fullmatch(rf"unfinished-\d+-{_NAME.pattern}", path.name):
                shutil.rmtree(path, ignore_errors=True)

    def remove_all(self) -> None:
        """Removes all backups; and the folder, if nothing else is in it."""
        if not self.path.is_dir():
            return
        for backup in self.backups():
            self.remove(backup)
        self.remove_unfinished()
        if not self._is_in_use():
            with contextlib.suppress(OSError):
                self.path.rmdir()

    def _is_in_use(self) -> bool:
        """Whether the script works in the folder, or in one below it."""
        here, path = Path.cwd().resolve(), self.path.resolve()
        return path == here or path in here.parents


def _key(descriptor: int) -> tuple[int, int, int]:
    status = os.fstat(descriptor)
    return os.getpid(), status.st_dev, status.st_ino


def _is_backup(path: Path) -> bool:
    named = _NAME.fullmatch(path.name) is not None
    return (
        named
        and path.is_dir()
        and not path.is_symlink()
        and any((path / name).exists() for name in _OWN)
    )


def _number(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def read(folder: Path) -> dict[str, Any]:
    """The state of a backup whose files are as they were written.

    Returns:
        Dict of the fields, the changes as list of `Change`.

    Raises:
        FusionError: naming the file that is not as it was written.
    """
    path = folder / STATE
    state = files.read_json(path)
    with named(path):
        fields.check(state, _BODY, "the backup", optional=("run", "behind"))
        for i, author in enumerate(state["callbacks"]):
            fields.check(author, _AUTHOR, f"callback {i}")
        if len(state["authors"]) != len(state["changes"]):
            raise WrongFieldError("it has not as many authors as changes")
        strange = [
            by for by in state["authors"] if by and by >= len(state["callbacks"])
        ]
        if strange:
            raise WrongFieldError(f"authors {strange} are no callbacks of it")
        state["changes"] = record.changes_of(state["changes"])
        state["random"] = [_integers(value) for value in state["random"]]
    digest = files.sha256_of(folder / WEIGHTS)
    if digest != state["sha256"]:
        raise FusionError(
            f"{folder / WEIGHTS} is damaged: its checksum is wrong. Restore it from a "
            f"copy, or delete {folder} to resume from the backup before, if there is one."
        )
    return state


def _integers(value: Any) -> np.ndarray:
    """The state of a random generator."""
    try:
        array = np.array(value)
    except ValueError as error:
        raise WrongFieldError(
            f"a random generator's state is ragged ({error})"
        ) from None
    if array.dtype.kind not in "iu":
        text = fields.shortened(value)
        raise WrongFieldError(f"a random generator's state is {text}")
    return array


@contextlib.contextmanager
def named(path: os.PathLike) -> Iterator[None]:
    """Opens a scope in which the error of a wrong field names the file.

    Raises:
        FusionError: in place of `WrongFieldError`.
    """
    try:
        yield
    except WrongFieldError as error:
        raise FusionError(
            f"{os.fspath(path)} is not what keras_fusion writes: {error}. Restore it from "
            "a copy, or delete it and train from the start."
        ) from error
