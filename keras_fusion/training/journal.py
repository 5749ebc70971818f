"""The journal of a model: which callbacks change it in training, and what they changed.

A change is announced before it happens (`Journal.announced`), so that it is on the disk
when the model has it, and entered afterwards (`Pending.commit`). A process that is killed
anywhere in between leaves a run that can be resumed.
"""

import contextlib
import dataclasses
import os
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import keras

from keras_fusion import graft
from keras_fusion.errors import FusionError, GrowthError
from keras_fusion.models import private
from keras_fusion.training import ramps, swap
from keras_fusion.training.learning_rate import Ramp
from keras_fusion.training.record import GROWTH, STOCK_NORMS, Change, plain


class Author:
    """A callback that changes the live model, as the journal knows it.

    Args:
        callback: the callback, which holds this object.
        change_if_due: function that is called at every moment, with the epoch's logs or
            with `None` after a batch, and changes the model if it is time.
    """

    def __init__(self, callback: Any, change_if_due: Callable[[dict | None], None]):
        self.callback = callback
        self.change_if_due = change_if_due

    @property
    def record(self) -> str | os.PathLike | None:
        """The path of the author's record, if it keeps one."""
        return getattr(self.callback, "record", None)

    def script(self) -> dict:
        """The part of the script that a resumed run must share, as plain data."""
        return plain(self.callback.get_config())

    def save(self, changes: list[Change]) -> None:
        """Writes changes to the author's record, if it keeps one.

        Raises:
            OSError: if it cannot be written.
        """

    def kept_record(self) -> contextlib.AbstractContextManager:
        """A scope after which the record is as before, if anything in it failed."""
        return contextlib.nullcontext()

    def grow_again(self, change: Change) -> None:
        """Does a recorded growth of the author again; the weights are loaded later.

        Raises:
            FusionError: if the model would become another one; nothing has changed.
        """
        raise NotImplementedError(f"{type(self.callback).__name__} has no growths.")

    def resume(self, changes: list[Change]) -> None:
        """Continues after the changes that the author has made, or has to record."""

    def get_state(self) -> dict:
        """The state that a backup holds beside weights and changes, as plain data."""
        return {}

    def set_state(self, state: dict) -> None:
        """Continues from what `get_state` returned, when the first epoch begins."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A change in the journal.

    Args:
        author: the `Author`; `None` if it is no longer there, or if any author may do
            the change again.
        change: `Change`.
    """

    author: Author | None
    change: Change


@dataclasses.dataclass
class Clock:
    """The place in training, by the hooks that have been called.

    Args:
        epochs: int. Epochs done.
        batch: int. The last batch of the epoch under way, -1 before the first; `None`
            after the epoch's end.
        raw: int. Batches that the optimizer has seen.
    """

    epochs: int = 0
    batch: int | None = None
    raw: int = 0

    @property
    def epoch(self) -> int:
        """The epoch that this moment belongs to, counted from 1."""
        return self.epochs + (self.batch is not None)

    def begin_epoch(self, epoch: int, raw: int) -> None:
        """Sets the clock to the beginning of an epoch."""
        self.epochs, self.batch, self.raw = epoch, -1, raw

    def end_batch(self, batch: int) -> bool:
        """Moves on to the end of a batch; returns whether that is a new moment."""
        if self.batch is None or batch == self.batch:
            return False
        self.raw += batch - self.batch
        self.batch = batch
        return True

    def end_epoch(self, epoch: int) -> bool:
        """Moves on to the end of an epoch; returns whether that is a new moment."""
        if self.batch is None:
            return False
        self.epochs, self.batch = epoch + 1, None
        return True


