"""`GrowthEvent`: the facts of one growth."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class GrowthEvent:
    """One growth of a live model.

    Args:
        step: int. Optimizer steps done when it happened, counted from 1.
        epoch: int. The epoch in which it happened, counted from 1.
        params_before: int. Number of parameters before.
        params_after: int. Number of parameters after.
        seconds: float. Wall time of building, filling and checking the bigger model.
        function_change: float. Largest change of the outputs on the probe batch,
            relative to their largest value; against the mean of the parents'.
        mean_change: float. Mean change of the outputs, relative to their mean size.
        argmax_agreement: float. Share of the probe's outputs with the same argmax.
        operator: string. What was done.
        rounding: string. The half-precision dtype of the weights of a model that computes
            in it, whose rounding is then all that an exact growth changes; `None` in
            other cases. Under a mixed policy the change is measured in float32.

    Example:

    >>> import keras, keras_fusion, numpy as np
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8)])
    >>> model.add(keras.layers.Dense(1))
    >>> model.compile("adam", "mse")
    >>> grow = keras_fusion.DeepFusion(at_step=2, verbose=0)
    >>> x = np.ones((32, 4), "float32")
    >>> _ = model.fit(x, x[:, :1], batch_size=8, verbose=0, callbacks=[grow])
    >>> event = grow.events[0]
    >>> event.step, event.params_before, event.params_after
    (2, 49, 97)
    """

    step: int
    epoch: int
    params_before: int
    params_after: int
    seconds: float
    function_change: float
    mean_change: float
    argmax_agreement: float
    operator: str
    rounding: str | None = None

    def to_dict(self) -> dict:
        """The event as plain data."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        """The event as one line."""
        rounding = f", rounding of {self.rounding}" if self.rounding else ""
        return (
            f"keras_fusion: step {self.step} (epoch {self.epoch}): {self.operator}, "
            f"{self.params_before:,} -> {self.params_after:,} parameters in "
            f"{self.seconds:.1f} s, function change {self.function_change:.1e} "
            f"(mean {self.mean_change:.1e}, same argmax {self.argmax_agreement:.1%}"
            f"{rounding})"
        )
