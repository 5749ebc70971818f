"""Zero padding: new units beside the old ones, without influence at first."""

from typing import Any

import keras

from keras_fusion.architecture.parents import check_factor
from keras_fusion.models import probe as probes
from keras_fusion.models.names import helpful
from keras_fusion.operators import arguments
from keras_fusion.operators.base import GrowthOperator, register_operator
from keras_fusion.operators.fusion_plan import plan_fusion
from keras_fusion.operators.plan import Plan


@register_operator(
    "width",
    exact="always, or it is refused",
    source="Yao et al., Masked Structural Growth, ICLR 2024 (its end point)",
)
class ZeroPadding(GrowthOperator):
    """Adds new units beside the old ones, which have no influence at first.

    On each way through a new unit one weight starts at zero and the others at their
    initial values, so that the function stays and the new weights learn. Which must be
    zero is found by trying on the model itself; where a layer norm would notice new
    features, they start as the mean of the old ones.

    Masked Structural Growth initializes new weights arbitrarily and fades them in with a
    mask that rises from 0 to 1; this is its end point, reached at once. Putting zeros in
    place of the mask is our choice.

    The optimizer's first moments of new weights are zero, their second moments the
    average of the old ones', since zeros would make the first updates too large. The
    paper says nothing about the optimizer that is needed here.

    Args:
        factor: number above 1. How many times as wide the model becomes; heads and
            widths must stay whole. Defaults to 2.
        probe: batch in the structure of the model's inputs, on which the growth is
            checked. By default a small random one is generated. Not part of the config.

    Raises:
        FusionError: for a factor that is not above 1; in training, if the function would
            change.

    Example:

    >>> import keras, keras_fusion
    >>> model = keras.Sequential(
    ...     [keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(1)]
    ... )
    >>> wide = keras_fusion.ZeroPadding(factor=1.5).plan(model).fill()
    >>> [layer.units for layer in wide.layers]
    [12, 1]

    Source: Yao et al., Masked Structural Growth for 2x Faster Language Model
    Pre-training, ICLR 2024; zeros for the new: Gesmundo and Maile, Composable
    Function-preserving Expansions for Transformer Architectures, 2023.
    """

    @helpful
    def __init__(self, factor: float = 2, probe: Any = None):
        check_factor(factor)
        self.factor = factor
        self.probe = probe

    def plan(self, model: keras.Model, seed: int | None = None) -> Plan:
        """Lays out the growth of a model; changes nothing."""
        seed = arguments.chosen_seed(None, seed)
        with probes.given(self.probe):
            return plan_fusion(model, factor=self.factor, seed=seed, copies=1)

    def __str__(self):
        """A short name of the operator, for the console."""
        return f"zero padding x{self.factor}"

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {"factor": self.factor}
