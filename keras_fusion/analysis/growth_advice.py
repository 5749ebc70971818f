"""`GrowthAdvice`: the courses that a plan of growth compares, and its verdict."""

import dataclasses
from typing import Any

from keras_fusion.errors import is_number, require

# The least saving that is worth the trouble of a growth.
_WORTH_WHILE = 0.05


@dataclasses.dataclass(frozen=True)
class ExistingParent:
    """A trained model to grow from, whose training is paid for.

    Args:
        params: int. Its parameters.
        loss: float. The validation loss, in nats, of what the grown model starts from.
            For several distinct parents that is the loss of the mean of their logits,
            which can be evaluated before anything is fused.
        tokens: float. What it has read. Defaults to unknown.

    Raises:
        FusionError: if a value is not finite and positive.

    Example:

    >>> from keras_fusion import ExistingParent
    >>> parent = ExistingParent(params=6e7, loss=3.1)
    """

    params: float
    loss: float
    tokens: float | None = None

    def __post_init__(self):
        for name in ("params", "loss"):
            check_positive(name, getattr(self, name))
        if self.tokens is not None:
            check_positive("tokens", self.tokens)


@dataclasses.dataclass(frozen=True)
class Course:
    """One way to the loss at which training from scratch would end.

    Args:
        name: string.
        sizes: tuple of floats. Parameters of each stage's model.
        tokens: tuple of floats. What each stage reads.
        flops: float. Training FLOPs until the loss of the run from scratch; infinite if
            it is out of reach.
        share: float. The same as a share of what the run from scratch spends.
        interval: pair of floats. Bounds of `share`, at 95%.
        loss: float. The loss, in nats, if as many FLOPs are spent as from scratch.

    Example:

    >>> from keras_fusion import ScalingLaw, plan_growth
    >>> law = ScalingLaw(1.7, 400.0, 0.34, 410.0, 0.28)
    >>> course = plan_growth(1e9, law=law, tokens=2e10).best_size
    >>> print(f"{course.sizes[0]:.1e} parameters, {course.share:.2f} of the FLOPs")
    6.8e+08 parameters, 0.96 of the FLOPs
    """

    name: str
    sizes: tuple[float, ...]
    tokens: tuple[float, ...]
    flops: float
    share: float
    interval: tuple[float, float]
    loss: float


@dataclasses.dataclass(frozen=True)
class GrowthAdvice:
    """What `plan_growth` predicts.

    Args:
        scratch: `Course` of the target alone.
        small: `Course` of the best smaller model alone.
        best_size: `Course` of the best model of any size alone, the compute-optimal
            envelope.
        growths: tuple of `Course`, by number of growths.

    Example:

    >>> from keras_fusion import ScalingLaw, plan_growth
    >>> law = ScalingLaw(1.7, 400.0, 0.34, 410.0, 0.28)
    >>> plan_growth(1e9, law=law, tokens=1e11).verdict()[:11]
    'Do not grow'
    """

    scratch: Course
    small: Course
    best_size: Course
    growths: tuple[Course, ...]

    @property
    def best_growth(self) -> Course:
        """The growth with the fewest FLOPs."""
        return min(self.growths, key=lambda course: course.share)

    @property
    def grow(self) -> bool:
        """Whether growing saves 5% or more of the FLOPs, at the interval's worse end."""
        return self.best_growth.interval[1] <= 1 - _WORTH_WHILE

    def verdict(self) -> str:
        """One sentence."""
        best = self.best_growth
        told = f"{best.share:.2f} ({best.interval[0]:.2f} to {best.interval[1]:.2f})"
        if not self.grow:
            return (
                f"Do not grow: it is predicted to need {told} of the from-scratch FLOPs, "
                f"which is no sure saving of {_WORTH_WHILE:.0%}."
            )
        text = f"Grow: {told} of the from-scratch FLOPs to the same loss."
        if self.best_size.share < best.share:
            text += (
                f" If the size need not be {short(self.scratch.sizes[0])}, a model of "
                f"{short(self.best_size.sizes[0])} parameters, trained alone, needs "
                f"{self.best_size.share:.2f}."
            )
        return text

    def __str__(self) -> str:
        """The verdict and a table."""
        head = f"{'course':<18} {'parameters':<26} {'tokens':<26} FLOPs    interval"
        lines = [self.verdict(), "", f"{head}      loss"]
        for course in (self.scratch, self.small, self.best_size, *self.growths):
            low, high = course.interval
            lines.append(
                f"{course.name:<18} {' -> '.join(map(short, course.sizes)):<26} "
                f"{' + '.join(map(short, course.tokens)):<26} {course.share:<8.2f} "
                f"{low:.2f} to {high:.2f}  {course.loss:.3f}"
            )
        return "\n".join(lines)


def check_positive(name: str, value: Any) -> None:
    """Refuses a number that is not finite and above zero, under an argument's name."""
    good = is_number(value) and value > 0
    require(good, name, value, "finite and positive")


def short(number: float) -> str:
    """Such as `1.5B`."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"
