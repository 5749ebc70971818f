"""The learning rate after a growth: a factor, a re-warm-up, a fresh bias correction."""

import dataclasses
import math
import weakref
from typing import Any

import keras
from keras import ops


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
            Number or scalar tensor.
        """
        tensor = not isinstance(step, int)
        since = (
            ops.cast(step, "float32") - self.start + 1.0
            if tensor
            else (float(step - self.start + 1))
        )
        value = self.factor
        if self.rewarmup_steps:
            share = since / self.rewarmup_steps
            value = value * (ops.minimum(share, 1.0) if tensor else min(share, 1.0))
        if self.betas is not None:
            value = (
                value * self._correction(since) / self._correction(since + self.start)
            )
        return value

    def _correction(self, step):
        sqrt, power = (
            (math.sqrt, pow)
            if isinstance(step, float)
            else (
                ops.sqrt,
                lambda base, exponent: ops.power(ops.cast(base, "float32"), exponent),
            )
        )
        beta_1, beta_2 = self.betas
        return sqrt(1.0 - power(beta_2, step)) / (1.0 - power(beta_1, step))

    def is_over(self, step: int) -> bool:
        """Whether the ramp is within 1% of its end from the given step count on."""
        length = self.rewarmup_steps
        # Under the root of the second moment's correction 2% are 1%.
        for beta, share in zip(self.betas or (), (0.01, 0.02), strict=False):
            if beta:
                length = max(length, math.ceil(math.log(share) / math.log(beta)))
        return step - self.start >= length

    @property
    def is_trivial(self) -> bool:
        """Whether the learning rate stays as it is."""
        return self.factor == 1.0 and not self.rewarmup_steps and self.betas is None

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return dataclasses.asdict(self)


@keras.saving.register_keras_serializable(package="keras_fusion")
class GrownSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """A learning-rate schedule that goes on after a growth, times a ramp.

    Args:
        schedule: the `LearningRateSchedule` (or function without arguments) before the
            growth. It may be a `GrownSchedule` itself: the ramps of several growths
            multiply.
        ramp: `Ramp`.

    Example: half the rate, with a re-warm-up over 10 steps from step 100 on.

    >>> import keras, keras_fusion
    >>> from keras_fusion.training.learning_rate import Ramp
    >>> decay = keras.optimizers.schedules.PolynomialDecay(1.0, 1000, 0.0)
    >>> schedule = keras_fusion.GrownSchedule(decay, Ramp(0.5, 10, start=100))
    >>> [round(float(schedule(step)), 3) for step in (100, 104, 500)]
    [0.045, 0.224, 0.25]
    """

    def __init__(self, schedule, ramp):
        self.schedule = schedule
        self.ramp = ramp

    def __call__(self, step):
        """The learning rate at `step`, the number of batches that were trained on."""
        if isinstance(self.schedule, keras.optimizers.schedules.LearningRateSchedule):
            rate = self.schedule(step)
        else:
            rate = self.schedule()
        return rate * self.ramp(step // self.ramp.every)

    def get_config(self):
        """The constructor's arguments, serialized."""
        return {
            "schedule": keras.saving.serialize_keras_object(self.schedule),
            "ramp": self.ramp.get_config(),
        }

    @classmethod
    def from_config(cls, config):
        """Rebuilds the schedule from `get_config`."""
        schedule = keras.saving.deserialize_keras_object(config["schedule"])
        ramp = dict(config["ramp"])
        ramp["betas"] = tuple(ramp["betas"]) if ramp["betas"] else None
        return cls(schedule, Ramp(**ramp))


def ramped(schedule, ramp: Ramp):
    """The schedule with one more ramp.

    A reset ends the bias correction of an earlier one, whose moments are gone.
    """
    if ramp.betas is not None:
        schedule = _without(schedule, lambda old: dataclasses.replace(old, betas=None))
    return GrownSchedule(schedule, ramp)


