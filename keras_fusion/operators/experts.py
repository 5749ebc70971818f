"""Growth of a mixture of experts by copies of its experts."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_fusion.architecture.parents import check_parent
from keras_fusion.architecture.setters import setters, whole_numbers
from keras_fusion.errors import FusionError, is_integer, require
from keras_fusion.layout.axes import CopiedAxis
from keras_fusion.layout.variables import VariableLayout
from keras_fusion.models import probe as probes
from keras_fusion.models.names import helpful
from keras_fusion.operators import arguments, resized
from keras_fusion.operators.base import GrowthOperator
from keras_fusion.operators.plan import Plan
from keras_fusion.values.fillers import CopiesFiller

EXPERTS, TOP_K = "num_experts", "top_k"
# The kernels by which keras-hub's experts write to the stream, linearly.
_OUTPUTS = ("expert_feedforward_output_dense", "down_proj")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpertsFiller(CopiesFiller):
    """Fills with copies of the experts and of the router's columns.

    The noise has the sum zero over the copies of an expert.

    Args:
        deviations: dict from the index of a layout to the deviation of its noise,
            relative to that of its values.
    """

    deviations: dict[int, float] = dataclasses.field(default_factory=dict)

    def value(
        self, index: int, layout: VariableLayout, arrays: Sequence[np.ndarray]
    ) -> np.ndarray:
        """The experts, one set of copies behind the other."""
        value = super().value(index, layout, arrays)
        scale = self.deviations.get(index, 0.0) * float(np.std(arrays[0]))
        if not scale or not layout.grown:
            return value
        dimension = next(i for i, axis in enumerate(layout.axes) if axis.grown)
        rng, count = np.random.default_rng([self.seed, index]), round(layout.copies)
        drawn = rng.standard_normal((count, *arrays[0].shape))
        # Less its mean, and of the deviation that was asked for again.
        drawn = (drawn - drawn.mean(axis=0)) * (count / (count - 1)) ** 0.5
        return value + scale * np.concatenate(list(drawn), axis=dimension)


@keras.saving.register_keras_serializable(package="keras_fusion")
class ExpertGrowth(GrowthOperator):
    """Gives a mixture of experts more experts: copies, each with its router column.

    For keras-hub's mixtures (Mixtral, Qwen MoE, GPT-OSS), and classes whose configs have
    the keys `num_experts` and `top_k`. A token that was routed to an expert is routed to
    all its copies, which share its weight: `top_k` grows with the experts, and the
    function is preserved. Noise in the experts' output kernels, which sums to zero over
    the copies, makes them diverge from the first step on.

    With another `top_k` the router chooses among copies, so the function changes: the
    plan is then not exact, and the event reports by how much. In that case
    `router_noise` decides which copy is chosen.

    The optimizer's state is carried as if the copies had always been there: first moments
    divided by `factor`, second moments by its square. Dense feed-forward blocks are not
    turned into experts (upcycling): a live model keeps its classes, and a dense block's
    class has no experts.

    Args:
        factor: int of at least 2. How many times as many experts. Defaults to 2.
        top_k: int. To how many experts a token goes after the growth. Defaults to
            `factor` times as many as before, with which the function stays.
        noise_scale: float. Deviation of the noise in the experts' output kernels relative
            to theirs. Defaults to 0.25.
        router_noise: float. The same for the router's columns. It shifts weights between
            the copies, so that the function changes a little. Defaults to 0.
        seed: int. Seed of the noise.
        probe: batch in the structure of the model's inputs, on which the growth is
            checked. By default a small random one is generated. Not part of the config.

    Raises:
        FusionError: for arguments that cannot work; from `plan`, for a model without
            experts.

    Example:

    >>> import keras_fusion
    >>> operator = keras_fusion.ExpertGrowth(factor=2)
    >>> grow = keras_fusion.GrowModel(operator, keras_fusion.AtStep(1000))
    >>> str(operator)
    'experts x2'
    """

    @helpful
    def __init__(
        self,
        factor: int = 2,
        top_k: int | None = None,
        noise_scale: float = 0.25,
        router_noise: float = 0.0,
        seed: int | None = None,
        probe: Any = None,
    ):
        arguments.check_whole_factor(factor, "ExpertGrowth", "")
        good = top_k is None or is_integer(top_k, 1)
        require(good, "top_k", top_k, "a positive integer, or None")
        arguments.check_noise_scale(noise_scale)
        arguments.check_noise_scale(router_noise, "router_noise")
        arguments.check_seed(seed)
        self.factor = int(factor)
        self.top_k = top_k
        self.noise_scale = noise_scale
        self.router_noise = router_noise
        self.seed = seed
        self.probe = probe

    def plan(self, model: keras.Model, seed: int | None = None) -> Plan:
        """Lays out the growth of a model; changes nothing."""
        check_parent(0, model)
        seed = arguments.chosen_seed(self.seed, seed)
        holders = _with_experts(model)
        old, chosen = _one_pair(model, holders)
        new, top_k = old * self.factor, self.top_k or chosen * self.factor
        if top_k > new:
            raise FusionError(
                f"`top_k={top_k}` is more than the {new} experts of {model.name!r} after "
                "the growth. Name a smaller number."
            )
        axis = CopiedAxis(new, None, (np.arange(old),), sources=np.arange(new) % old)
        with probes.given(self.probe):
            grown, layouts = resized.lay_out(
                model,
                {id(layer): {EXPERTS: new, TOP_K: top_k} for layer in holders},
                (old, new),
                axis,
                seed=seed,
                copies=self.factor,
            )
        filler = ExpertsFiller(seed=seed, deviations=self._deviations(layouts))
        exact = top_k == chosen * self.factor and not self.router_noise
        return Plan((model,), grown, layouts, filler, exact, copies=True)

    def _deviations(self, layouts: Sequence[VariableLayout]) -> dict[int, float]:
        """The noise of each variable that gets some."""
        found = {}
        for index, layout in enumerate(layouts):
            if layout.grown and len(layout.axes) == 2 and layout.axes[-1].grown:
                found[index] = self.router_noise
            elif layout.target.name in _OUTPUTS and layout.grown:
                found[index] = self.noise_scale
        return found

    def notes(self, model: keras.Model) -> list[str]:
        """To how many experts a token goes, before and after."""
        try:
            old, chosen = _one_pair(model, _with_experts(model))
        except FusionError:
            return []
        top_k = self.top_k or chosen * self.factor
        text = f"Experts: {old} -> {old * self.factor}; of these a token uses "
        text += f"{chosen} -> {top_k}."
        if top_k != chosen * self.factor:
            text += (
                " It may now use several copies of one expert, and not all that it used: "
                f"the function changes. top_k={chosen * self.factor} keeps it."
            )
        return [text]

    def __str__(self):
        """A short name of the operator, for the console."""
        return f"experts x{self.factor}"

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {
            "factor": self.factor,
            "top_k": self.top_k,
            "noise_scale": self.noise_scale,
            "router_noise": self.router_noise,
            "seed": self.seed,
        }


def _with_experts(model: keras.Model) -> list[keras.Layer]:
    """The layers of a model whose configs count experts."""
    return [x for x in setters(model) if {EXPERTS, TOP_K} <= set(whole_numbers(x))]


def _one_pair(model: keras.Model, holders: Sequence[keras.Layer]) -> tuple[int, int]:
    """The number of experts, and to how many of them a token goes."""
    if not holders:
        raise FusionError(
            f"{type(model).__name__} {model.name!r} has no experts: no config in it has "
            f"{EXPERTS!r} and {TOP_K!r}. A dense feed-forward block is not turned into "
            "experts; grow its width (DeepFusion(only='feed_forward')), or copy its "
            "weights into a model of a class with experts before training."
        )
    pairs = {(n[EXPERTS], n[TOP_K]) for n in map(whole_numbers, holders)}
    if len(pairs) > 1:
        raise FusionError(
            f"{model.name!r} has several mixtures of experts, of {sorted(pairs)} (experts, "
            "experts a token), and they grow only if they are alike."
        )
    return pairs.pop()
