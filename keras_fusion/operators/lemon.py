"""LEMON: copies with unequal splits, and what no copy fills left without influence."""

import dataclasses
from typing import Any

import keras

from keras_fusion.architecture.parents import check_factor
from keras_fusion.errors import FusionError
from keras_fusion.models import probe as probes
from keras_fusion.models.renamed import renamed
from keras_fusion.operators import arguments, widening
from keras_fusion.operators.base import GrowthOperator, register_operator
from keras_fusion.operators.plan import Plan
from keras_fusion.values import copies, new_capacity


@register_operator(
    "width",
    exact="always, or it is refused",
    source="Wang et al., LEMON, ICLR 2024",
)
class Lemon(GrowthOperator):
    """Copies units with unequal splits, for any width that is whole.

    Units are copied in turn, and the outgoing weights of each are split unevenly among its
    copies, so that the copies differ. Where whole copies do not fill the features of a
    norm, the rest are set to the mean of the features (to zero under RMS norms), which
    does not affect such a norm once its scale is corrected; so `factor=1.5` is exact in
    pre-norm networks. Post-norm networks are refused unless the factor is an integer.

    The optimizer's state is carried at the scale of the gradients. The paper continues
    from the smaller model's weights alone (`optimizer_state="reset"`), with the bigger
    model's largest rate and a faster decay of it.

    Args:
        factor: number above 1. How many times as wide the model becomes; heads and
            widths must stay whole. Defaults to 2.
        spread: float of at least 0 and below 1. How uneven the splits are: before they are
            made to sum to one, they are uniform between `1 - spread` and `1 + spread`.
            The paper says only that they differ. Defaults to 0.5.
        noise_scale: float. Deviation of further noise relative to the kernel's, which
            cancels over the copies of each input. Splits by a number alone leave copies
            alike under Adam, which divides the gradient's scale away. Defaults to 0.01.
        seed: int. Seed of the splits and the noise.
        probe: batch in the structure of the model's inputs, on which the growth is
            checked. By default a small random one is generated. Not part of the config.

    Raises:
        FusionError: for arguments out of range; in training, if the function would change.

    Example:

    >>> import keras, keras_fusion
    >>> model = keras.Sequential(
    ...     [keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(1)]
    ... )
    >>> wide = keras_fusion.Lemon(factor=1.5, seed=0).plan(model).fill()
    >>> [layer.units for layer in wide.layers]
    [12, 1]

    Source: Wang et al., LEMON: Lossless Model Expansion, ICLR 2024.
    """

    @renamed(noise="noise_scale")
    def __init__(
        self,
        factor: float = 2,
        spread: float = 0.5,
        noise_scale: float = 0.01,
        seed: int | None = None,
        probe: Any = None,
    ):
        check_factor(factor)
        arguments.check_noise_scale(noise_scale)
        arguments.check_seed(seed)
        if not 0 <= spread < 1:
            raise FusionError(
                "`spread` must be at least 0 and below 1, so that each copy keeps some "
                f"influence. Received: spread={spread!r}."
            )
        self.factor = factor
        self.spread = spread
        self.noise_scale = noise_scale
        self.seed = seed
        self.probe = probe

    def plan(self, model: keras.Model, seed: int | None = None) -> Plan:
        """Lays out the growth of a model; changes nothing."""
        with probes.given(self.probe):
            return self._plan(model, seed)

    def _plan(self, model, seed):
        def choose(draft):
            normed = widening.normed_sizes(draft)
            expand = {True: copies.average_expansion, False: copies.in_turn}
            return lambda old, new: expand[old in normed](old, new)

        widened = widening.lay_out(
            model,
            self.factor,
            choose,
            seed=arguments.chosen_seed(self.seed, seed),
            noise_scale=self.noise_scale,
            spread=self.spread,
            whole_copies=True,
        )
        draft = widened.draft
        filler = new_capacity.settled(
            widened.filler, draft.matches, draft.layouts, count=int(self.factor)
        )
        return dataclasses.replace(widened, filler=filler).plan()

    def __str__(self):
        """A short name of the operator, for the console."""
        return f"LEMON x{self.factor}"

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {
            "factor": self.factor,
            "spread": self.spread,
            "noise_scale": self.noise_scale,
            "seed": self.seed,
        }
