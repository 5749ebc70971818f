"""The learning rate after a growth: a factor, a re-warm-up, a fresh bias correction."""

import dataclasses
import math
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
            (1 - beta_1**t)`, which is the correction of a fresh start.
    """

    factor: float = 1.0
    rewarmup_steps: int = 0
    start: int = 0
    betas: tuple[float, float] | None = None

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

    @property
    def length(self) -> int:
        """Steps after which the ramp stays within 1% of `factor`."""
        if self.betas is None:
            return self.rewarmup_steps
        return max(
            self.rewarmup_steps, math.ceil(math.log(0.02) / math.log(self.betas[1]))
        )

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
        schedule: the `LearningRateSchedule` before the growth.
        ramp: `Ramp`.
    """

    def __init__(self, schedule, ramp):
        self.schedule = schedule
        self.ramp = ramp

    def __call__(self, step):
        """The learning rate at `step`, the optimizer's `iterations`."""
        return self.schedule(step) * self.ramp(step)

    def get_config(self):
        """The constructor's arguments, serialized."""
        return {
            "schedule": keras.optimizers.schedules.serialize(self.schedule),
            "ramp": self.ramp.get_config(),
        }

    @classmethod
    def from_config(cls, config):
        """Rebuilds the schedule from `get_config`."""
        schedule = keras.optimizers.schedules.deserialize(config["schedule"])
        ramp = dict(config["ramp"])
        ramp["betas"] = tuple(ramp["betas"]) if ramp["betas"] else None
        return cls(schedule, Ramp(**ramp))


class RateFollower:
    """Moves a learning rate that is a variable along a ramp, step by step.

    Other callbacks may set the rate meanwhile (`ReduceLROnPlateau`); what they set is
    the rate that the ramp multiplies from then on.

    Args:
        ramp: `Ramp`.
    """

    def __init__(self, ramp: Ramp):
        self.ramp = ramp
        self._last = None
        self._base = None

    def is_over(self, step: int) -> bool:
        """Whether the ramp has reached its end before the given step count."""
        return step - self.ramp.start >= self.ramp.length

    def update(self, optimizer: keras.optimizers.Optimizer, step: int) -> None:
        """Sets the rate for the update that follows `step` updates."""
        current = float(ops.convert_to_numpy(optimizer.learning_rate))
        if self._last is None or not math.isclose(current, self._last, rel_tol=1e-6):
            self._base = current
        over = self.is_over(step)
        rate = self._base * (self.ramp.factor if over else self.ramp(step))
        optimizer.learning_rate = rate
        self._last = float(ops.convert_to_numpy(optimizer.learning_rate))
