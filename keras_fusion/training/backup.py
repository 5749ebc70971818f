"""`BackupAndRestore`: resumes a run with growths, whenever it was killed."""

import math
import os
import shutil
import warnings
from pathlib import Path
from typing import Any, cast

import keras
import numpy as np

from keras_fusion.errors import FusionError, is_integer, is_path, require
from keras_fusion.models import host, private, processes
from keras_fusion.training import files, journal, matching
from keras_fusion.training.journal import Entry
from keras_fusion.training.record import Change

_WEIGHTS, _STATE = "model.weights.h5", "state.json"


@keras.saving.register_keras_serializable(package="keras_fusion")
class BackupAndRestore(keras.callbacks.BackupAndRestore):
    """Keras's `BackupAndRestore`, which knows of growths and survives a kill.

    A script that builds the small model and starts again after a crash continues with
    the grown model, with the events, ramps and schedule of its `GrowModel` (or
    `DeepFusion`) and `AnnealBlockNorms` callbacks. Where it stands in the list of
    callbacks does not matter. Each backup is a new folder, which takes its name when all
    of it is on the disk: after a kill at any moment the old backup is whole, or the new
    one.

    As with Keras, the data starts again at the beginning of the epoch. So a resumed run
    is equal to the uninterrupted one to the bit, given deterministic operations, if
    backups are made at epochs' ends and each epoch's data is the same in a new process;
    see docs/resume.md.

    Args:
        backup_dir: path of a folder on a local disk, which nothing else is kept in.
        save_freq: `"epoch"`, or int. After how many batches to back up. Defaults to
            `"epoch"`.
        double_checkpoint: bool. Whether to keep the last but one backup as well, in case
            the disk damages the last. Defaults to `False`.
        delete_checkpoint: bool. Whether to remove the folder when training is over.
            Defaults to `True`.

    Raises:
        FusionError: for arguments that cannot work; and when training begins, if the
            backup is of a run with other callbacks or another model.

    Example:

    >>> import keras, keras_fusion, numpy as np, tempfile
    >>> model = keras.Sequential(
    ...     [keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(1)]
    ... )
    >>> model.compile("adam", "mse")
    >>> callbacks = [
    ...     keras_fusion.BackupAndRestore(tempfile.mkdtemp()),
    ...     keras_fusion.DeepFusion(at_epoch=1, verbose=0),
    ... ]
    >>> x = np.ones((8, 4), "float32")
    >>> _ = model.fit(x, x[:, :1], epochs=2, verbose=0, callbacks=callbacks)
    >>> model.layers[0].units
    16
    """

    def __init__(
        self,
        backup_dir: str | os.PathLike,
        save_freq: str | int = "epoch",
        double_checkpoint: bool = False,
        delete_checkpoint: bool = True,
    ):
        require(
            is_path(backup_dir) and "://" not in str(backup_dir),
            "backup_dir",
            backup_dir,
            "the path of a folder on a local disk, where a rename is one step",
        )
        require(
            save_freq == "epoch" or is_integer(save_freq, 1),
            "save_freq",
            save_freq,
            "'epoch' or a positive integer",
        )
        for name, value in (
            ("double_checkpoint", double_checkpoint),
            ("delete_checkpoint", delete_checkpoint),
        ):
            require(isinstance(value, bool), name, value, "True or False")
        super().__init__(
            os.fspath(backup_dir),
            # Keras knows no other integers than Python's.
            save_freq if isinstance(save_freq, str) else int(save_freq),  # pyright: ignore
            double_checkpoint=double_checkpoint,
            delete_checkpoint=delete_checkpoint,
        )
        self._folder = Path(backup_dir)
        # Batches of the epoch under way, and since the last backup.
        self._batch, self._since = -1, 0

    @property
    def model(self) -> keras.Model:
        """The model in training."""
        return cast(keras.Model, super().model)

    # Restoring.

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Resumes from the last backup, if there is one."""
        with private.scope(self.model):
            alone = processes.is_alone()
        if not alone:
            raise FusionError(
                "This run has several processes, and a backup is written by one. Use "
                "GrowModel(record=...) with a checkpoint that all of them write, and "
                "replay the growths in each."
            )
        files.remove_unfinished(self._folder)
        self._since = 0
        found = self._backups()
        for folder in reversed(found):
            try:
                state = _read(folder)
            except (FusionError, OSError) as error:
                if folder is found[0]:
                    raise
                warnings.warn(f"{error} Resuming from the backup before.", stacklevel=2)
            else:
                self._restore(folder, state)
                break

    def _restore(self, folder: Path, state: dict[str, Any]) -> None:
        model, where = self.model, f"The backup {folder}"
        authors = journal.of(model).authors(self)
        asked = {"callbacks": [author.script() for author in authors]}
        saved = {"callbacks": [held["script"] for held in state["callbacks"]]}
        matching.check_script(saved, asked, where)
        entries = [
            Entry(None if by is None else authors[by], Change.from_plain(change))
            for by, change in zip(state["authors"], state["changes"], strict=True)
        ]
        changes = [entry.change for entry in entries]
        done = matching.changes_behind_model(changes, model, where)
        _check_authors(entries[done:], where)
        journal.of(model).resume(model, entries, done, authors)
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        model.load_weights(folder / _WEIGHTS)
        for variable, value in zip(_random(model), state["random"], strict=True):
            variable.assign(np.array(value, variable.dtype))
        private.start_at_epoch(model, state["epoch"])
        for author, held in zip(authors, state["callbacks"], strict=True):
            author.set_state(held["progress"])

    # Backing up.

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Sets the journal's clock."""
        journal.of(self.model).begin_epoch(self.model, epoch)
        self._batch = -1

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Backs up, if it is time."""
        self._since += batch - self._batch
        self._batch = batch
        if not isinstance(self.save_freq, str) and self._since >= self.save_freq:
            # What changes at this moment belongs to it.
            journal.of(self.model).end_batch(self, batch)
            self._back_up(journal.of(self.model).clock.epochs)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Backs up, if it is time."""
        if self.save_freq == "epoch":
            journal.of(self.model).end_epoch(self, epoch, logs)
            self._back_up(epoch + 1)

    def _back_up(self, epoch: int) -> None:
        self._since = 0
        private.sync(self.model)
        old = self._backups()
        number = 1 + (_number(old[-1]) if old else 0)
        self._folder.mkdir(parents=True, exist_ok=True)
        _check_room(self.model, self._folder)
        with files.whole_folder(self._folder / f"backup-{number}") as folder:
            self.model.save_weights(folder / _WEIGHTS)
            files.write_json(folder / _STATE, self._state(epoch, folder))
        for folder in old[: -1 if self.double_checkpoint else None]:
            files.remove_folder(folder)

    def _state(self, epoch: int, folder: Path) -> dict:
        authors = journal.of(self.model).authors(self)
        entries = journal.of(self.model).entries
        return {
            "epoch": epoch,
            "sha256": files.sha256(folder / _WEIGHTS),
            "random": [host.read(v).tolist() for v in _random(self.model)],
            "callbacks": [
                {"script": author.script(), "progress": author.get_state()}
                for author in authors
            ],
            "authors": [
                authors.index(entry.author) if entry.author in authors else None
                for entry in entries
            ],
            "changes": [entry.change.to_plain() for entry in entries],
        }

    def on_train_end(self, logs: dict | None = None) -> None:
        """Removes the backups, if they are to be."""
        # A later fit() starts where it is told.
        private.start_at_epoch(self.model, None)
        if self.delete_checkpoint:
            for folder in self._backups():
                files.remove_folder(folder)
            shutil.rmtree(self._folder, ignore_errors=True)

    def _backups(self) -> list[Path]:
        """The folders of the backups, the latest last."""
        return sorted(self._folder.glob("backup-*"), key=_number)

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {
            "backup_dir": self.backup_dir,
            "save_freq": self.save_freq,
            "double_checkpoint": self.double_checkpoint,
            "delete_checkpoint": self.delete_checkpoint,
        }

    @classmethod
    def from_config(cls, config: dict) -> "BackupAndRestore":
        """Rebuilds the callback from `get_config`."""
        return cls(**config)


