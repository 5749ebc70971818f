"""Growth inside `model.fit()`, by any operator: `GrowModel`."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import keras

from keras_fusion.errors import FusionError, GrowthError, require
from keras_fusion.layout.parent_blocks import Blocks
from keras_fusion.models import private
from keras_fusion.models.names import helpful
from keras_fusion.operators.base import check_operator
from keras_fusion.training import journal, live_growth, options, ramps
from keras_fusion.training.backup import warn_of_keras_backup
from keras_fusion.training.epoch_count import EpochCount
from keras_fusion.training.event import GrowthEvent
from keras_fusion.training.growths import Growths
from keras_fusion.training.matching import shapes_of
from keras_fusion.training.preview import Preview, previewed
from keras_fusion.training.schedules import AtEpoch, GrowthSchedule, Moment

# Where Keras's `BackupAndRestore` keeps the weights, in its folder.
_BACKUP = "latest.weights.h5"


@keras.saving.register_keras_serializable(package="keras_fusion")
class GrowModel(keras.callbacks.Callback):
    """Grows the model in training with an operator, whenever a schedule says so.

    The live model object itself becomes bigger, so that all references to it (yours,
    other callbacks', the history's) stay valid. Training continues in the same `fit`,
    with the optimizer's state, step count and learning-rate schedule. All checks run
    when training begins, before anything changes; a growth that fails nevertheless
    leaves the model training as it was.

    Args:
        operator: `GrowthOperator`, or another object with its methods. How to grow.
        schedule: `GrowthSchedule`. When to grow.
        optimizer_state: `"carry"` fuses the optimizer's slots too, at the scale that
            the gradients will have; `"reset"` starts them from zero, with Adam's bias
            correction starting again as well. Defaults to `"carry"`.
        learning_rate_factor: float. Multiplies the learning rate from the growth on. Or a
            function `(model, blocks, optimizer)` that measures it on the grown model, with
            a method `check(model)`, such as `dynamics.BracketRate`.
            Defaults to 1.
        learning_rate_multipliers: `"width"` multiplies the learning rate of each weight,
            by what it joins (input, hidden, readout), so that a wider model learns as
            fast as the smaller one did; `None` leaves one rate for all. A file does not
            hold the multipliers. Defaults to `None`.
        rewarmup_steps: int. Steps over which the learning rate rises again from 0
            after a growth. Defaults to 0.
        probe: batch in the structure of the model's inputs, on which the change of the
            function is measured. By default a small random one is made.
        tolerance: float. A growth that should be exact and changes the outputs by more
            than this, relative to their largest value, is refused. Defaults to `1e-4`,
            to `1e-6` in float64, and to 0.2 where the weights are in half precision.
        verbose: int. 1 prints one line per growth, 0 prints nothing. Defaults to 1.
        record: path of a file in which the growths are recorded, so that a run which
            was cut off can be resumed with Keras's own callbacks (docs/resume.md).
            `keras_fusion.BackupAndRestore` needs none. Defaults to `None`.

    Attributes:
        events: list of `GrowthEvent`, one per growth so far of the model in training. A
            callback that is used for another model begins a new list.
        blocks: `Blocks` of the last growth, where the parents lie in the model; `None`
            before the first.
        watchers: list of objects whose methods `before_growth(callback)` and
            `after_growth(callback)` are called with this callback around each growth.

    Raises:
        FusionError: at once for arguments that cannot work; on the first batch at the
            latest for a growth that cannot.

    Example:

    >>> import keras, keras_fusion, numpy as np
    >>> model = keras.Sequential(
    ...     [keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(1)]
    ... )
    >>> model.compile("adam", "mse")
    >>> grow = keras_fusion.GrowModel(
    ...     keras_fusion.FusionOperator(factor=2), keras_fusion.AtStep(3), verbose=0
    ... )
    >>> x = np.ones((32, 4), "float32")
    >>> _ = model.fit(x, x[:, :1], batch_size=4, verbose=0, callbacks=[grow])
    >>> model.layers[0].units, grow.events[0].step
    (16, 3)
    """

    @helpful
    def __init__(
        self,
        operator: Any,
        schedule: GrowthSchedule,
        *,
        optimizer_state: str = "carry",
        learning_rate_factor: float | Callable = 1.0,
        learning_rate_multipliers: str | None = None,
        rewarmup_steps: int = 0,
        probe: Any = None,
        tolerance: float | None = None,
        verbose: int = 1,
        record: str | os.PathLike | None = None,
    ):
        super().__init__()
        check_operator(operator, "operator")
        require(
            isinstance(schedule, GrowthSchedule),
            "schedule",
            schedule,
            "a GrowthSchedule such as AtStep(1000)",
        )
        options.check_growth(
            optimizer_state=optimizer_state,
            learning_rate_factor=learning_rate_factor,
            learning_rate_multipliers=learning_rate_multipliers,
            rewarmup_steps=rewarmup_steps,
            tolerance=tolerance,
            verbose=verbose,
            record=record,
        )
        self.operator = operator
        self.schedule = schedule
        self.optimizer_state = optimizer_state
        self.learning_rate_factor = learning_rate_factor
        self.learning_rate_multipliers = learning_rate_multipliers
        self.rewarmup_steps = rewarmup_steps
        self.probe = probe
        self.tolerance = tolerance
        self.verbose = verbose
        self.record = record
        self.events: list[GrowthEvent] = []
        self.blocks: Blocks | None = None
        self.watchers: list[Any] = []
        self._growths = Growths(self, self._change_if_due)
        self._checked = self._begun = self._stepped = False
        # Where the schedule stood in a run that has not come to its end.
        self._looked: Moment | None = None
        self.epoch_count = EpochCount()

    @property
    def model(self) -> keras.Model:
        """The model in training."""
        return cast(keras.Model, super().model)

    # The run.

    def set_model(self, model: keras.Model) -> None:
        """Does the recorded growths again that a backup beside the record has."""
        self._join(model)
        if self.record is None or not Path(self.record).exists():
            return
        changes = journal.of(model).changes_of(self._growths)
        if not changes or changes[-1].after != shapes_of(model):
            beside = Path(self.record).with_name(_BACKUP)
            self._growths.replay(beside if beside.exists() else 0)

    def replay(
        self, model: keras.Model, growths: int | str | os.PathLike | None = None
    ) -> None:
        """Does recorded growths again, on the small model that the script has built.

        Afterwards the model has the variables that it had at that time, so that weights
        can be loaded that were saved then.

        Args:
            model: the small model, compiled as in the run.
            growths: int. How many; or the path of a `.weights.h5` file or of a folder of
                Keras's `OrbaxCheckpoint`, from which it is read. A checkpoint from
                before the first growth needs no record. Defaults to all.

        Raises:
            FusionError: if there is no record, or if it does not fit the model, this
                callback or the file.
        """
        self._join(model)
        self._growths.replay(growths)

    def _join(self, model: keras.Model) -> None:
        if model is not self._model:
            self._looked = None
            self._growths.turn_to(model)
        super().set_model(model)
        journal.of(model).join(self._growths)

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Checks the growth before anything changes."""
        journal.of(self.model).check_records(self)
        self._growths.draw_seed()
        if self.record is None:
            warn_of_keras_backup()
        if self.learning_rate_factor != 1 and self._may_grow:
            ramps.warn_of_schedulers()
        if not self.epoch_count.continues(self.model):
            self.schedule.reset()
        self._checked = self._begun = self._stepped = False
        if self.model.built and self.model.weights and self._may_grow:
            self._check_model()

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Reads the step count, which the optimizer knows exactly."""
        journal.of(self.model).begin_epoch(self.model, epoch)
        if not self._begun:
            self._begun = True
            self.epoch_count.begin(epoch)
            self._begin()

    def _begin(self) -> None:
        """The first moment at which weights that were backed up are surely loaded."""
        ramps.settle(self.model)
        self._growths.restore_schedule()
        try:
            if self._growths.ahead_at(self._step) is not None:
                self.grow()
        finally:
            self._growths.forget_ahead()
        self._check_schedule()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Grows if the schedule says so."""
        journal.of(self.model).end_batch(self, batch)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Grows if the schedule says so."""
        self.epoch_count.end(epoch)
        journal.of(self.model).end_epoch(self, epoch, logs)

    def on_train_end(self, logs: dict | None = None) -> None:
        """Forgets where the schedule stood: a later run begins where it begins."""
        self._looked = None

    @property
    def _step(self) -> int:
        """Optimizer steps done so far."""
        return self._steps_of(journal.of(self.model).clock.raw)

    def _steps_of(self, raw: int) -> int:
        core = getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)
        return raw // (core.gradient_accumulation_steps or 1)

    @property
    def _may_grow(self) -> bool:
        return not self.schedule.is_done(len(self.events))

    def _moment(self, logs: dict | None) -> Moment:
        epochs = self.epoch_count.total(journal.of(self.model).clock.epochs)
        return Moment(self._step, epochs, len(self.events), logs)

    def _check_schedule(self) -> None:
        clock, last, params = journal.of(self.model).clock, None, self.params or {}
        steps, epochs = params.get("steps"), params.get("epochs")
        if steps and epochs:
            raw = clock.raw + steps * (epochs - clock.epochs)
            last = Moment(self._steps_of(raw), self.epoch_count.total(epochs), 0, None)
        elif epochs and isinstance(self.schedule, AtEpoch):
            last = Moment(0, self.epoch_count.total(epochs), 0, None)
        first = self._moment(None)
        if self._looked is not None and self._looked.growths == first.growths:
            # A growth that failed, or that an exception came before, is still to come.
            step = min(first.step, self._looked.step)
            epoch = min(first.epoch, self._looked.epoch)
            first = dataclasses.replace(first, step=step, epoch=epoch)
        self.schedule.check(first, last)
        self._looked = first

    def _check_model(self) -> None:
        self._checked = True
        self._growths.check()

    def _change_if_due(self, logs: dict | None) -> None:
        if logs is not None:
            ramps.settle(self.model)
        self._maybe_grow(logs)

    def _maybe_grow(self, logs: dict | None) -> None:
        if not self._checked and self._may_grow:
            self._check_model()  # A model that was built only by its first batch.
        if not self._stepped and self._may_grow:
            self._growths.check_built()
        self._stepped = True
        moment = self._moment(logs)
        try:
            due = self.schedule.should_grow(moment)
        except FusionError:
            raise
        except Exception as error:
            raise GrowthError(
                f"The schedule {type(self.schedule).__name__} failed at step {moment.step} "
                f"({type(error).__name__}: {error}); the model is as it was. Call fit() "
                "again to continue."
            ) from error
        if due:
            self.grow()
        self._looked = self._moment(logs)

    def grow(self) -> GrowthEvent:
        """Grows the model now, whatever the schedule says.

        Returns:
            The `GrowthEvent`, which is also added to `events`.

        Raises:
            FusionError: if the growth is refused; nothing has changed.
            GrowthError: if it failed; the model continues training unchanged.
        """
        private.sync(self.model)
        for watcher in self.watchers:
            watcher.before_growth(self)
        event = live_growth.told(
            self.model, self.verbose, lambda: self._growths.grow(self._step)
        )
        for watcher in self.watchers:
            watcher.after_growth(self)
        return event

    def preview(self, model: keras.Model) -> Preview:
        """Prints what this callback's next growth would make of a model.

        Args:
            model: built model. It does not change.

        Returns:
            The `Preview`, see `keras_fusion.preview`.
        """
        found = previewed(model, live_growth.Options.of(self))
        if self.verbose:
            print(found)
        return found

    def get_config(self) -> dict:
        """The constructor's arguments, serialized; a probe batch is left out.

        Raises:
            FusionError: if an argument holds models or data, which a config cannot.
        """
        if callable(self.learning_rate_factor):
            raise FusionError(
                "A callback whose `learning_rate_factor` is measured on data has no "
                f"config. Received: {self.learning_rate_factor!r}. Use a number."
            )
        return {
            "operator": keras.saving.serialize_keras_object(self.operator),
            "schedule": keras.saving.serialize_keras_object(self.schedule),
            "optimizer_state": self.optimizer_state,
            "learning_rate_factor": self.learning_rate_factor,
            "learning_rate_multipliers": self.learning_rate_multipliers,
            "rewarmup_steps": self.rewarmup_steps,
            "tolerance": self.tolerance,
            "verbose": self.verbose,
            "record": None if self.record is None else os.fspath(self.record),
        }

    @classmethod
    def from_config(cls, config: dict) -> "GrowModel":
        """Rebuilds the callback from `get_config`."""
        config = dict(config)
        for key in ("operator", "schedule"):
            if isinstance(config.get(key), dict):
                config[key] = keras.saving.deserialize_keras_object(config[key])
        return cls(**config)
