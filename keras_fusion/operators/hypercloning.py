"""HyperCloning: every unit is copied equally often, and each kernel is W / factor."""

import keras

from keras_fusion.errors import FusionError
from keras_fusion.operators import widening
from keras_fusion.operators.base import GrowthOperator, register_operator
from keras_fusion.operators.plan import Plan
from keras_fusion.values import copies


def _always_in_turn(model, grown, items):
    return copies.in_turn


@register_operator(
    "width",
    exact="always",
    source="Samragh et al., Scaling Smart (HyperCloning), 2024",
)
class HyperCloning(GrowthOperator):
    """Tiles the weights: each unit is copied `factor` times, each kernel is W / factor.

    The function stays. Without noise or dropout all copies of a unit get equal
    gradients, and stay equal; with `noise` they part at the first step.

    The optimizer's state is carried as if the network had always been tiled: first
    moments times 1/factor and second moments times 1/factor**2 where the gradients are
    that much smaller. The paper carries none: it trains the cloned model as a new one,
    at the rate of its size (`GrowModel(..., optimizer_state="reset")`).

    Args:
        factor: int. How many times as wide the model becomes. Defaults to 2.
        noise: float. Deviation of the noise relative to the kernel's. It is taken off
            again over the copies of each input, so that the function stays. Defaults
            to 0, the paper's symmetric form.
        seed: int. Seed of the noise.

    Raises:
        FusionError: if the factor is not whole.

    Example:

    >>> import keras, keras_fusion
    >>> model = keras.Sequential(
    ...     [keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(1)]
    ... )
    >>> wide = keras_fusion.HyperCloning(factor=2).plan(model).fill()
    >>> [layer.units for layer in wide.layers]
    [16, 1]

    Source: Samragh et al., Scaling Smart: Accelerating Large Language Model Pre-training
    with Small Model Initialization, 2024. Their noise cancels in pairs of copies; here it
    does over all copies of an input.
    """

    def __init__(self, factor: int = 2, noise: float = 0.0, seed: int | None = None):
        if not isinstance(factor, (int, float)) or factor % 1:
            raise FusionError(
                "HyperCloning copies every unit equally often. Received: "
                f"factor={factor!r}. Give a whole factor, or use Net2Net(factor)."
            )
        self.factor = factor
        self.noise = noise
        self.seed = seed

    def plan(self, model: keras.Model) -> Plan:
        """Lays out the growth of a model; changes nothing."""
        return widening.make_plan(
            model, self.factor, _always_in_turn, noise=self.noise, seed=self.seed
        )

    def __str__(self):
        """What the operator does, for the console."""
        return f"HyperCloning x{self.factor}"

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {"factor": self.factor, "noise": self.noise, "seed": self.seed}
