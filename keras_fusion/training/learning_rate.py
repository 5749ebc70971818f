"""The learning rate after a growth: a factor, a re-warm-up, a fresh bias correction."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_fusion import graft
from keras_fusion.models import private
from keras_fusion.models.names import helpful

Schedule = keras.optimizers.schedules.LearningRateSchedule


@keras.saving.register_keras_serializable(package="keras_fusion")
@dataclasses.dataclass(frozen=True)
class Ramp:
    """A factor on the learning rate, by the number of steps since the growth.

    Args:
        factor: float. Where the ramp ends. Defaults to 1.
        rewarmup_steps: int. Steps over which the rate rises linearly from 0 to
            `factor`; the first step after the growth has `factor / rewarmup_steps`.
        start: int. The optimizer's `iterations` at the growth.
        betas: `(beta_1, beta_2)` if moments were reset under a step count that goes
            on. Adam's bias correction for step t then no longer fits moments that are
            t' steps old, and the first updates would be up to 6.6 times too large; the
            ramp multiplies by `c(t') / c(t)` with `c(t) = sqrt(1 - beta_2**t) /
            (1 - beta_1**t)`, which is the correction of a fresh start. A moment that is
            not corrected has a decay of 0.
        every: int. Batches per step, if gradients are accumulated: a schedule is asked
            for the rate of a batch. Defaults to 1.
    """

    factor: float = 1.0
    rewarmup_steps: int = 0
    start: int = 0
    betas: tuple[float, float] | None = None
    every: int = 1

    def __call__(self, step: Any) -> Any:
        """The factor on the learning rate.

        Args:
            step: number or tensor. `iterations` of the optimizer, before the update.

        Returns:
            Scalar tensor.
        """
        done: Any = ops.cast(step, "float32") - self.start
        value: Any = self.factor
        if self.rewarmup_steps:
            value = value * ops.minimum((done + 1.0) / self.rewarmup_steps, 1.0)
        if self.betas is not None:
            fresh = _correction(self.betas, done + 1.0)
            value = value * fresh / _correction(self.betas, done + 1.0 + self.start)
        # A step count from before the growth is that of another run's state. The end is
        # exact, so that it makes no difference whether a ramp that is over is dropped.
        within = ops.logical_and(done >= 0.0, done < self._length)
        return ops.where(within, value, self.factor)

    @property
    def _length(self) -> int:
        """Steps after which the ramp is within 1% of its end."""
        length = self.rewarmup_steps
        # Under the root of the second moment's correction 2% are 1%.
        for beta, share in zip(self.betas or (), (0.01, 0.02), strict=False):
            if beta:
                length = max(length, math.ceil(math.log(share) / math.log(beta)))
        return length

    def is_over(self, step: int) -> bool:
        """Whether the ramp is at its end from the given step count on."""
        return step - self.start >= self._length

    @property
    def is_trivial(self) -> bool:
        """Whether the learning rate stays as it is."""
        return self.factor == 1.0 and not self.rewarmup_steps and self.betas is None

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return dataclasses.asdict(self)


def _correction(betas: tuple[float, float], step: Any) -> Any:
    """The bias correction of Adam's update at a step."""
    first: Any = ops.power(ops.cast(betas[0], "float32"), step)
    second: Any = ops.power(ops.cast(betas[1], "float32"), step)
    return ops.sqrt(1.0 - second) / (1.0 - first)


