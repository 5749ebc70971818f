"""Planning of the growth step: loss curves, a proposal, and a schedule.

A grown model is assumed to continue on the bigger model's own curve, from the point where
that has the loss at which the small one stopped: the assumption of staged training (Shen
et al., 2022). Then the best moment is where the small model's marginal gain per FLOP
falls below the bigger one's at the same loss.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_fusion.errors import FusionError
from keras_fusion.training.monitored import monitored
from keras_fusion.training.schedules import GrowthSchedule, Moment

# Kaplan et al., Scaling Laws for Neural Language Models, 2020: the loss after unlimited
# training falls with the number of parameters to this power, and the rest of the loss is
# the same function of the steps for all sizes (their equation 1.6).
CAPACITY_EXPONENT = 0.077


@dataclasses.dataclass(frozen=True)
class LossCurve:
    """A power law, `loss(steps) = floor + scale * steps ** -exponent`.

    Args:
        floor: float. The loss after unlimited training.
        scale: float.
        exponent: float.

    Example:

    >>> from keras_fusion.dynamics import LossCurve
    >>> curve = LossCurve.fit([100, 200, 400, 800], [4.0, 3.5, 3.25, 3.125])
    >>> round(curve(1600), 2)
    3.06
    """

    floor: float
    scale: float
    exponent: float

    @classmethod
    def fit(cls, steps: Sequence[float], losses: Sequence[float]) -> "LossCurve":
        """Fits the curve with the least squared error and a floor of at least zero.

        Args:
            steps: at least three different numbers of steps, above 0.
            losses: as many finite losses, which fall on the whole.

        Returns:
            A `LossCurve`.

        Raises:
            FusionError: if there are too few points, or they do not fall.
        """
        n, y = np.asarray(steps, "float64"), np.asarray(losses, "float64")
        if n.shape != y.shape or len(set(n)) < 3 or (n <= 0).any():
            raise FusionError(
                "A loss curve needs at least three different `steps` above 0, and as many "
                f"`losses`. Received: steps={list(steps)}, losses={list(losses)}."
            )
        found = [
            _at_exponent(n, y, exponent) for exponent in np.arange(0.02, 2.0, 0.02)
        ]
        found = [item for item in found if item is not None]
        if not np.isfinite(y).all() or not found:
            raise FusionError(
                "`losses` must be finite and fall, to fit a curve to them. Received: "
                f"losses={list(losses)}."
            )
        _, curve = min(found, key=lambda item: item[0])
        return cls(*curve)

    def __call__(self, steps: float) -> float:
        """The loss after a number of steps; infinite after none."""
        return self.floor + self.scale * steps**-self.exponent if steps else math.inf

    def steps_to(self, loss: float) -> float:
        """The number of steps after which a loss is reached; infinite if it never is."""
        if loss <= self.floor:
            return math.inf
        return ((loss - self.floor) / self.scale) ** (-1 / self.exponent)

    def gain(self, steps: float) -> float:
        """The decrease of the loss by one more step."""
        return self.exponent * (self(steps) - self.floor) / steps if steps else math.inf

    def bigger(self, parameters_ratio: float) -> "LossCurve":
        """The curve of a model with more parameters by a given ratio, by scaling laws."""
        floor = self.floor * parameters_ratio**-CAPACITY_EXPONENT
        return dataclasses.replace(self, floor=floor)


def _at_exponent(
    n: np.ndarray, y: np.ndarray, exponent: float
) -> tuple[float, tuple[float, float, float]] | None:
    """The best fit with this exponent: its error, and its floor, scale and exponent."""
    basis = n**-exponent
    spread = basis - basis.mean()
    scale = spread @ (y - y.mean()) / (spread @ spread)
    floor = y.mean() - scale * basis.mean()
    if floor < 0:
        floor, scale = 0.0, (basis @ y) / (basis @ basis)
    if not scale > 0:
        return None
    error = np.sum((floor + scale * basis - y) ** 2)
    return float(error), (float(floor), float(scale), float(exponent))


@dataclasses.dataclass(frozen=True)
class Proposal:
    """A growth step and the reason for it.

    Args:
        step: int. The step of the small model after which to grow; 0 to train the bigger
            model from the start.
        loss: float. The expected loss at the end of the budget.
        losses: dict from growth steps to the expected loss.
        reason: string.

    Example: see `propose`, which returns it.

    >>> from keras_fusion.dynamics import LossCurve, propose
    >>> small = LossCurve(floor=3.0, scale=30.0, exponent=0.5)
    >>> found = propose(
    ...     1e12, small=small, small_cost=1e8, big_cost=4e8, parameters_ratio=3.5
    ... )
    >>> found.losses[found.step] == found.loss
    True
    """

    step: int
    loss: float
    losses: dict[int, float]
    reason: str


def propose(
    budget: float,
    *,
    small: LossCurve,
    small_cost: float,
    big_cost: float,
    big: LossCurve | None = None,
    parameters_ratio: float | None = None,
    parents: int = 1,
    moments: int = 400,
) -> Proposal:
    """Proposes the growth step that ends at the lowest loss within a budget.

    Args:
        budget: float. Total training FLOPs, including the parents'.
        small: `LossCurve` of the small model, fitted to the run so far or an earlier one.
        small_cost: float. FLOPs per step of the small model.
        big_cost: float. FLOPs per step of the grown model.
        big: `LossCurve` of the bigger model. By default `small.bigger(parameters_ratio)`.
        parameters_ratio: float. Number of parameters of the grown model relative to the
            small one.
        parents: int. Number of small models to train: 1 for a self-fusion.
        moments: int. Number of moments to compare.

    Returns:
        A `Proposal`.

    Raises:
        FusionError: for invalid arguments.

    Example:

    >>> from keras_fusion.dynamics import LossCurve, propose
    >>> proposal = propose(
    ...     1e12,
    ...     small=LossCurve(floor=3.0, scale=30.0, exponent=0.5),
    ...     big=LossCurve(floor=2.0, scale=30.0, exponent=0.5),
    ...     small_cost=1e8,
    ...     big_cost=4e8,
    ... )
    >>> 0 < proposal.step < 1e4
    True
    """
    big = big or _bigger(small, parameters_ratio)
    costs = {"budget": budget, "small_cost": small_cost, "big_cost": big_cost}
    for name, value in costs.items():
        if not value > 0:
            raise FusionError(f"`{name}` must be positive. Received: {name}={value!r}.")
    last = budget / (parents * small_cost)
    losses = {}
    for step in np.unique(np.linspace(0, last, moments).astype(int)).tolist():
        rest = (budget - parents * small_cost * step) / big_cost
        start = big.steps_to(small(step)) if step else 0.0
        losses[step] = small(step) if math.isinf(start) else big(start + rest)
    best = min(losses, key=losses.__getitem__)
    reason = _reason(best, losses, small, big, parents * small_cost, big_cost)
    return Proposal(best, losses[best], losses, reason)


def _bigger(small: LossCurve, parameters_ratio: float | None) -> LossCurve:
    if parameters_ratio is None or not parameters_ratio > 1:
        raise FusionError(
            "Give the bigger model's curve as `big`, or `parameters_ratio` above 1 to "
            f"predict it. Received: parameters_ratio={parameters_ratio!r}."
        )
    return small.bigger(parameters_ratio)


def _reason(
    step: int,
    losses: Mapping[int, float],
    small: LossCurve,
    big: LossCurve,
    small_cost: float,
    big_cost: float,
) -> str:
    scratch = losses[0]
    if step == 0:
        return (
            f"Train the bigger model from the start: it is expected to end at "
            f"{scratch:.3f}, and no growth at a lower loss."
        )
    ours = small.gain(step) / small_cost * 1e12
    theirs = big.gain(big.steps_to(small(step))) / big_cost * 1e12
    return (
        f"Grow after step {step}, at a loss of {small(step):.3f}: there a TFLOP gains "
        f"{ours:.3g} in the small model and {theirs:.3g} in the bigger one. Expected at "
        f"the end: {losses[step]:.3f}, from scratch {scratch:.3f}."
    )


@keras.saving.register_keras_serializable(package="keras_fusion")
class WhenItPays(GrowthSchedule):
    """Grows when the small model's gain per FLOP falls below that of the bigger one.

    At the end of each epoch a `LossCurve` is fitted to the losses so far; the bigger
    model's curve is predicted from it by scaling laws, or given.

    Args:
        cost_ratio: float. FLOPs per step of the grown model over those of the small one,
            divided by the number of small models that are trained.
        parameters_ratio: float. Number of parameters of the grown model relative to the
            small one.
        big: `LossCurve` of the bigger model, instead of `parameters_ratio`.
        monitor: string. Name of the loss in the epoch's logs. Defaults to `"val_loss"`.
        min_epochs: int. Epochs before the first decision, at least 3. Defaults to 5.

    Raises:
        FusionError: for invalid arguments; in training, if the logs have no value named
            `monitor`.

    Attributes:
        curve: `LossCurve` of the last fit, or `None`.

    Example:

    >>> import keras_fusion
    >>> schedule = keras_fusion.dynamics.WhenItPays(cost_ratio=3.6, parameters_ratio=3.2)
    >>> grow = keras_fusion.DeepFusion(schedule=schedule)
    """

    def __init__(
        self,
        cost_ratio: float,
        parameters_ratio: float | None = None,
        big: LossCurve | dict[str, float] | None = None,
        monitor: str = "val_loss",
        min_epochs: int = 5,
    ):
        if not cost_ratio > 0:
            raise FusionError(
                f"`cost_ratio` must be positive. Received: cost_ratio={cost_ratio!r}."
            )
        if min_epochs < 3:
            raise FusionError(
                "`min_epochs` must be at least 3, the points that a curve needs. Received: "
                f"min_epochs={min_epochs!r}."
            )
        if isinstance(big, dict):
            big = LossCurve(**big)
        if big is None:
            _bigger(LossCurve(1.0, 1.0, 1.0), parameters_ratio)
        self.cost_ratio = cost_ratio
        self.parameters_ratio = parameters_ratio
        self.big = big
        self.monitor = monitor
        self.min_epochs = min_epochs
        self.reset()

    def reset(self) -> None:
        """Forgets the losses seen so far."""
        self._points: list[tuple[int, float]] = []
        self.curve: LossCurve | None = None

    def get_state(self) -> dict[str, Any]:
        """The losses seen so far."""
        return {"points": list(self._points)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Resumes from the result of `get_state`."""
        self._points = [(step, loss) for step, loss in state["points"]]

    def is_done(self, growths: int) -> bool:
        """Whether the model has grown."""
        return growths > 0

    def should_grow(self, moment: Moment) -> bool:
        """Whether a FLOP is better spent on the bigger model from now on."""
        if moment.logs is None or self.is_done(moment.growths):
            return False
        loss = monitored(moment.logs, self.monitor)
        if loss is None:
            return False
        if math.isfinite(loss):
            self._points.append((moment.step, loss))
        if len(self._points) < self.min_epochs:
            return False
        try:
            self.curve = small = LossCurve.fit(
                [step for step, _ in self._points], [loss for _, loss in self._points]
            )
        except FusionError:  # Losses that do not fall say nothing about the next ones.
            self.curve = None
            return False
        big = self.big or _bigger(small, self.parameters_ratio)
        start = big.steps_to(small(moment.step))
        if math.isinf(start):
            return False  # The bigger model is not expected to improve any further.
        return small.gain(moment.step) * self.cost_ratio < big.gain(start)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "cost_ratio": self.cost_ratio,
            "parameters_ratio": self.parameters_ratio,
            "big": dataclasses.asdict(self.big) if self.big else None,
            "monitor": self.monitor,
            "min_epochs": self.min_epochs,
        }
