"""`BackupAndRestore`: a run with growths is taken up again, killed whenever it was."""

import hashlib
import math
import shutil
import warnings
from pathlib import Path

import keras
import numpy as np

from keras_fusion.errors import FusionError
from keras_fusion.models import host, private, processes
from keras_fusion.training import record, runs, swap
from keras_fusion.training.files import remove_folder, remove_unfinished, whole_folder
from keras_fusion.training.record import Change
from keras_fusion.training.recording import ramps_of

_WEIGHTS, _STATE = "model.weights.h5", "state.json"


@keras.saving.register_keras_serializable(package="keras_fusion")
class BackupAndRestore(keras.callbacks.BackupAndRestore):
    """Keras's `BackupAndRestore`, which knows of growths and survives a kill.

    A script that builds the small model and starts again after a crash goes on in the
    grown model, with the events, ramps and schedule of its `GrowModel` (or `DeepFusion`)
    and `AnnealBlockNorms` callbacks. Where it stands in the list of callbacks does not
    matter. Each backup is a new folder, which takes its name when all of it is on the
    disk: after a kill at any moment the old backup is whole, or the new one.

    Where the data goes on is by Keras's rules: at the start of the epoch. So a run that
    is taken up again is the same to the bit, given deterministic operations, if backups
    are made at epochs' ends and each epoch's data is the same in a new process; see
    docs/resume.md.

    Args:
        backup_dir: path of a folder on a local disk, which nothing else is kept in.
        save_freq: `"epoch"`, or after how many batches. Defaults to `"epoch"`.
        double_checkpoint: bool. Keeps the last but one backup as well, in case that the
            disk damages the last. Defaults to `False`.
        delete_checkpoint: bool. Removes the folder when training is over. Defaults to
            `True`.

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
        backup_dir,
        save_freq="epoch",
        double_checkpoint=False,
        delete_checkpoint=True,
    ):
        if "://" in str(backup_dir):
            raise FusionError(
                "`backup_dir` must be a folder on a local disk, where a rename is one "
                f"step. Received: backup_dir={backup_dir!r}."
            )
        batches = isinstance(save_freq, int) and not isinstance(save_freq, bool)
        if save_freq != "epoch" and not (batches and save_freq > 0):
            raise FusionError(
                "`save_freq` must be 'epoch' or a positive integer. Received: "
                f"save_freq={save_freq!r}."
            )
        super().__init__(
            str(backup_dir),
            save_freq=save_freq,
            double_checkpoint=double_checkpoint,
            delete_checkpoint=delete_checkpoint,
        )
        self._folder = Path(backup_dir)

    # Restoring.

    def on_train_begin(self, logs=None):
        """Goes on from the last backup, if there is one."""
        with private.scope(self.model):
            alone = processes.is_alone()
        if not alone:
            raise FusionError(
                "This run has several processes, and a backup is written by one. Use "
                "GrowModel(record=...) with a checkpoint that all of them write, and "
                "replay the growths in each."
            )
        remove_unfinished(self._folder)
        self._since = 0
        found = self._backups()
        for folder in reversed(found):
            try:
                state = _read(folder)
            except (FusionError, OSError) as error:
                if folder is found[0]:
                    raise
                warnings.warn(f"{error} Going on from the one before.", stacklevel=2)
            else:
                self._restore(folder, state)
                break

    def _restore(self, folder, state):
        model, run = self.model, runs.of(self.model)
        members = run.of_fit(self)
        asked = {"callbacks": [member.script() for member in members]}
        saved = {"callbacks": [held["script"] for held in state["callbacks"]]}
        record.check_script(saved, asked, f"The backup {folder}")
        authors = [None if by is None else members[by] for by in state["authors"]]
        changes = [Change(**change) for change in state["changes"]]
        done = record.place_of(changes, model, f"The backup {folder}")
        for author, change in list(zip(authors, changes, strict=True))[done:]:
            if author is None:
                raise FusionError(
                    f"The model of the backup {folder} was changed at step {change.step} "
                    "by a callback that is not in this fit(). Bring the model to there "
                    "before, as in the run that was cut off."
                )
            author.do_again(change)
        run.changes = zip(authors, changes, strict=True)
        swap.resume_ramps(model, ramps_of(changes[:done]))
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        model.load_weights(folder / _WEIGHTS)
        for variable, value in zip(_random(model), state["random"], strict=True):
            variable.assign(np.array(value, variable.dtype))
        private.start_at_epoch(model, state["epoch"])
        for member, held in zip(members, state["callbacks"], strict=True):
            pairs = zip(authors, changes, strict=True)
            member.take_up([c for a, c in pairs if member.is_noted(a, c)])
            member.set_progress(held["progress"])

    # Backing up.

    def on_epoch_begin(self, epoch, logs=None):
        """Remembers where it is."""
        self._epoch, self._batch = epoch, -1

    def on_train_batch_end(self, batch, logs=None):
        """Backs up, if it is time."""
        self._since += batch - self._batch
        self._batch = batch
        if self.save_freq != "epoch" and self._since >= self.save_freq:
            for member in runs.of(self.model).of_fit(self):
                member.on_train_batch_end(batch, logs)
            self._back_up(self._epoch)

    def on_epoch_end(self, epoch, logs=None):
        """Backs up, if it is time."""
        if self.save_freq == "epoch":
            # What they do at this moment belongs to it, wherever they are in the list.
            for member in runs.of(self.model).of_fit(self):
                member.on_epoch_end(epoch, logs)
            self._back_up(epoch + 1)

    def _back_up(self, epoch):
        self._since = 0
        private.sync(self.model)
        old = self._backups()
        number = 1 + (_number(old[-1]) if old else 0)
        self._folder.mkdir(parents=True, exist_ok=True)
        _check_room(self.model, self._folder)
        with whole_folder(self._folder / f"backup-{number}") as folder:
            self.model.save_weights(folder / _WEIGHTS)
            record.write(folder / _STATE, self._state(epoch, folder))
        for folder in old[: -1 if self.double_checkpoint else None]:
            remove_folder(folder)

    def _state(self, epoch, folder):
        run = runs.of(self.model)
        members = run.of_fit(self)
        return {
            "epoch": epoch,
            "sha256": _digest(folder / _WEIGHTS),
            "random": [host.read(v).tolist() for v in _random(self.model)],
            "callbacks": [
                {"script": member.script(), "progress": member.get_progress()}
                for member in members
            ],
            "authors": [
                members.index(author) if author in members else None
                for author, _ in run.changes
            ],
            "changes": [vars(change) for _, change in run.changes],
        }

    def on_train_end(self, logs=None):
        """Removes the backups, if they are to be."""
        private.start_at_epoch(
            self.model, None
        )  # A later fit() starts where it is told.
        if self.delete_checkpoint:
            for folder in self._backups():
                remove_folder(folder)
            shutil.rmtree(self._folder, ignore_errors=True)

    def _backups(self):
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
    def from_config(cls, config):
        """Rebuilds the callback from `get_config`."""
        return cls(**config)


def _number(folder):
    return int(folder.name.rpartition("-")[2])


def _read(folder):
    """The state of a backup whose files are as they were written."""
    state = record.read(folder / _STATE)
    if _digest(folder / _WEIGHTS) != state["sha256"]:
        raise FusionError(
            f"{folder / _WEIGHTS} is damaged: its checksum is wrong. Take it from a copy, "
            f"or delete {folder} and go on from the backup before, if there is one."
        )
    return state


def _check_room(model, folder):
    """HDF5 may take the process down with it when a disk is full."""
    variables = [*model.variables, *model.optimizer.variables]
    needed = 4 * sum(math.prod(v.shape) for v in variables)  # about
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise FusionError(
            f"The backup of about {needed:,} bytes does not fit in {folder}, where "
            f"{free:,} are free. The one before is whole: make room, and start again."
        )


def _random(model):
    """The states of dropout and its like, which a file of weights does not hold."""
    held = {id(v) for v in (*model.weights, *model.metrics_variables)}
    return [v for v in model.variables if id(v) not in held]


def _digest(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
