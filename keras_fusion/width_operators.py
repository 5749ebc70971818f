"""The width growth of other methods, as operators for `GrowModel`."""

import keras
import numpy as np

from keras_fusion import arguments, copying, fusion, widening
from keras_fusion.errors import FusionError
from keras_fusion.growth_operators import GrowthOperator, register_operator

DRAWS = ("balanced", "random")


def _always_in_turn(model, grown, items):
    return copying.in_turn


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

    def plan(self, model: keras.Model) -> fusion.Plan:
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
    and its second by c**2. The paper says nothing of the state; it trains on at a tenth
    of the learning rate (`GrowModel(..., learning_rate_factor=0.1)`).

    Args:
        factor: number above 1. How many times as wide the model becomes; heads and
            widths must stay whole. Defaults to 2.
        draw: `"random"` draws the units to copy with replacement, as the paper does;
            `"balanced"` copies none a second time before all have been copied, which
            makes whole factors exact under norms, too. Defaults to `"balanced"`.
        exact: bool. Whether to refuse a growth that changes the function. Defaults to
            `True`.
        noise: float. Deviation of noise relative to the kernel's, by which the copies
            part; it cancels over the copies of each input. Defaults to 0.01. The paper
            adds noise as well where no dropout is used; that ours cancels is ours.
        seed: int. Seed of the draws and the noise.

    Raises:
        FusionError: for an unknown `draw`; in training, for a growth that would change
            the function.

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

    def __init__(
        self,
        factor: float = 2,
        draw: str = "balanced",
        exact: bool = True,
        noise: float = 0.01,
        seed: int | None = None,
    ):
        if draw not in DRAWS:
            raise FusionError(
                f"`draw` must be one of {DRAWS}. Received: draw={draw!r}."
            )
        self.factor = factor
        self.draw = draw
        self.exact = exact
        self.noise = noise
        self.seed = seed

    def plan(self, model: keras.Model) -> fusion.Plan:
        """Lays out the growth of a model; changes nothing."""
        seed = arguments.drawn_seed(self.seed)

        def choose(model, grown, items):
            groups = widening.common_groups(model, grown, items)
            free = widening.free_sizes(model, items)
            return lambda old, new: self._sources(old, new, seed, groups, free)

        plan = widening.make_plan(
            model, self.factor, choose, noise=self.noise, seed=seed
        )
        if not widening.has_even_norms(plan):
            if self.exact:
                raise FusionError(
                    f"Net2Net(factor={self.factor!r}, draw={self.draw!r}) copies the units "
                    f"of {model.name!r} unequally often, which changes the statistics of "
                    "its norms and so the function. Use a whole factor with "
                    "draw='balanced', Lemon(factor), or allow it with exact=False."
                )
            plan = plan.without_promise()
        return plan

    def _sources(self, old, new, seed, groups, free):
        """The units that a stretch of features copies."""
        if old == new:
            return np.arange(old)
        # Drawn from the sizes alone, so that all axes of one width copy alike.
        size = 1 if old in free else old // groups
        count, wanted = old // size, new // size
        rng = np.random.default_rng([seed, count, wanted])
        extra = wanted - count
        if self.draw == "random":
            drawn = rng.integers(0, count, extra)
        else:
            rounds = [rng.permutation(count) for _ in range(-(-extra // count))]
            drawn = np.concatenate(rounds)[:extra]
        units = np.concatenate([np.arange(count), drawn])
        return (units[:, None] * size + np.arange(size)).ravel()

    def __str__(self):
        """What the operator does, for the console."""
        return f"Net2Net x{self.factor}"

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {
            "factor": self.factor,
            "draw": self.draw,
            "exact": self.exact,
            "noise": self.noise,
            "seed": self.seed,
        }


@register_operator(
    "width",
    exact="always",
    source="Shen et al., Staged Training for Transformer Language Models, ICML 2022",
)
class StagedTraining(GrowthOperator):
    """Doubles the width with two copies side by side, and nothing that joins them.

    Kernels become [[W, 0], [0, W]], the readout is averaged; the function stays. That is
    `FusionOperator(factor=2, off_diagonal="zeros")`. Both halves get equal gradients and
    stay equal, unless dropout or `noise` parts them.

    The optimizer's state is carried by the paper's rule: first moments / 2, second
    moments / 4. The paper leaves the moments of the new off-diagonals at zero; here they
    are the copies', since those weights get the same gradients: zero second moments under
    an old step count would make the first updates too large. The paper then goes on with
    the bigger model's learning rate from an earlier point of its schedule; give
    `GrowModel` a `learning_rate_factor`, or `rewarmup_steps`.

    Args:
        noise: float. Deviation of noise on the off-diagonals relative to the kernel's,
            taken off the diagonals. Defaults to 0, as in the paper.
        seed: int. Seed of the noise.

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

    def __init__(self, noise: float = 0.0, seed: int | None = None):
        self.noise = noise
        self.seed = seed

    def plan(self, model: keras.Model) -> fusion.Plan:
        """Lays out the growth of a model; changes nothing."""
        return fusion.make_plan(
            model,
            factor=2,
            off_diagonal="paired" if self.noise else "zeros",
            off_diagonal_scale=self.noise,
            seed=self.seed,
        )

    def __str__(self):
        """What the operator does, for the console."""
        return "staged training x2"

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {"noise": self.noise, "seed": self.seed}


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

    Masked Structural Growth lets new weights of any start in by a mask that rises from 0
    to 1; its end point, reached at once, is this. The zeros in place of the mask are ours.

    The optimizer's first moments of new weights are zero, their second moments the
    average of the old ones', since zeros would make the first updates too large. Of the
    optimizer the paper says nothing that is needed here.

    Args:
        factor: number above 1. How many times as wide the model becomes; heads and
            widths must stay whole. Defaults to 2.

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

    def __init__(self, factor: float = 2):
        self.factor = factor

    def plan(self, model: keras.Model) -> fusion.Plan:
        """Lays out the growth of a model; changes nothing."""
        return fusion.make_plan(model, factor=self.factor, copies_of_one=1)

    def __str__(self):
        """What the operator does, for the console."""
        return f"zero padding x{self.factor}"

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {"factor": self.factor}
