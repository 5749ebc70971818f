"""The learning rate after a growth, from the bracket."""

from typing import Any

import keras
import numpy as np

from keras_fusion import graft
from keras_fusion.analysis.dynamics.bracket import Bracket, Field
from keras_fusion.analysis.dynamics.derivatives import Derivatives
from keras_fusion.errors import FusionError
from keras_fusion.layout.parent_blocks import Blocks
from keras_fusion.models import host
from keras_fusion.values.rate_multipliers import degree


class BracketRate:
    """Measures the factor on the learning rate that keeps the loss's speed of descent.

    Right before a growth the loss falls at the speed `g A g` (see `Bracket`), right after
    it at `g C g` for the same rate, to which the past training of the small network adds
    `(t^2 / 2) B H A g`, with the bracket B, to leading order. The factor is

        (g A g) / (g C g + (t^2 / 2) B H A g),

    where t is the memory of the small network's descent: its steps times its rate, or one
    over the curvature along its field if that is less. That choice, and the bounds, are
    this package's own. For optimizers that normalize the gradient's scale (Adam) the
    fields are those of `Bracket(..., normalized=True)`.

    Args:
        x: inputs of the batch to measure on, in the form that `fit` takes.
        y: its targets.
        sample_weight: its sample weights, if any.
        smallest: float. The smallest factor. Defaults to 0.1.
        largest: float. The largest factor. Defaults to 2.

    Raises:
        FusionError: if the bounds are not positive and in order.

    Example:

    >>> import keras_fusion, numpy as np
    >>> x, y = np.ones((64, 4)), np.ones((64, 1))
    >>> rate = keras_fusion.dynamics.BracketRate(x, y)
    >>> grow = keras_fusion.DeepFusion(at_step=1000, learning_rate_factor=rate)
    """

    def __init__(
        self,
        x: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        smallest: float = 0.1,
        largest: float = 2.0,
    ):
        if not 0 < smallest <= largest:
            raise FusionError(
                "`smallest` and `largest` must be positive and in order. Received: "
                f"smallest={smallest!r}, largest={largest!r}."
            )
        self.batch = (x, y, sample_weight)
        self.smallest, self.largest = smallest, largest

    def check(self, model: keras.Model) -> None:
        """Checks, before training, that the factor can be measured.

        Raises:
            FusionError: if the scale of the optimizer's updates is unknown, or if the
                backend has no second derivatives.
        """
        for optimizer in graft.leaves(model.optimizer):
            degree(optimizer)
        Derivatives(model)(*self.batch)

    def __call__(
        self,
        model: keras.Model,
        blocks: Blocks,
        optimizer: keras.optimizers.Optimizer,
    ) -> float:
        """Measures the factor.

        Args:
            model: the grown model.
            blocks: `Blocks` of the growth.
            optimizer: its optimizer, with the step count and rate of the small network.

        Returns:
            float.
        """
        power = degree(optimizer)
        bracket = Bracket(model, blocks.speeds(power), normalized=power == 0)
        rate = float(host.to_numpy(optimizer.learning_rate))
        field = bracket(*self.batch)
        found = rate_factor(field, graft.steps(optimizer) * rate)
        return float(np.clip(found, self.smallest, self.largest))


def rate_factor(field: Field, time: float) -> float:
    """The factor of `BracketRate`, without bounds.

    Args:
        field: `Field` at the growth.
        time: float. Steps of the small network times their rate.

    Returns:
        float, 1 where the loss does not fall.

    Example: a network with a new bias, so that the loss falls faster.

    >>> import keras, numpy as np
    >>> from keras_fusion.dynamics import Bracket, rate_factor
    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> mask = [np.ones((1, 1)), np.zeros(1)]
    >>> field = Bracket(model, mask)(np.ones((4, 1)), np.ones((4, 1)))
    >>> round(rate_factor(field, time=0.0), 3)
    0.5
    """
    curvature = field.small_curvature
    if curvature > 0:
        time = min(time, 1 / curvature)
    # Half the bracket's effect on the loss, per unit of the grown phase's time.
    added = (
        time**2
        / 2
        * sum(
            float(np.vdot(b, u))
            for b, u in zip(field.bracket, field.of_small, strict=True)
        )
    )
    # Where the leading order would more than halve the speed, it is no longer valid.
    after = max(field.big_descent + added, field.big_descent / 2)
    return field.small_descent / after if after else 1.0