def _check_authors(entries: list[Entry], where: str) -> None:
    """Checks that the changes to be done again have authors in this `fit`."""
    for entry in entries:
        if entry.author is None:
            raise FusionError(
                f"{where} is of a model that was changed at step {entry.change.step} by a "
                "callback that is not in this fit(). Change the model in the same way "
                "before, as in the run that was cut off."
            )


def _number(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def _read(folder: Path) -> dict[str, Any]:
    """The state of a backup whose files are as they were written."""
    state = files.read_json(folder / _STATE)
    if files.sha256(folder / _WEIGHTS) != state["sha256"]:
        raise FusionError(
            f"{folder / _WEIGHTS} is damaged: its checksum is wrong. Restore it from a "
            f"copy, or delete {folder} to resume from the backup before, if there is one."
        )
    return state


def _check_room(model: keras.Model, folder: Path) -> None:
    """HDF5 may take the process down with it when a disk is full."""
    variables = [*model.variables, *model.optimizer.variables]
    needed = 4 * sum(math.prod(v.shape) for v in variables)  # about
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise FusionError(
            f"The backup of about {needed:,} bytes does not fit in {folder}, where "
            f"{free:,} are free. The one before is whole: free disk space, and start "
            "again."
        )


def _random(model: keras.Model) -> list:
    """The states of dropout and its like, which a file of weights does not hold."""
    held = {id(v) for v in (*model.weights, *model.metrics_variables)}
    return [v for v in model.variables if id(v) not in held]
