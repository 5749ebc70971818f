"""Net2Net: units are copied, and what goes out of each is divided among its copies."""

from typing import Any

import keras
import numpy as np

from keras_fusion.architecture.parents import check_factor
from keras_fusion.errors import FusionError
from keras_fusion.models import probe as probes
from keras_fusion.models.renamed import renamed
from keras_fusion.operators import arguments, widening
from keras_fusion.operators.base import GrowthOperator, register_operator
from keras_fusion.operators.plan import Plan

DRAWS = ("balanced", "random")


@register_operator(
    "width",
    exact="without joint norms, or where every unit is copied equally often",
    source="Chen et al., Net2Net, ICLR 2016",
)
class Net2Net(GrowthOperator):
    """Copies units, and divides what goes out of each by the number of its copies.

    Net2WiderNet, for whole networks. Heads are copied whole, and features of one head
    stay together. One layer or RMS norm over units that are copied unequally often has
    another statistic than before, so that the function changes; that is refused unless
    `exact=False`.

    The optimizer's state is carried as if the network had always had the copies: a unit
    of c copies gets 1/c of the old gradient in each, its first moments are divided by c
    and its second by c**2. The paper says nothing of the state; it continues at a tenth
    of the learning rate (`GrowModel(..., learning_rate_factor=0.1)`).

    Args:
        factor: number above 1. How many times as wide the model becomes; heads and
            widths must stay whole. Defaults to 2.
        draw: `"random"` draws the units to copy with replacement, as the paper does;
            `"balanced"` copies none a second time before all have been copied, which
            makes whole factors exact under norms, too. Defaults to `"balanced"`.
        exact: bool. Whether to refuse a growth that changes the function. Defaults to
            `True`.
        noise_scale: float. Standard deviation, relative to the kernel's, of the noise that
            makes copies diverge; it cancels over the copies of each input. Defaults to
            0.01. The paper too adds noise where no dropout is used; the cancelling is ours.
        seed: int. Seed of the draws and the noise.
        probe: batch in the structure of the model's inputs, on which the growth is
            checked. By default a small random one is generated. Not part of the config.

    Raises:
        FusionError: for arguments that cannot work; in training, for a growth that
            would change the function.

    Example:

    >>> import keras, keras_fusion
    >>> model = keras.Sequential(
    ...     [keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(1)]
    ... )
    >>> wide = keras_fusion.Net2Net(factor=1.5, seed=0).plan(model).fill()
    >>> [layer.units for layer in wide.layers]
    [12, 1]

    Source: Chen, Goodfellow and Shlens, Net2Net: Accelerating Learning via Knowledge
    Transfer, ICLR 2016; for transformers Chen et al., bert2BERT, ACL 2022.
    """

    @renamed(noise="noise_scale")
    def __init__(
        self,
        factor: float = 2,
        draw: str = "balanced",
        exact: bool = True,
        noise_scale: float = 0.01,
        seed: int | None = None,
        probe: Any = None,
    ):
        if draw not in DRAWS:
            raise FusionError(
                f"`draw` must be one of {DRAWS}. Received: draw={draw!r}."
            )
        check_factor(factor)
        arguments.check_noise_scale(noise_scale)
        arguments.check_seed(seed)
        self.factor = factor
        self.draw = draw
        self.exact = exact
        self.noise_scale = noise_scale
        self.seed = seed
        self.probe = probe

    def plan(self, model: keras.Model, seed: int | None = None) -> Plan:
        """Lays out the growth of a model; changes nothing."""
        seed = arguments.chosen_seed(self.seed, seed)

        def choose(draft):
            groups, free = widening.common_groups(draft), widening.free_sizes(draft)
            return lambda old, new: self._sources(old, new, seed, groups, free)

        with probes.given(self.probe):
            widened = widening.lay_out(
                model, self.factor, choose, seed=seed, noise_scale=self.noise_scale
            )
        exact = widening.has_even_norms(widened.draft)
        if self.exact and not exact:
            raise FusionError(
                f"Net2Net(factor={self.factor!r}, draw={self.draw!r}) copies the units "
                f"of {model.name!r} unequally often, which changes the statistics of "
                "its norms and so the function. Use a whole factor with "
                "draw='balanced', Lemon(factor), or allow it with exact=False."
            )
        return widened.plan(exact=exact)

    def _sources(self, old, new, seed, groups, free):
        """The units that a stretch of features copies."""
        if old == new:
            return np.arange(old)
        # Drawn from the sizes alone, so that all axes of one width copy alike.
        size = 1 if old in free else old // groups
        if old % size or new % size:
            raise FusionError(
                f"Net2Net(factor={self.factor!r}) cannot copy {old} features to {new}: "
                f"they are copied in groups of {size}. Use a whole factor."
            )
        count, wanted = old // size, new // size
        rng = np.random.default_rng([seed, count, wanted])
        extra = wanted - count
        if self.draw == "random":
            drawn = rng.integers(0, count, extra)
        else:
            rounds = [rng.permutation(count) for _ in range(-(-extra // count))]
            drawn = np.ravel(rounds)[:extra].astype(int)
        units = np.concatenate([np.arange(count), drawn])
        return (units[:, None] * size + np.arange(size)).ravel()

    def __str__(self):
        """A short name of the operator, for the console."""
        return f"Net2Net x{self.factor}"

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {
            "factor": self.factor,
            "draw": self.draw,
            "exact": self.exact,
            "noise_scale": self.noise_scale,
            "seed": self.seed,
        }
