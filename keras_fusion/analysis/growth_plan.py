"""`plan_growth`: whether, from which size and when to grow, predicted by a scaling law."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from keras_fusion.analysis.growth_advice import (
    Course,
    ExistingParent,
    GrowthAdvice,
    check_positive,
    short,
)
from keras_fusion.analysis.scaling_law import ScalingLaw
from keras_fusion.errors import FusionError
from keras_fusion.models.names import helpful

Cost = Callable[[Any], Any]

_RATIOS = (1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 16.0)
_MOMENTS = 48
# A growth is followed by training, this share of the from-scratch tokens at least: new
# values need time, and no run with less was measured.
_LEAST_LEFT = 0.1


@helpful
def plan_growth(
    target: Any,
    *,
    law: ScalingLaw,
    tokens: float | None = None,
    flops: float | None = None,
    parents: Sequence[ExistingParent] | ExistingParent = (),
    mixing: float | tuple[float, float] = 0.0,
    most_growths: int = 2,
    flops_per_token: Cost | None = None,
) -> GrowthAdvice:
    """Predicts what growing a model saves, compared with the alternatives.

    A growth that keeps the loss leaves the grown model on its own curve, at the tokens
    after which it would have that loss from scratch (Shen et al., Staged Training for
    Transformer Language Models, ICML 2022). Under this assumption one growth saves
    little at 20 tokens per parameter, and much where the parents exist. `mixing`
    describes how far a growth departs from it.

    Args:
        target: the big model, built, or its number of parameters.
        law: `ScalingLaw`, fitted to annealed runs of your own models and text.
        tokens: float. What a run from scratch would read. Give this or `flops`.
        flops: float. Training FLOPs of a run from scratch.
        parents: `ExistingParent` or a list of these: each is tried as the start of one
            growth, and the courses then start from none.
        mixing: float from -1 to 1, or a pair of bounds. The grown model's curve reaches
            the parents' loss after fewer tokens than they have read; this share of the
            difference still counts. Slightly below 0 for growth in width (-0.24 for
            copies and -0.14 for new features of a parent that exists, in
            docs/savings.md); from -0.3 to 0.6 for new blocks in depth, the higher the
            more training follows. Defaults to `0.0`.
        most_growths: int. Growths from scratch that are tried, 1 or 2. Defaults to 2.
        flops_per_token: function from a number of parameters to the training FLOPs of
            one token. Defaults to 6 per parameter.

    Returns:
        A `GrowthAdvice`; as a string, a sentence and a table.

    Raises:
        FusionError: if an argument is out of range, both or neither of `tokens` and
            `flops` are given, or a parent is not smaller than the target.

    Example:

    >>> from keras_fusion import ExistingParent, ScalingLaw, plan_growth
    >>> law = ScalingLaw(1.7, 400.0, 0.34, 410.0, 0.28)
    >>> plan_growth(1e9, law=law, tokens=1e11).grow
    False
    >>> parent = ExistingParent(params=5e8, loss=2.67, tokens=2e10)
    >>> advice = plan_growth(1e9, law=law, tokens=2e10, parents=parent)
    >>> advice.grow, round(advice.best_growth.share, 2)
    (True, 0.41)
    """
    cost = flops_per_token or (lambda params: 6.0 * params)
    params = _parameters(target)
    run = _Run(
        law, params, _tokens(tokens, flops, cost(params)), cost, mixing_bounds(mixing)
    )
    if isinstance(parents, ExistingParent):
        parents = [parents]
    if most_growths not in (1, 2):
        raise FusionError(f"`most_growths` must be 1 or 2. Received: {most_growths!r}")
    if parents:
        growths = tuple(run.from_parent(parent) for parent in parents)
    else:
        growths = tuple(run.from_scratch(count) for count in range(1, most_growths + 1))
    small = [params / ratio for ratio in _RATIOS]
    any_size = (params * np.geomspace(1 / 30, 4, 120)).tolist()
    return GrowthAdvice(
        scratch=run.alone("from scratch", [params]),
        small=run.alone("small alone", small),
        best_size=run.alone("best size alone", any_size),
        growths=growths,
    )


@dataclasses.dataclass(frozen=True)
class _Run:
    """A target, and the loss that all courses must reach."""

    law: ScalingLaw
    params: float
    tokens: float
    cost: Cost
    mixing: tuple[float, float, float]

    @property
    def flops(self) -> float:
        return self.cost(self.params) * self.tokens

    def alone(self, name: str, sizes: Sequence[float]) -> Course:
        """The best course of one model."""

        def spent(law, size):
            read = law.tokens(size, law.loss(self.params, self.tokens))
            return self.cost(size) * read

        size = min(sizes, key=lambda size: spent(self.law, size))
        flops = spent(self.law, size)
        loss = self.law.loss(size, self.flops / self.cost(size))
        read = flops / self.cost(size)
        return self.course(
            name, (size,), (read,), lambda law, _: spent(law, size), loss
        )

    def from_scratch(self, count: int) -> Course:
        """The best course with so many growths."""
        best = min(self.paths(count), key=lambda path: path[0])
        _, sizes, ends = best
        read, left, spent = self.stages(self.law, sizes, ends, self.mixing[1])
        more = (self.flops - spent) / self.cost(self.params)
        loss = self.law.loss(self.params, self.tokens - left + more)
        return self.course(
            f"{count} growth" + "s" * (count > 1),
            (*sizes, self.params),
            (*map(float, read), float(self.at_least(left))),
            lambda law, mixing: self.total(*self.stages(law, sizes, ends, mixing)[1:]),
            float(loss),
        )

    def from_parent(self, parent: ExistingParent) -> Course:
        """The course from a model that is paid for."""
        if parent.params >= self.params:
            raise FusionError(
                "A parent must be smaller than the target. Received a parent of "
                f"{short(parent.params)} parameters for a target of "
                f"{short(self.params)}."
            )

        def left(law, mixing):
            start = worth(law, self.params, parent.loss, parent.tokens, mixing)
            return self.tokens - start

        remaining = max(float(left(self.law, self.mixing[1])), 0.0)
        start = self.tokens - left(self.law, self.mixing[1])
        return self.course(
            "from a parent",
            (parent.params, self.params),
            (0.0, remaining),
            lambda law, m: self.cost(self.params) * max(float(left(law, m)), 0.0),
            float(self.law.loss(self.params, start + self.tokens)),
        )

    def paths(self, count: int) -> Iterator[tuple[float, tuple, tuple]]:
        """The least FLOPs for each sequence of sizes, and the tokens that give them."""
        sizes = [self.params / ratio for ratio in _RATIOS]
        axes = np.meshgrid(
            *[np.geomspace(self.tokens / 100, self.tokens * 4, _MOMENTS)] * count,
            indexing="ij",
        )
        for chosen in itertools.combinations(sorted(sizes), count):
            stages = self.stages(self.law, chosen, axes, self.mixing[1])
            flops = self.total(*stages[1:])
            place = np.unravel_index(np.argmin(flops), flops.shape)
            yield float(flops[place]), chosen, tuple(float(x[place]) for x in axes)

    def stages(self, law: ScalingLaw, sizes, ends, mixing: float) -> tuple:
        """What the small models read, what is left to the target, and what they cost.

        Args:
            law: `ScalingLaw`.
            sizes: parameters of the small models, ascending.
            ends: for each, the tokens on its own curve at which it stops.
            mixing: float.
        """
        start, read, spent, reads = 0.0, 0.0, 0.0, []
        for size, end, bigger in zip(
            sizes, ends, (*sizes[1:], self.params), strict=True
        ):
            # A model that would stop before it starts is skipped.
            stage = np.maximum(end - start, 0.0)
            reads.append(stage)
            read, spent = read + stage, spent + self.cost(size) * stage
            loss = law.loss(size, np.maximum(end, start))
            start = worth(law, bigger, loss, read, mixing)
        return reads, self.tokens - start, spent

    def total(self, left, spent):
        """FLOPs in all."""
        return spent + self.cost(self.params) * self.at_least(left)

    def at_least(self, left):
        """The tokens of the target after a growth."""
        return np.maximum(left, _LEAST_LEFT * self.tokens)

    def course(self, name, sizes, tokens, spent, loss) -> Course:
        """A course with its interval; `spent` takes a law and a mixing."""
        flops = float(spent(self.law, self.mixing[1]))
        bounds = [
            self.law.interval(lambda law, m=m: float(spent(law, m)) / self.flops)
            for m in self.mixing
        ]
        return Course(
            name=name,
            sizes=tuple(float(size) for size in sizes),
            tokens=tokens,
            flops=flops,
            share=flops / self.flops,
            interval=(min(low for low, _ in bounds), max(high for _, high in bounds)),
            loss=float(loss),
        )


def worth(law: ScalingLaw, params: float, loss, read, mixing: float):
    """The tokens on a grown model's own curve that it starts at.

    Args:
        law: `ScalingLaw`.
        params: float. The grown model's parameters.
        loss: float or array. The small model's loss, which it keeps, in nats.
        read: float or array. The tokens that the small model has read; `None` if unknown.
        mixing: float, see `plan_growth`.
    """
    kept = law.tokens(params, loss)
    if read is None:
        return kept
    return kept + mixing * np.maximum(read - kept, 0.0)


def _parameters(target: Any) -> float:
    count = target.count_params() if hasattr(target, "count_params") else target
    check_positive("target", count)
    return float(count)


def _tokens(tokens: float | None, flops: float | None, cost: float) -> float:
    if (tokens is None) == (flops is None):
        raise FusionError(
            "Give either `tokens`, what a run from scratch would read, or `flops`, what "
            f"it would spend. Received tokens={tokens}, flops={flops}."
        )
    check_positive("tokens" if flops is None else "flops", tokens or flops)
    return float(tokens) if tokens is not None else float(flops) / cost  # type: ignore


def mixing_bounds(
    mixing: float | tuple[float, float],
) -> tuple[float, float, float]:
    """The lower bound of `mixing`, the middle and the upper bound, checked."""
    low, high = mixing if isinstance(mixing, Sequence) else (mixing, mixing)
    if not (math.isfinite(low) and math.isfinite(high) and -1 <= low <= high <= 1):
        raise FusionError(
            "`mixing` must be a number from -1 to 1, or an ascending pair of these. "
            f"Received: {mixing}"
        )
    return low, (low + high) / 2, high