class Journal:
    """The changes of one model object, over all calls of `fit`.

    Attributes:
        clock: `Clock`. Where the training stands.
    """

    def __init__(self):
        self.clock = Clock()
        # Neither a callback nor, through it, the model lives longer for being in here.
        self._authors: list[weakref.ref[Author]] = []
        self._entries: list[tuple[weakref.ref[Author] | None, Change]] = []

    # Who changes the model.

    def join(self, author: Author) -> None:
        """Takes an author in, behind those that have joined before."""
        others = [reference for reference in self._authors if reference() is not author]
        self._authors = [*others, weakref.ref(author)]

    def authors(self, callback: keras.callbacks.Callback) -> list[Author]:
        """The authors in the same call of `fit` as a callback, in its order."""
        found = [reference() for reference in self._authors]
        # Keras gives all callbacks of a fit the one dict.
        return [a for a in found if a and a.callback.params is callback.params]

    def check_records(self, callback: keras.callbacks.Callback) -> None:
        """Checks that at most one author of a `fit` keeps a record.

        Raises:
            FusionError: naming the files.
        """
        found = [author.record for author in self.authors(callback)]
        found = [record for record in found if record is not None]
        if len(found) > 1:
            raise FusionError(
                f"Several callbacks of one fit() keep a record: {found}. A record does "
                "not tell in which order they grow the model. Use "
                "keras_fusion.BackupAndRestore instead, and leave `record` out."
            )

    # When.

    def begin_epoch(self, model: keras.Model, epoch: int) -> None:
        """Sets the clock, by the step count that the optimizer knows exactly."""
        self.clock.begin_epoch(epoch, graft.raw_iterations(model.optimizer))

    def end_batch(self, callback: keras.callbacks.Callback, batch: int) -> None:
        """Makes all changes that are due after a batch, on the first call after it.

        Callbacks call this from their own hooks. So all changes of a moment are made at
        the first of these hooks, in the order of the list of callbacks; where a backup
        stands in the list does not matter.
        """
        if self.clock.end_batch(batch):
            self._make_changes(callback, None)

    def end_epoch(
        self, callback: keras.callbacks.Callback, epoch: int, logs: dict | None
    ) -> None:
        """Makes all changes that are due after an epoch, see `end_batch`."""
        if self.clock.end_epoch(epoch):
            self._make_changes(callback, dict(logs or {}))

    def _make_changes(
        self, callback: keras.callbacks.Callback, logs: dict | None
    ) -> None:
        for author in self.authors(callback):
            author.change_if_due(logs)

    # What has changed.

    @property
    def entries(self) -> list[Entry]:
        """All changes so far, in order."""
        return [Entry(author and author(), change) for author, change in self._entries]

    @entries.setter
    def entries(self, entries: list[Entry]) -> None:
        self._entries = [
            (e.author and weakref.ref(e.author), e.change) for e in entries
        ]

    def changes_of(self, author: Author) -> list[Change]:
        """The changes that an author has made or has to record."""
        return [e.change for e in self.entries if _concerns(author, e)]

    @contextlib.contextmanager
    def announced(self, author: Author | None, change: Change) -> Iterator["Pending"]:
        """Opens a scope for a change that the records of this `fit` have from now on.

        If anything in it fails, the records and the journal are as they were before.

        Args:
            author: who is about to change the model; `None` if that is no callback.
            change: `Change`; its ramps are `None` if they are still to be measured.

        Yields:
            The `Pending` change, to be committed when the model has changed.

        Raises:
            GrowthError: if a record cannot be written; the model must not change.
        """
        entries, others = self._entries, self._concerned(author, Entry(author, change))
        with contextlib.ExitStack() as stack:
            try:
                for other in others:
                    stack.enter_context(other.kept_record())
                    other.save([*self.changes_of(other), change])
            except OSError as error:
                raise GrowthError(
                    f"The record {other.record} cannot be written ({error}), so the model "
                    "does not change; it trains on as it was. Free disk space, and call "
                    "fit() again."
                ) from error
            try:
                yield Pending(self, author, change)
            except BaseException:
                self._entries = entries
                raise

    def enter(self, author: Author | None, announced: Change, change: Change) -> None:
        """Enters an announced change with what was measured since, see `Pending`."""
        entry = Entry(author, change)
        self.entries = [*self.entries, entry]
        if change == announced:
            return
        for other in self._concerned(author, entry):
            try:
                other.save(self.changes_of(other))
            except OSError as error:  # The model has changed and must train on.
                warnings.warn(
                    f"The record {other.record} lacks the measured learning rate's factor "
                    f"({error}), so that this growth cannot be done again.",
                    stacklevel=3,
                )

    def _concerned(self, author: Author | None, entry: Entry) -> list[Author]:
        """The authors in the same `fit` who have to record the change."""
        if author is None:
            return []
        return [a for a in self.authors(author.callback) if _concerns(a, entry)]

    def resume(
        self,
        model: keras.Model,
        entries: list[Entry],
        done: int,
        authors: list[Author],
    ) -> None:
        """Brings a model that a script has built to where a run stood.

        Its variables become those of that time; their values are loaded afterwards.

        Args:
            model: the model.
            entries: list of `Entry`. All changes that the model is to have behind it.
            done: int. How many of them it has been through already.
            authors: list of `Author`. The authors that continue from there.

        Raises:
            FusionError: if a change gives another model than in the run.
        """
        begun = [e.change.ramps for e in entries[:done] if e.change.kind == GROWTH]
        ramps.resume(model, [growth for growth in begun if growth is not None])
        for entry in entries[done:]:
            if entry.change.kind == STOCK_NORMS:
                prepared = swap.prepare_stock_norms(model)
                with swap.in_place_again(model, prepared, entry.change):
                    pass
            elif entry.author is not None:
                entry.author.grow_again(entry.change)
        self.entries = entries
        for author in authors:
            author.resume(self.changes_of(author))


@dataclasses.dataclass(frozen=True)
class Pending:
    """A change that has been announced and has not been entered yet."""

    journal: Journal
    author: Author | None
    change: Change

    def commit(self, started: list[Ramp] | None = None) -> None:
        """Enters the change, which has happened.

        Args:
            started: list of the `Ramp`s that began with it.
        """
        change = dataclasses.replace(self.change, ramps=started)
        self.journal.enter(self.author, self.change, change)


def _concerns(author: Author, entry: Entry) -> bool:
    """Whether a change is the author's own, or one that it has to record too."""
    return entry.author is author or entry.change.kind == STOCK_NORMS


def of(model: keras.Model) -> Journal:
    """The journal of a model."""
    return private.attached(model, Journal) or private.attach(model, Journal())
