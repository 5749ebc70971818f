"""Staged training: two copies side by side, and nothing that joins them."""

from typing import Any

import keras

from keras_fusion.models import probe as probes
from keras_fusion.models.renamed import renamed
from keras_fusion.operators import arguments
from keras_fusion.operators.base import GrowthOperator, register_operator
from keras_fusion.operators.fusion_plan import plan_fusion
from keras_fusion.operators.plan import Plan


@register_operator(
    "width",
    exact="always",
    source="Shen et al., Staged Training for Transformer Language Models, ICML 2022",
)
class StagedTraining(GrowthOperator):
    """Doubles the width with two copies side by side, and nothing that joins them.

    Kernels become [[W, 0], [0, W]], the readout is averaged; the function stays. That is
    `FusionOperator(factor=2, off_diagonal="zeros")`. Both halves get equal gradients and
    stay equal, unless dropout or `noise_scale` makes them diverge.

    The optimizer's state is carried by the paper's rule: first moments / 2, second
    moments / 4. The paper leaves the moments of the new off-diagonals at zero; here they
    are the copies', since those weights get the same gradients: zero second moments under
    an old step count would make the first updates too large. The paper then continues
    with the bigger model's learning rate from an earlier point of its schedule; give
    `GrowModel` a `learning_rate_factor`, or `rewarmup_steps`.

    Args:
        noise_scale: float. Deviation of noise on the off-diagonals relative to the
            kernel's, taken off the diagonals. Defaults to 0, as in the paper.
        seed: int. Seed of the noise.
        probe: batch in the structure of the model's inputs, on which the growth is
            checked. By default a small random one is generated. Not part of the config.

    Raises:
        FusionError: for a negative noise.

    Example:

    >>> import keras, keras_fusion
    >>> model = keras.Sequential(
    ...     [keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(1)]
    ... )
    >>> wide = keras_fusion.StagedTraining().plan(model).fill()
    >>> [layer.units for layer in wide.layers]
    [16, 1]

    Source: Shen et al., Staged Training for Transformer Language Models, ICML 2022.
    """

    @renamed(noise="noise_scale")
    def __init__(
        self, noise_scale: float = 0.0, seed: int | None = None, probe: Any = None
    ):
        arguments.check_noise_scale(noise_scale)
        arguments.check_seed(seed)
        self.noise_scale = noise_scale
        self.seed = seed
        self.probe = probe

    def plan(self, model: keras.Model, seed: int | None = None) -> Plan:
        """Lays out the growth of a model; changes nothing."""
        with probes.given(self.probe):
            return plan_fusion(
                model,
                factor=2,
                off_diagonal="paired" if self.noise_scale else "zeros",
                noise_scale=self.noise_scale,
                seed=arguments.chosen_seed(self.seed, seed),
            )

    def __str__(self):
        """A short name of the operator, for the console."""
        return "staged training x2"

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {"noise_scale": self.noise_scale, "seed": self.seed}
