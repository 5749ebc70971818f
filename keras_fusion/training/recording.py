"""Growths that are on record, and are done again when a run is taken up."""

import os
import warnings
from pathlib import Path

import keras

from keras_fusion import graft
from keras_fusion.errors import FusionError, GrowthError
from keras_fusion.models import private, processes
from keras_fusion.training import runs, swap
from keras_fusion.training.event import GrowthEvent
from keras_fusion.training.learning_rate import Ramp
from keras_fusion.training.record import (
    GROWTH,
    Change,
    Record,
    changes_in_weights,
    check_script,
    description,
    place_of,
    plain,
    shapes_of,
)

# Where Keras's `BackupAndRestore` keeps the weights, in its folder.
_BACKUP = "latest.weights.h5"


class RecordedGrowths(runs.Member):
    """The part of `GrowModel` that goes on when its process has been killed.

    Args:
        record: path of the file that the growths are recorded in, or `None`.
    """

    def __init__(self, record: str | os.PathLike | None = None):
        super().__init__()
        self.record = record
        self.events = []
        self.blocks = None
        self._seed = None  # from which the seed of each growth is derived
        self._changes = []  # the growths, and where block norms were taken out
        self._announced = None
        self._ahead = []  # what is on record and the model has not been through

    # The start of a run.

    def set_model(self, model):
        """Does those growths on record again that a backup beside the record has."""
        super().set_model(model)
        known = self._changes and self._changes[-1].after == shapes_of(model)
        if self.record is not None and Path(self.record).exists() and not known:
            beside = Path(self.record).with_name(_BACKUP)
            self._replay(model, beside if beside.exists() else 0)

    def check_records(self) -> None:
        """Checks that a run has one record.

        Raises:
            FusionError: if another callback of this `fit` keeps one too.
        """
        members = runs.of(self.model).of_fit(self)
        records = [m.record for m in members if getattr(m, "record", None) is not None]
        if len(records) > 1:
            raise FusionError(
                f"Several callbacks of one fit() keep a record: {records}. In which order "
                "they grow the model only keras_fusion.BackupAndRestore knows: use it, "
                "and leave `record` out."
            )

    def replay(
        self, model: keras.Model, growths: int | str | os.PathLike | None = None
    ):
        """Does growths on record again, on the small model that the script has built.

        Afterwards the model has the variables that it had at that time, so that weights
        can be loaded that were saved then.

        Args:
            model: the small model, compiled as in the run.
            growths: int. How many; or the path of a `.weights.h5` file, which tells it.
                Defaults to all.

        Raises:
            FusionError: if there is no record, or if it does not fit the model, this
                callback or the file.
        """
        if self.record is None or not Path(self.record).exists():
            raise FusionError(
                f"There is no record to replay. Received: record={self.record!r}. Name "
                "the file that the run wrote as `record` of this callback."
            )
        super().set_model(model)
        self._replay(model, growths)

    def _replay(self, model, growths):
        stored = Record.read(self.record)
        check_script(stored.script, self.script(), f"The record {self.record}")
        done = place_of(stored.changes, model, f"The record {self.record}")
        target = self._target(stored.changes, done, growths)
        for change in stored.changes[done:target]:
            self.do_again(change)
        changes = stored.changes[:target]
        authors = [self if change.kind == GROWTH else None for change in changes]
        runs.of(model).changes = zip(authors, changes, strict=True)
        self.take_up(changes)
        self._seed, self._ahead = stored.seed, stored.changes[target:]
        swap.resume_ramps(model, ramps_of(changes[:done]))

    def _target(self, changes, done, growths):
        """How many of the changes the model is to have been through."""
        places = [i + 1 for i, change in enumerate(changes) if change.kind == GROWTH]
        if growths is None:
            return len(changes)
        if isinstance(growths, int):
            if growths > len(places):
                raise FusionError(
                    f"The record {self.record} holds {len(places)} growths. Received: "
                    f"growths={growths}."
                )
            return max(places[growths - 1] if growths else 0, done)
        target = changes_in_weights(changes, Path(growths))
        if target < done:
            raise FusionError(
                f"The model has grown further than the weights in {growths}. Build it as "
                "at the start of the script."
            )
        return target

    def done_again(self, change, prepared):
        """Sets what a growth leaves beside the model."""
        if change.kind == GROWTH:
            self.blocks = swap.remember_blocks(self.model, prepared)
            swap.start_ramps(self.model, *ramps_of([change]))

    @property
    def multiplies(self) -> bool:
        """Whether each weight gets a learning rate of its own."""
        return self.learning_rate_multipliers is not None

    def prepare_again(self, change):
        """Prepares a change of the live model, whose weights will be loaded."""
        if change.kind != GROWTH:
            return super().prepare_again(change)
        if change.ramps is None:
            raise FusionError(
                f"The process was killed at the growth of step {change.step}, while the "
                "learning rate's factor was measured. Go on from before it."
            )
        return swap.prepare_again(
            self.model, self.operator, change.seed, self.multiplies
        )

    # What is remembered.

    def take_up(self, changes):
        """Goes on as the callback that has made, or seen, these changes."""
        self._changes, self._ahead = list(changes), []
        self.events[:] = [event_of(c) for c in changes if c.kind == GROWTH]

    def before_change(self, author, change):
        """Writes the record, with a change that is about to happen.

        Raises:
            GrowthError: if it cannot be written; nothing has changed.
        """
        self._announced = change
        if not self.is_noted(author, change) or self.record is None:
            return
        try:
            self._write([*self._changes, change])
        except OSError as error:
            raise GrowthError(
                f"The record {self.record} cannot be written ({error}), so that the model "
                "does not grow; it trains on as it was. Make room, and call fit() again."
            ) from error

    def after_change(self, author, change):
        """Remembers a change, with what was measured in it."""
        if not self.is_noted(author, change):
            return
        self._changes.append(change)
        if change != self._announced and self.record is not None:
            try:
                self._write(self._changes)
            except OSError as error:  # The model has grown and must train on.
                warnings.warn(
                    f"The record {self.record} lacks the measured learning rate's factor "
                    f"({error}), so that this growth cannot be done again.",
                    stacklevel=2,
                )

    def script(self):
        """What must be equal in a script that takes the run up again, as plain data."""
        optimizers = graft.leaves(self.model.optimizer) if self.model.optimizer else []
        return plain(
            {
                "operator": description(self.operator),
                "schedule": description(self.schedule),
                "optimizer_state": self.optimizer_state,
                "learning_rate_factor": self.learning_rate_factor,
                "learning_rate_multipliers": self.learning_rate_multipliers,
                "rewarmup_steps": self.rewarmup_steps,
                "optimizer": [type(optimizer).__name__ for optimizer in optimizers],
            }
        )

    def get_progress(self):
        """What a backup must hold beside the weights and changes, as plain data."""
        return {"seed": self._seed, "schedule": plain(self.schedule.get_state())}

    def set_progress(self, progress):
        """Goes on from what `get_progress` gave, when the first epoch begins."""
        self._seed, self._schedule_state = progress["seed"], progress["schedule"]

    def _write(self, changes):
        content = Record(self.script(), self._seed, changes)
        with private.scope(self.model):
            is_chief = processes.is_chief()
        if is_chief:
            content.write(Path(self.record))


def event_of(change: Change) -> GrowthEvent:
    """The event of a growth on record, whose NaNs are text."""
    numbers = ("nan", "inf", "-inf")
    return GrowthEvent(
        **{
            name: float(value) if name != "operator" and value in numbers else value
            for name, value in change.event.items()
        }
    )


def ramps_of(changes: list[Change]) -> list[list[Ramp]]:
    """The ramps of each growth on record, one for each optimizer."""
    return [
        [
            Ramp(**ramp | {"betas": ramp["betas"] and tuple(ramp["betas"])})
            for ramp in change.ramps
        ]
        for change in changes
        if change.kind == GROWTH
    ]