def settled(schedule, step: int):
    """The schedule without the ramps that are over by the given step count."""

    def rest(ramp):
        return Ramp(ramp.factor) if ramp.is_over(step) else ramp

    return _without(schedule, rest)


def _without(schedule, change):
    if not isinstance(schedule, GrownSchedule):
        return schedule
    inner, ramp = _without(schedule.schedule, change), change(schedule.ramp)
    return inner if ramp.is_trivial else GrownSchedule(inner, ramp)


class RateFollower:
    """Moves a learning rate that is a variable along ramps, batch by batch.

    The variable holds the moved rate only while a batch is trained on. Between batches
    it holds the rate proper: that is what other callbacks read, log, save or change
    (`ReduceLROnPlateau`), and what is left if training ends during a ramp.
    """

    def __init__(self):
        self.ramps = []
        self._base = self._moved = None

    def add(self, ramp: Ramp) -> None:
        """Adds the ramp of a growth; those of several growths multiply."""
        if ramp.betas is not None:  # see `ramped`
            old = [dataclasses.replace(r, betas=None) for r in self.ramps]
            self.ramps = [r for r in old if not r.is_trivial]
        self.ramps.append(ramp)

    def move(self, optimizer: keras.optimizers.Optimizer, step: int) -> None:
        """Sets the rate for the update that follows `step` updates."""
        if self._base is not None:
            return  # Another callback has done it.
        self.ramps = [ramp for ramp in self.ramps if not ramp.is_over(step)]
        if self.ramps:
            self._base = _rate(optimizer)
            optimizer.learning_rate = self._base * math.prod(
                ramp(step) for ramp in self.ramps
            )
            self._moved = _rate(optimizer)

    def put_back(self, optimizer: keras.optimizers.Optimizer) -> None:
        """Sets the rate proper again, unless another callback has set one meanwhile."""
        if self._base is not None and _rate(optimizer) == self._moved:
            optimizer.learning_rate = self._base
        self._base = None


def _rate(optimizer):
    return float(ops.convert_to_numpy(optimizer.learning_rate))


# By optimizer and not by callback, since several callbacks may grow one model.
_FOLLOWERS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def follower(optimizer: keras.optimizers.Optimizer) -> RateFollower | None:
    """What moves the optimizer's rate at present, or `None`."""
    found = _FOLLOWERS.get(optimizer)
    return found if found is not None and found.ramps else None


def start(optimizer: keras.optimizers.Optimizer, schedule, ramp: Ramp) -> None:
    """Puts an optimizer's learning rate on a ramp.

    Args:
        optimizer: the optimizer, none that wraps others.
        schedule: its learning-rate schedule; `None` if its rate is a variable. That
            one is multiplied by the ramp's factor at once, and for good.
        ramp: `Ramp`.
    """
    if ramp.is_trivial:
        return
    if schedule is not None:
        optimizer.learning_rate = ramped(schedule, ramp)
        return
    if (current := follower(optimizer)) is not None:
        current.put_back(optimizer)  # grown while a batch is trained on
    optimizer.learning_rate = _rate(optimizer) * ramp.factor
    _follow(optimizer, ramp)


def resume(optimizer: keras.optimizers.Optimizer, schedule, ramps: list[Ramp]) -> None:
    """Goes on with ramps on an optimizer that holds the rate proper, as a file does.

    Args:
        optimizer: the optimizer, none that wraps others.
        schedule: its learning-rate schedule, which holds its ramps itself, or `None`.
        ramps: list of `Ramp`, those of each growth so far.
    """
    if schedule is None and _FOLLOWERS.get(optimizer) is None:
        for ramp in ramps:
            _follow(optimizer, ramp)


def _follow(optimizer, ramp):
    """Leaves to a follower what is not done once and for all."""
    rest = dataclasses.replace(ramp, factor=1.0)
    if not rest.is_trivial:
        _FOLLOWERS.setdefault(optimizer, RateFollower()).add(rest)
