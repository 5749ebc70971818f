"""LEMON: copies with unequal splits, and what no copy fills left without influence."""

import keras
import numpy as np

from keras_fusion.errors import FusionError
from keras_fusion.models import host, probe
from keras_fusion.operators import widening
from keras_fusion.operators.base import GrowthOperator, register_operator
from keras_fusion.operators.plan import Plan
from keras_fusion.values import calibration, copies, new_capacity


@register_operator(
    "width",
    exact="always, or it is refused",
    source="Wang et al., LEMON, ICLR 2024",
)
class Lemon(GrowthOperator):
    """Copies units with unequal splits, for any width that is whole.

    Each unit is copied in its turn, and what goes out of it is split unevenly among the
    copies, so that they are not alike. Where the features of a norm do not fill whole
    copies, the rest is the mean of them (zero under RMS norms), which no norm of this
    kind sees after its scale is corrected; so `factor=1.5` is exact in pre-norm networks.
    Norms after the residual sum are refused but for whole factors.

    The optimizer's state is carried at the scale of the gradients. The paper trains on
    from the smaller model's weights alone (`optimizer_state="reset"`), with the bigger
    model's largest rate and a faster decay of it.

    Args:
        factor: number above 1. How many times as wide the model becomes; heads and
            widths must stay whole. Defaults to 2.
        spread: float of at least 0 and below 1. How uneven the splits are: before they are
            made to sum to one, they are uniform between `1 - spread` and `1 + spread`.
            The paper says only that they differ. Defaults to 0.5.
        noise: float. Deviation of further noise relative to the kernel's, which cancels
            over the copies of each input. Splits by a number alone leave copies alike
            under Adam, which divides the gradient's scale away. Defaults to 0.01.
        seed: int. Seed of the splits and the noise.

    Raises:
        FusionError: for a `spread` out of range; in training, if the function would change.

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

    def __init__(
        self,
        factor: float = 2,
        spread: float = 0.5,
        noise: float = 0.01,
        seed: int | None = None,
    ):
        if not 0 <= spread < 1:
            raise FusionError(
                "`spread` must be at least 0 and below 1, so that each copy keeps some "
                f"influence. Received: spread={spread!r}."
            )
        self.factor = factor
        self.spread = spread
        self.noise = noise
        self.seed = seed

    def plan(self, model: keras.Model) -> Plan:
        """Lays out the growth of a model; changes nothing."""

        def choose(model, grown, items):
            norms = widening.joint_norms(model, grown)
            sizes = {i.sources[0].shape[-1] for i in items if id(i.target) in norms}
            expand = {True: copies.average_expansion, False: copies.in_turn}
            return lambda old, new: expand[old in sizes](old, new)

        plan = widening.make_plan(
            model,
            self.factor,
            choose,
            noise=self.noise,
            spread=self.spread,
            seed=self.seed,
            whole_copies=True,
        )
        _settle_empty(plan)
        return plan

    def __str__(self):
        """What the operator does, for the console."""
        return f"LEMON x{self.factor}"

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {
            "factor": self.factor,
            "spread": self.spread,
            "noise": self.noise,
            "seed": self.seed,
        }


def _settle_empty(plan: widening.Widening) -> None:
    """Gives positions that copy nothing a start at which they have no influence.

    What norms are given there is the mean of the other features, or zero where they
    subtract none, and they scale down by what that takes off their statistic. Weights
    that read it start from initial values, where the function does not notice.

    Args:
        plan: the plan, which is filled on the way.

    Raises:
        FusionError: if the function changes all the same.
    """
    model, norms = plan.parents[0], widening.joint_norms(plan.parents[0], plan.fused)
    empty = [i for i, item in enumerate(plan.layouts) if item.has_new]
    if not empty:
        return
    size = next(i.axes[-1] for i in plan.layouts if id(i.target) in norms and i.has_new)
    count = size.size // len(size.blocks[0])
    plan.corrections = calibration.for_new_capacity(model, plan.fused, count)
    targets = {i: id(plan.layouts[i].target) for i in empty}
    plan.fresh_roles = {i: ("out",) if targets[i] in norms else () for i in empty}
    if any(norm.centered for norm in norms.values()):
        plan.mean_outputs = frozenset(i for i in empty if targets[i] not in norms)
    fresh = {i: np.array(host.read(plan.layouts[i].target)) for i in empty}
    inputs = new_capacity.varied_inputs(plan)
    expected = probe.outputs(model, inputs)
    plan.fill()

    def change():
        return probe.change(expected, probe.outputs(plan.fused, inputs))

    difference = change()
    if not difference <= probe.tolerance(plan.fused):
        raise FusionError(
            f"{plan.fused.name!r} cannot have other than whole copies: norms after the "
            f"residual sum notice the rest, which changes the outputs by {difference:.1e}. "
            "Use a whole factor."
        )

    expected = probe.outputs(plan.fused, inputs)

    def value(index):
        sources = [host.read(v) for v in plan.layouts[index].sources]
        return plan.values(index, sources, fresh[index])

    tried = [i for i in empty if _reads_empty(plan.layouts[i])]
    new_capacity.try_fresh(plan, "in", tried, value, change)


def _reads_empty(item):
    places = copies.empty_positions(item.copied)
    return any(item.axes[dimension].role == "in" for dimension, _ in places)
