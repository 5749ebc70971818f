"""HyperCloning: every unit is copied equally often, and each kernel is W / factor."""

from typing import Any

import keras

from keras_fusion.models import probe as probes
from keras_fusion.models.renamed import renamed
from keras_fusion.operators import arguments, widening
from keras_fusion.operators.base import GrowthOperator, register_operator
from keras_fusion.operators.plan import Plan
from keras_fusion.values import copies


@register_operator(
    "width",
    exact="always",
    source="Samragh et al., Scaling Smart (HyperCloning), 2024",
)
class HyperCloning(GrowthOperator):
    """Tiles the weights: each unit is copied `factor` times, each kernel is W / factor.

    The function stays. Without noise or dropout all copies of a unit get equal
    gradients, and stay equal; with `noise_scale` they diverge at the first step.

    The optimizer's state is carried as if the network had always been tiled: first
    moments times 1/factor and second moments times 1/factor**2 where the gradients are
    that much smaller. The paper carries none: it trains the cloned model as a new one,
    at the rate of its size (`GrowModel(..., optimizer_state="reset")`).

    Args:
        factor: int. How many times as wide the model becomes. Defaults to 2.
        noise_scale: float. Standard deviation of the noise relative to the kernel's. The
            noise sums to zero over the copies of each input, so that the function is
            preserved. Defaults to 0, the paper's symmetric form.
        seed: int. Seed of the noise.
        probe: batch in the structure of the model's inputs, on which the growth is
            checked. By default a small random one is generated. Not part of the config.

    Raises:
        FusionError: for a factor that is not whole, or a negative noise.

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

    @renamed(noise="noise_scale")
    def __init__(
        self,
        factor: int = 2,
        noise_scale: float = 0.0,
        seed: int | None = None,
        probe: Any = None,
    ):
        arguments.check_whole_factor(
            factor, "HyperCloning", " It copies every unit equally often; see Net2Net."
        )
        arguments.check_noise_scale(noise_scale)
        arguments.check_seed(seed)
        self.factor = factor
        self.noise_scale = noise_scale
        self.seed = seed
        self.probe = probe

    def plan(self, model: keras.Model, seed: int | None = None) -> Plan:
        """Lays out the growth of a model; changes nothing."""
        with probes.given(self.probe):
            draft = widening.lay_out(
                model,
                self.factor,
                lambda draft: copies.in_turn,
                seed=arguments.chosen_seed(self.seed, seed),
                noise_scale=self.noise_scale,
            )
            return draft.plan()

    def __str__(self):
        """A short name of the operator, for the console."""
        return f"HyperCloning x{self.factor}"

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {
            "factor": self.factor,
            "noise_scale": self.noise_scale,
            "seed": self.seed,
        }