@keras.saving.register_keras_serializable(package="keras_fusion")
class GrownSchedule(Schedule):
    """A learning-rate schedule times the ramp of a growth.

    Args:
        schedule: `LearningRateSchedule`, or function without arguments. The schedule
            before the growth. It may be a `GrownSchedule` itself: the ramps of several
            growths multiply.
        ramp: `Ramp`.

    Example: half the rate, with a re-warm-up over 10 steps from step 100 on.

    >>> import keras, keras_fusion
    >>> from keras_fusion.training.learning_rate import Ramp
    >>> decay = keras.optimizers.schedules.PolynomialDecay(1.0, 1000, 0.0)
    >>> schedule = keras_fusion.GrownSchedule(decay, Ramp(0.5, 10, start=100))
    >>> [round(float(schedule(step)), 3) for step in (100, 104, 500)]
    [0.045, 0.224, 0.25]
    """

    @helpful
    def __init__(self, schedule: Schedule | Callable[[], Any], ramp: Ramp):
        self.schedule = schedule
        self.ramp = ramp

    def __call__(self, step: Any) -> Any:
        """The learning rate at `step`, the number of batches that were trained on."""
        rate: Any
        if isinstance(self.schedule, Schedule):
            rate = self.schedule(step)
        else:
            rate = self.schedule()
        return ops.multiply(rate, self.ramp(step // self.ramp.every))

    def get_config(self) -> dict:
        """The constructor's arguments, serialized."""
        return {
            "schedule": keras.saving.serialize_keras_object(self.schedule),
            "ramp": self.ramp.get_config(),
        }

    @classmethod
    def from_config(cls, config: dict) -> "GrownSchedule":
        """Rebuilds the schedule from `get_config`."""
        schedule = keras.saving.deserialize_keras_object(config["schedule"])
        ramp = dict(config["ramp"])
        ramp["betas"] = tuple(ramp["betas"]) if ramp["betas"] else None
        return cls(schedule, Ramp(**ramp))


def ramped(schedule: Any, ramp: Ramp) -> GrownSchedule:
    """The schedule with one more ramp.

    A reset ends the bias correction of an earlier one, whose moments are gone.
    """
    if ramp.betas is not None:
        schedule = _each_ramp(schedule, _without_correction)
    return GrownSchedule(schedule, ramp)


def settled(schedule: Any, step: int) -> Any:
    """The schedule without the ramps that are over by the given step count."""

    def rest(ramp: Ramp) -> Ramp:
        return Ramp(ramp.factor) if ramp.is_over(step) else ramp

    return _each_ramp(schedule, rest)


def _each_ramp(schedule: Any, change: Callable[[Ramp], Ramp]) -> Any:
    """The schedule with all its ramps changed, and without those that do nothing."""
    if not isinstance(schedule, GrownSchedule):
        return schedule
    inner, ramp = _each_ramp(schedule.schedule, change), change(schedule.ramp)
    return inner if ramp.is_trivial else GrownSchedule(inner, ramp)


def _without_correction(ramp: Ramp) -> Ramp:
    return dataclasses.replace(ramp, betas=None)


def rate_of(optimizer: keras.optimizers.Optimizer) -> float:
    """An optimizer's learning rate at present."""
    return float(np.asarray(ops.convert_to_numpy(optimizer.learning_rate)))


class RampedRate:
    """Multiplies an optimizer's learning rate by ramps, in its updates alone.

    Outside of an update the rate is what the variable holds, without ramps. That is what
    other callbacks read, log, save or change (`ReduceLROnPlateau`), and what is left when
    an exception ends a batch. Weight decay reads the rate in the update, too.

    Args:
        optimizer: an optimizer whose rate is a variable, without wrapper.
    """

    def __init__(self, optimizer: keras.optimizers.Optimizer):
        self.ramps: list[Ramp] = []
        self._optimizer = optimizer
        self._apply, self._rate = private.update_of(optimizer)
        # The replicas of a distribution strategy are within one update at a time.
        self._updates = 0

    def add(self, ramp: Ramp) -> None:
        """Adds the ramp of a growth; those of several growths multiply."""
        private.replace_update(self._optimizer, self.apply, self.rate)
        if ramp.betas is not None:  # see `ramped`
            old = map(_without_correction, self.ramps)
            self.ramps = [r for r in old if not r.is_trivial]
        self.ramps = [r for r in self.ramps if not r.is_over(ramp.start)] + [ramp]

    def apply(self, *args: Any, **kwargs: Any) -> Any:
        """Updates as the optimizer itself does, at the rate on the ramps."""
        self._updates += 1
        try:
            return self._apply(*args, **kwargs)
        finally:
            self._updates -= 1

    def rate(self) -> Any:
        """The learning rate of the update, or the variable outside of one."""
        rate: Any = self._rate()
        # A schedule that has been set meanwhile is taken as it is.
        if self._updates and graft.schedule_of(self._optimizer) is None:
            for ramp in self.ramps:
                rate = ops.multiply(rate, ramp(self._optimizer.iterations))
        return rate
