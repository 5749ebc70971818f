"""Growth inside `model.fit()`, by any operator: `GrowModel`."""

import dataclasses
import os
import time

import keras
import numpy as np

from keras_fusion import graft
from keras_fusion.errors import FusionError, GrowthError
from keras_fusion.models import private, processes
from keras_fusion.training import learning_rate, options, runs, swap
from keras_fusion.training.event import GrowthEvent
from keras_fusion.training.learning_rate import GrownSchedule
from keras_fusion.training.record import GROWTH, Change, plain, shapes_of
from keras_fusion.training.recording import RecordedGrowths
from keras_fusion.training.schedules import AtEpoch, Moment
from keras_fusion.values import rate_multipliers, slots


@keras.saving.register_keras_serializable(package="keras_fusion")
class GrowModel(RecordedGrowths):
    """Grows the model in training with an operator, whenever a schedule says so.

    The live model object itself becomes bigger, so that all references to it (yours,
    other callbacks', the history's) stay valid. Training goes on in the same `fit`,
    with the optimizer's state, step count and learning-rate schedule. All checks run
    when training begins, before anything changes; a growth that fails all the same
    leaves the model training as it was.

    Args:
        operator: `FusionOperator` or another object with its methods.
        schedule: `GrowthSchedule`.
        optimizer_state: `"carry"` fuses the optimizer's slots too, at the scale that
            the gradients will have; `"reset"` starts them afresh, with Adam's bias
            correction starting afresh as well. Defaults to `"carry"`.
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
            than this, relative to their largest value, is refused. Defaults to `1e-3`
            in float32, to 0.2 in half precision.
        verbose: int. 1 shows each growth once on the console, 0 does not.
        record: path of a file in which the growths are recorded, so that a run which
            was cut off can be taken up again with Keras's own callbacks (docs/resume.md).
            `keras_fusion.BackupAndRestore` needs none. Defaults to `None`.

    Attributes:
        events: list of `GrowthEvent`, one per growth so far.
        blocks: `Blocks` of the last growth, where the parents lie in the model; `None`
            before the first.
        watchers: list of objects whose methods `before_growth(callback)` and
            `after_growth(callback)` are called with this callback around each growth.

    Raises:
        FusionError: on the first batch at the latest, for anything that cannot work.

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

    def __init__(
        self,
        operator,
        schedule,
        *,
        optimizer_state="carry",
        learning_rate_factor=1.0,
        learning_rate_multipliers=None,
        rewarmup_steps=0,
        probe=None,
        tolerance=None,
        verbose=1,
        record=None,
    ):
        super().__init__(record)
        options.check_growth(
            schedule,
            optimizer_state,
            learning_rate_factor,
            learning_rate_multipliers,
            rewarmup_steps,
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
        self.watchers = []
        self._schedule_state = None
        self._checked = False

    # The run.

    def on_train_begin(self, logs=None):
        """Checks the growth before anything changes."""
        self.check_records()
        # Drawn in any case, so that the generator goes on as in the run taken up.
        drawn = int(np.random.randint(2**31))
        with private.scope(self.model):
            drawn = processes.agreed(drawn)
        self._seed = drawn if self._seed is None else self._seed
        self.schedule.reset()
        self._checked = False
        self._begun = False
        for optimizer, follower in self._followers():
            follower.put_back(optimizer)  # A run was cut off in the middle of a batch.
        if self.model.built and self.model.weights and self._may_grow:
            self._check_model()

    def on_epoch_begin(self, epoch, logs=None):
        """Takes up the step count, which the optimizer knows exactly."""
        self._epoch = epoch
        self._batch = -1
        self._raw = graft.raw_iterations(self.model.optimizer)
        if not self._begun:
            self._begun = True
            self._begin()

    def _begin(self):
        """The first moment at which weights that were backed up are surely loaded."""
        self._settle()
        if self._schedule_state is not None:
            self.schedule.set_state(self._schedule_state)
            self._schedule_state = None
        ahead, self._ahead = self._ahead, []
        if ahead and (ahead[0].kind, ahead[0].step) == (GROWTH, self._step):
            # The backup was made right before this growth; perhaps at an epoch's end.
            self._batch = None if ahead[0].event["epoch"] == self._epoch else -1
            self.grow()
            self._batch = -1
        self._check_schedule()

    def on_train_batch_begin(self, batch, logs=None):
        """Moves the learning rate along the ramps of past growths."""
        for optimizer, follower in self._followers():
            follower.move(optimizer, graft.steps(optimizer))

    def on_train_batch_end(self, batch, logs=None):
        """Grows if the schedule says so."""
        if batch == self._batch:
            return  # A callback that needed it done now has called.
        for optimizer, follower in self._followers():
            follower.put_back(optimizer)
        self._raw += batch - self._batch
        self._batch = batch
        self._maybe_grow(None)

    def _settle(self):
        """Takes schedules out of ramps that are over."""
        for optimizer in graft.leaves(self.model.optimizer):
            schedule = graft.schedule_of(optimizer)
            if isinstance(schedule, GrownSchedule):
                private.sync(self.model)
                step = graft.steps(optimizer)
                optimizer.learning_rate = learning_rate.settled(schedule, step)

    def _followers(self):
        optimizers = graft.leaves(self.model.optimizer)
        found = [(o, learning_rate.follower(o)) for o in optimizers]
        found = [(o, follower) for o, follower in found if follower is not None]
        if found:
            private.sync(self.model)
        return found

    def on_epoch_end(self, epoch, logs=None):
        """Grows if the schedule says so."""
        if self._batch is None:
            return
        self._settle()
        self._epoch, self._batch = epoch + 1, None
        self._maybe_grow(dict(logs or {}))

    @property
    def _step(self):
        """Optimizer steps done so far."""
        every = _accumulation(self.model.optimizer)
        return self._raw // every

    @property
    def _may_grow(self):
        return not self.schedule.is_done(len(self.events))

    def _moment(self, logs):
        return Moment(self._step, self._epoch, len(self.events), logs)

    def _check_schedule(self):
        first = self._moment(None)
        steps, epochs = self.params.get("steps"), self.params.get("epochs")
        last = None
        if steps and epochs:
            raw = self._raw + steps * (epochs - self._epoch)
            step = raw // _accumulation(self.model.optimizer)
            last = Moment(step, epochs, 0, None)
        elif epochs and isinstance(self.schedule, AtEpoch):
            last = Moment(0, epochs, 0, None)
        self.schedule.check(first, last)

    def _check_model(self):
        """Lays the whole growth out once, so that what cannot work is said now."""
        self._checked = True
        if not isinstance(self.model.optimizer, keras.optimizers.Optimizer):
            raise FusionError(
                f"Model {self.model.name!r} has no optimizer to grow. Compile it with "
                "one before fit()."
            )
        swap.plan(self.model, self.operator, self._next_seed())
        graft.check_optimizers(self.operator.parents(self.model), self.optimizer_state)
        if self.learning_rate_factor != 1 or self.rewarmup_steps:
            for optimizer in graft.leaves(self.model.optimizer):
                slots.check_rate_may_change(optimizer)
        if hasattr(self.learning_rate_factor, "check"):
            self.learning_rate_factor.check(self.model)
        if self.learning_rate_multipliers:
            for optimizer in graft.leaves(self.model.optimizer):
                rate_multipliers.check(optimizer)

    def _maybe_grow(self, logs):
        if not self._checked and self._may_grow:
            self._check_model()  # A model that was built only by its first batch.
        moment = self._moment(logs)
        try:
            due = self.schedule.should_grow(moment)
        except FusionError:
            raise
        except Exception as error:
            raise GrowthError(
                f"The schedule {type(self.schedule).__name__} failed at step {moment.step} "
                f"({type(error).__name__}: {error}); the model is as it was. Call fit() "
                "again to go on."
            ) from error
        if due:
            self.grow()

    # The growth.

    def grow(self) -> GrowthEvent:
        """Grows the model now, whatever the schedule says.

        Returns:
            The `GrowthEvent`, which is also added to `events`.

        Raises:
            FusionError: if the growth is refused; nothing has changed.
            GrowthError: if it failed; the model trains on as it was.
        """
        model = self.model
        private.sync(model)
        for watcher in self.watchers:
            watcher.before_growth(self)
        begin, seed = time.perf_counter(), self._next_seed()
        prepared = swap.prepare(
            model,
            self.operator,
            seed,
            optimizer_state=self.optimizer_state,
            multipliers=self.multiplies,
            inputs=self.probe,
            tolerance=self.tolerance,
        )
        event = self._event(prepared, time.perf_counter() - begin)
        change = Change(
            kind=GROWTH,
            step=event.step,
            before=shapes_of(model),
            after=shapes_of(prepared.plan.fused),
            seed=seed,
            # What is measured needs the grown model.
            ramps=None if callable(self.learning_rate_factor) else plain(self._ramps()),
            event=plain(event.to_dict()),
        )
        with swap.uninterrupted():
            runs.of(model).announce(self, change)
            swap.put_in_place(model, prepared)
            self.blocks = swap.remember_blocks(model, prepared)
            ramps = self._ramps()
            swap.start_ramps(model, ramps)
            event = dataclasses.replace(event, seconds=time.perf_counter() - begin)
            self.events.append(event)
            change = dataclasses.replace(change, ramps=plain(ramps))
            runs.of(model).changed(self, change)
        with private.scope(model):
            speaks = self.verbose and processes.is_chief()
        if speaks:
            print(f"\n{event}")
        for watcher in self.watchers:
            watcher.after_growth(self)
        return event

    def _next_seed(self):
        return swap.nth_seed(self._seed, len(self.events))

    def _event(self, prepared, seconds):
        return GrowthEvent(
            step=self._step,
            epoch=self._epoch + (self._batch is not None),
            params_before=self.model.count_params(),
            params_after=prepared.plan.fused.count_params(),
            seconds=seconds,
            function_change=prepared.difference.largest,
            mean_change=prepared.difference.mean,
            argmax_agreement=prepared.difference.argmax_agreement,
            operator=str(self.operator),
        )

    def _ramps(self):
        """The ramps that begin with a growth now, one for each optimizer."""
        factors = swap.factors(self.model, self.learning_rate_factor, self.blocks)
        reset = self.optimizer_state == "reset"
        return swap.ramps(self.model, factors, self.rewarmup_steps, reset)

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
    def from_config(cls, config):
        """Rebuilds the callback from `get_config`."""
        config = dict(config)
        for key in ("operator", "schedule"):
            if isinstance(config.get(key), dict):
                config[key] = keras.saving.deserialize_keras_object(config[key])
        return cls(**config)


def _accumulation(optimizer):
    core = getattr(optimizer, "inner_optimizer", optimizer)
    return core.gradient_accumulation_steps or 1
