"""The learning rate of all trainings here: it warms up, stays, and falls."""

from typing import Any

import keras

ops: Any = keras.ops  # annotated as if its functions could return nothing


@keras.saving.register_keras_serializable(package="keras_fusion")
class WarmupStableDecay(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that rises linearly, stays at its peak, and falls.

    Args:
        peak: float.
        warmup_steps: int. Steps of the rise. Defaults to 0.
        decay_from: number. The step at which the fall begins. Defaults to `None`: never.
        decay_to: number. The step at which a linear fall ends at zero. Defaults to
            `None`: the rate falls as one over the square root of the step, like T5's.

    Either of the last two may also be a `keras.Variable`, so that several runs can
    branch off with one training function. (JAX compiles its value into the function.)

    Example:

    >>> from keras_fusion.t5.rate import WarmupStableDecay
    >>> linear = WarmupStableDecay(1.0, 10, decay_from=80, decay_to=100)
    >>> [round(float(linear(step)), 3) for step in (0, 4, 50, 90, 100)]
    [0.1, 0.5, 1.0, 0.5, 0.0]
    >>> of_t5 = WarmupStableDecay(0.01, decay_from=100)
    >>> [round(float(of_t5(step)), 4) for step in (0, 100, 400)]
    [0.01, 0.01, 0.005]

    Source: Hu et al., MiniCPM, COLM 2024, section 4; the inverse square root: Raffel et
    al., JMLR 2020, section 3.1.2.
    """

    def __init__(
        self,
        peak: float,
        warmup_steps: int = 0,
        decay_from: "float | keras.Variable | None" = None,
        decay_to: "float | keras.Variable | None" = None,
    ):
        self.peak = peak
        self.warmup_steps = warmup_steps
        self.decay_from = decay_from
        self.decay_to = decay_to

    def __call__(self, step: Any) -> Any:
        """The rate of the update that follows `step` updates."""
        step = ops.cast(step, "float32")
        share = ops.minimum((step + 1.0) / max(self.warmup_steps, 1), 1.0)
        if self.decay_from is None:
            return self.peak * share
        if self.decay_to is None:
            ratio = self.decay_from / ops.maximum(step, self.decay_from)
            return self.peak * share * ops.sqrt(ratio)
        length = ops.maximum(self.decay_to - self.decay_from, 1.0)
        fall = (self.decay_to - step) / length
        return self.peak * ops.clip(ops.minimum(share, fall), 0.0, 1.0)

    def get_config(self) -> dict:
        """The constructor's arguments, variables as their present values."""
        return {
            "peak": self.peak,
            "warmup_steps": self.warmup_steps,
            "decay_from": _number(self.decay_from),
            "decay_to": _number(self.decay_to),
        }


def _number(value: Any) -> Any:
    if isinstance(value, keras.Variable):
        return float(ops.convert_to_numpy(value))
    return value


@keras.saving.register_keras_serializable(package="keras_fusion")
class InverseSquareRoot(WarmupStableDecay):
    """The name and the config that T5's rate has in files of version 0.1.0."""

    @classmethod
    def from_config(cls, config: dict) -> WarmupStableDecay:
        """The same rate under its present name."""
        peak, warmup = config["peak"], config["warmup_steps"]
        return WarmupStableDecay(peak, warmup, decay_from=config["constant_steps"])
