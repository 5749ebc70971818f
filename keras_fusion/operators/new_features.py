"""New features: random ones beside the old, which go on reading old ones alone."""

from typing import Any

import keras

from keras_fusion.architecture.parents import Parents, check_factor, resolved
from keras_fusion.errors import FusionError
from keras_fusion.models import probe as probes
from keras_fusion.models.names import helpful
from keras_fusion.operators import arguments
from keras_fusion.operators.base import GrowthOperator, register_operator
from keras_fusion.operators.norms import settled
from keras_fusion.operators.plan import Plan, build_and_lay_out
from keras_fusion.values import calibration
from keras_fusion.values.fillers import LikeOldFiller

NORMS = ("joint", "block")


@register_operator(
    "width",
    exact='with norms="block"; with joint norms it is approximate',
    source="the package's own; zeros for what old units read: Gesmundo and Maile, 2023",
)
class NewFeatures(GrowthOperator):
    """Adds random features beside the old ones, which keep their values.

    Old features continue to read only old ones. New ones read all, through weights whose
    standard deviation is that of the old ones divided by the square root of the growth
    in fan-in, so that a new feature is about as large as an old one. What does not grow
    (a head) reads them with zero weights; before a tied head, the last norm's scale for
    new features starts at zero. New features are not copies: no symmetry has to be broken.

    A norm over old and new features has another statistic than before. With
    `norms="block"` it has one for each part, and the function stays; `AnnealBlockNorms`
    makes such norms joint ones later. With `norms="joint"` the function changes, recovers
    in training, and the model stays a stock one.

    New weights have first moments of zero, and second moments that are the average of the
    old ones', since zeros would make the first updates too large.

    Args:
        factor: number above 1. How many times as wide the model becomes; heads and
            widths must stay whole. Defaults to 2.
        norms: `"joint"` or `"block"`, see above. Defaults to `"joint"`.
        probe: batch in the structure of the model's inputs, on which the growth is
            checked. By default a small random one is generated. Not part of the config.

    Raises:
        FusionError: for a factor that is not above 1 or unknown norms; by `plan`, with
            `"block"`, for a model whose norms cannot be block-wise.

    Example:

    >>> import keras, keras_fusion
    >>> model = keras.Sequential(
    ...     [keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(1)]
    ... )
    >>> plan = keras_fusion.NewFeatures(factor=1.5).plan(model, seed=0)
    >>> plan.exact, [layer.units for layer in plan.fill().layers]
    (True, [12, 1])

    Source: the package's own. Zeros for what old units would read of new ones: Gesmundo
    and Maile, Composable Function-preserving Expansions for Transformer Architectures,
    2023. What it saves: docs/savings.md.
    """

    @helpful
    def __init__(self, factor: float = 2, norms: str = "joint", probe: Any = None):
        check_factor(factor)
        if norms not in NORMS:
            raise FusionError(
                f"`norms` must be one of {NORMS}. Received: norms={norms!r}"
            )
        self.factor = factor
        self.norms = norms
        self.probe = probe

    def plan(self, model: keras.Model, seed: int | None = None) -> Plan:
        """Lays out the growth of a model; changes nothing."""
        with probes.given(self.probe):
            return self._plan(model, arguments.chosen_seed(None, seed))

    def _plan(self, model, seed):
        is_block = self.norms == "block"
        models, capacity = resolved(model, self.factor, copies=1)
        draft = build_and_lay_out(
            Parents.of(models),
            seed=seed,
            block_norms=is_block,
            capacity=capacity,
            # Joint norms see features of the old ones' size, and need no other epsilon.
            epsilon_divisor=None if is_block else 1.0,
        )
        # Refuses norms that cannot be block-wise.
        settled(draft, self.norms, self.probe, others="'joint'")
        joint = any(map(calibration.is_joint, draft.matches))
        return draft.plan(LikeOldFiller(seed=seed), exact=not joint)

    def __str__(self):
        """A short name of the operator, for the console."""
        return f"new features x{self.factor}"

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {"factor": self.factor, "norms": self.norms}
