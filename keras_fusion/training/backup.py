"""`BackupAndRestore`: resumes a run with growths, whenever it was killed."""

import contextlib
import math
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import h5py
import keras
import numpy as np

from keras_fusion.errors import FusionError, is_integer, is_path, require
from keras_fusion.models import host, private, processes
from keras_fusion.models.names import helpful
from keras_fusion.training import (
    backup_folder,
    circumstances,
    files,
    journal,
    matching,
    swap,
)
from keras_fusion.training.backup_folder import STATE, WEIGHTS, BackupFolder
from keras_fusion.training.fields import WrongFieldError
from keras_fusion.training.journal import Entry


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
        backup_dir: path of a folder on a local disk. One process at a time uses it; other
            files in it are left alone.
        save_freq: `"epoch"`, or int. After how many batches to back up. Defaults to
            `"epoch"`.
        double_checkpoint: bool. Whether to keep the last but one backup as well, in case
            the disk damages the last. Defaults to `False`.
        delete_checkpoint: bool. Whether to remove the backups when training is over, and
            the folder if it is empty then. Defaults to `True`.

    Raises:
        FusionError: for arguments that cannot work; and when training begins, if the
            backup is damaged or of a run with other callbacks, another model, other
            options of the optimizer or another loss, or if another process uses the
            folder. Another learning rate and other sizes of the data are warned of.

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

    @helpful
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
        self._folder = BackupFolder(Path(backup_dir))
        self._run: dict = {}
        self._behind = 0  # changes that the model had when the run began
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
        self._folder.lock()
        self._folder.remove_unfinished()
        self._since = 0
        self._describe()
        found = self._folder.backups()
        for backup in reversed(found):
            try:
                state = backup_folder.read(backup)
            except FusionError as error:
                if backup is found[0]:
                    raise
                warnings.warn(f"{error} Resuming from the backup before.", stacklevel=2)
            else:
                self._restore(backup, state)
                break

    def _describe(self) -> None:
        """Describes the run as the script at hand begins it."""
        self._run = circumstances.of(self.model, private.fit_data())
        self._behind = len(journal.of(self.model).entries)

    def _restore(self, folder: Path, state: dict[str, Any]) -> None:
        model, where = self.model, f"The backup {folder}"
        authors = journal.of(model).authors(self)
        asked = {"callbacks": [author.script() for author in authors]}
        saved = {"callbacks": [held["script"] for held in state["callbacks"]]}
        matching.check_script(saved, asked, where)
        entries = [
            Entry(None if by is None else authors[by], change)
            for by, change in zip(state["authors"], state["changes"], strict=True)
        ]
        changes = [entry.change for entry in entries]
        if len(journal.of(model).entries) > len(entries):
            raise FusionError(
                f"{where} is from before the last growth of {model.name!r}, which has "
                "grown since. Build the model anew, as at the beginning of the run, and "
                "call fit() with it."
            )
        done = matching.changes_behind_model(changes, model, where)
        same_stage = state.get("behind", 0) == done
        run = state.get("run", {})
        circumstances.check(run, self._run, where, same_stage=same_stage)
        _check_authors(entries[done:], where)
        if run and same_stage:
            self._run, self._behind = run, done
        with matching.named(where):
            journal.of(model).resume(model, entries, done, authors)
        with _named(folder / WEIGHTS):
            _load(model, folder / WEIGHTS, state["random"])
        private.start_at_epoch(model, state["epoch"])
        with _named(folder / STATE):
            for author, held in zip(authors, state["callbacks"], strict=True):
                author.set_state(held["progress"])

    # Backing up.

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Sets the journal's clock."""
        # A later fit() starts where it is told.
        private.start_at_epoch(self.model, None)
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
        old = self._folder.backups()
        self._folder.path.mkdir(parents=True, exist_ok=True)
        _check_room(self.model, self._folder.path)
        with files.whole_folder(self._folder.next()) as folder:
            self.model.save_weights(folder / WEIGHTS)
            files.write_json(folder / STATE, self._state(epoch, folder))
        for backup in old[: -1 if self.double_checkpoint else None]:
            self._folder.remove(backup)

    def _state(self, epoch: int, folder: Path) -> dict:
        authors = journal.of(self.model).authors(self)
        entries = journal.of(self.model).entries
        return {
            "epoch": epoch,
            "sha256": files.sha256(folder / WEIGHTS),
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
            "run": self._run,
            "behind": self._behind,
        }

    def on_train_end(self, logs: dict | None = None) -> None:
        """Removes the backups, if they are to be."""
        private.start_at_epoch(self.model, None)
        if self.delete_checkpoint:
            self._folder.remove_all()
        self._folder.unlock()

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


def warn_of_keras_backup() -> None:
    """Warns if a `BackupAndRestore` of Keras is in the `fit` that begins now."""
    for callback in private.callbacks_of_fit():
        ours = isinstance(callback, BackupAndRestore)
        if isinstance(callback, keras.callbacks.BackupAndRestore) and not ours:
            warnings.warn(
                "Keras's BackupAndRestore cannot resume a run after a growth: the script "
                "builds the small model, and the backup is of the bigger one. Use "
                "keras_fusion.BackupAndRestore, or give the callback that grows the model "
                "a `record` in the folder of the backup (docs/resume.md).",
                stacklevel=3,
            )


def _check_authors(entries: list[Entry], where: str) -> None:
    """Checks that the changes to be done again have authors in this `fit`."""
    for entry in entries:
        if entry.author is None:
            raise FusionError(
                f"{where} is of a model that was changed at step {entry.change.step} by a "
                "callback that is not in this fit(). Change the model in the same way "
                "before, as in the run that was cut off."
            )


def _load(model: keras.Model, path: Path, random: list) -> None:
    """Gives a model the values that a backup holds."""
    states = _random(model)
    found = [tuple(np.shape(value)) for value in random]
    expected = [tuple(variable.shape) for variable in states]
    if found != expected:
        raise ValueError(f"random generators {found} in place of {expected}")
    swap.build_optimizer(model)
    # Keras would leave an optimizer of another number of variables as it is.
    own = len(model.optimizer.variables)
    with h5py.File(path) as file:
        held: Any = file.get("optimizer/vars")
        saved = own if held is None else len(held)
    if saved != own:
        raise ValueError(f"the optimizer's state has {saved} variables, not {own}")
    model.load_weights(path)
    for variable, value in zip(states, random, strict=True):
        variable.assign(np.array(value, variable.dtype))


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Opens a scope in which errors name the file that is read.

    Raises:
        FusionError: in place of any other exception.
    """
    try:
        yield
    except FusionError as error:
        if not isinstance(error, WrongFieldError):
            raise
        with backup_folder.named(path):
            raise
    except Exception as error:
        text = str(error)[:1000]
        raise FusionError(
            f"{path} cannot be loaded ({type(error).__name__}: {text}). Build the model "
            "as in the run that was cut off, or delete the backup to start from the "
            "beginning."
        ) from error


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
