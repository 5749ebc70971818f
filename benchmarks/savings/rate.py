"""A learning rate that rises, stays, and falls when it is told to."""

import keras


class Rate(keras.optimizers.schedules.LearningRateSchedule):
    """The rate of a trunk from which branches are taken.

    When to fall is held in variables, so that a branch needs no new training function.

    Args:
        peak: float.
        warmup_steps: int. Steps over which it rises to it.
    """

    def __init__(self, peak: float, warmup_steps: int):
        self.peak, self.warmup_steps = peak, warmup_steps
        self.begin = keras.Variable(1e9, trainable=False, dtype="float32")
        self.end = keras.Variable(2e9, trainable=False, dtype="float32")

    def stay(self) -> None:
        """Holds the rate from now on."""
        self.fall(1e9, 2e9)

    def fall(self, begin: float, end: float) -> None:
        """Lets the rate fall linearly from its peak to zero between two steps."""
        self.begin.assign(begin)
        self.end.assign(end)

    def __call__(self, step):
        """The rate of the update that follows `step` updates."""
        step = keras.ops.cast(step, "float32")
        rise = (step + 1.0) / self.warmup_steps
        rest = (self.end - step) / keras.ops.maximum(self.end - self.begin, 1.0)
        return self.peak * keras.ops.clip(keras.ops.minimum(rise, rest), 0.0, 1.0)

    def get_config(self):
        """The constructor's arguments."""
        return {"peak": self.peak, "warmup_steps": self.warmup_steps}
