"""`ScalingLaw`: the loss as a function of parameters and tokens, fitted on runs.

The form is that of Hoffmann et al., Training Compute-Optimal Large Language Models, 2022
(their approach 3), and so is the objective, a Huber loss of the logarithms.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from keras_fusion.errors import FusionError

_HUBER = 1e-3  # of the logarithm; an error of more than a thousandth counts linearly
_STARTS = [(a, b) for a in (0.2, 0.4, 0.7) for b in (0.2, 0.4, 0.7)]
_EXPONENTS = (0.02, 2.0)
_FEWEST = 6  # runs, for five constants


@dataclasses.dataclass(frozen=True)
class ScalingLaw:
    """The law `loss = E + A / parameters ** a + B / tokens ** b`.

    Args:
        irreducible: float. `E`, the loss of an unlimited model on unlimited text, in
            nats.
        size_scale: float. `A`.
        size_exponent: float. `a`.
        data_scale: float. `B`.
        data_exponent: float. `b`.
        resampled: tuple of `ScalingLaw`. The law fitted to resampled runs, which tells
            how sure it is. Defaults to none.

    Example:

    >>> from keras_fusion import ScalingLaw
    >>> law = ScalingLaw(1.7, 400.0, 0.34, 410.0, 0.28)
    >>> round(law.loss(1e9, 2e10), 2)
    2.58
    >>> round(law.tokens(1e9, 2.58) / 2e10, 1)
    1.0
    """

    irreducible: float
    size_scale: float
    size_exponent: float
    data_scale: float
    data_exponent: float
    resampled: tuple["ScalingLaw", ...] = dataclasses.field(default=(), repr=False)

    @classmethod
    def fit(
        cls,
        params: Sequence[float],
        tokens: Sequence[float],
        losses: Sequence[float],
        *,
        resamples: int = 100,
        seed: int = 0,
    ) -> "ScalingLaw":
        """Fits the law to finished runs, each with its learning rate fallen to zero.

        A run whose rate has not fallen ends far above what its tokens are worth, and a
        law of such runs makes every growth look good.

        Args:
            params: parameters of each run's model; of two sizes at least.
            tokens: tokens that each run has read.
            losses: its final validation loss, in nats.
            resamples: int. Fits to runs drawn with replacement, for intervals. Defaults
                to 100.
            seed: int. Of the draws. Defaults to `0`.

        Returns:
            A `ScalingLaw`.

        Raises:
            FusionError: if there are fewer than six runs, fewer than two sizes or
                numbers of tokens, or values that are not finite and positive.
            ImportError: if SciPy is not installed.
        """
        runs = _checked(params, tokens, losses)
        law = min(
            (_fitted(runs, start) for start in _starts(runs)), key=lambda x: x[1]
        )[0]
        random = np.random.default_rng(seed)
        drawn = (
            runs[random.integers(len(runs), size=len(runs))] for _ in itertools.count()
        )
        usable = (sample for sample in drawn if _tells_all(sample))
        resampled = tuple(
            _fitted(sample, law)[0]
            for sample, _ in zip(usable, range(resamples), strict=False)
        )
        return dataclasses.replace(law, resampled=resampled)

    def loss(self, params: Any, tokens: Any) -> Any:
        """The final loss of models of so many parameters on so many tokens.

        Args:
            params: float or array.
            tokens: float or array, of a shape that broadcasts with `params`.

        Returns:
            Float or array, in nats.
        """
        return self.floor(params) + self.data_scale * tokens**-self.data_exponent

    def floor(self, params: Any) -> Any:
        """The loss that models of so many parameters approach on unlimited text."""
        return self.irreducible + self.size_scale * params**-self.size_exponent

    def tokens(self, params: Any, loss: Any) -> Any:
        """The tokens after which models of so many parameters have a loss.

        Args:
            params: float or array.
            loss: float or array, in nats.

        Returns:
            Float or array; infinite where the loss is out of reach.
        """
        excess = np.maximum(np.asarray(loss, float) - self.floor(params), 0.0)
        with np.errstate(divide="ignore"):
            read = (excess / self.data_scale) ** (-1 / self.data_exponent)
        return read if read.ndim else float(read)

    def interval(
        self, function: Callable[["ScalingLaw"], float], level: float = 0.95
    ) -> tuple[float, float]:
        """Bounds of what follows from the law, over the resampled fits.

        Args:
            function: takes a `ScalingLaw`, returns a float.
            level: float. Defaults to `0.95`.

        Returns:
            The lower and the upper bound; without resampled fits, both are the value.
        """
        values = [function(law) for law in self.resampled or (self,)]
        tail = (1 - level) / 2
        low, high = np.quantile(values, [tail, 1 - tail])
        return float(low), float(high)

    def __str__(self) -> str:
        """The law as a formula."""
        return (
            f"L = {self.irreducible:.3f} + {self.size_scale:.4g} / N^"
            f"{self.size_exponent:.3f} + {self.data_scale:.4g} / D^"
            f"{self.data_exponent:.3f}"
        )


def _constants(law: ScalingLaw) -> tuple[float, ...]:
    fields = dataclasses.fields(law)
    return tuple(getattr(law, field.name) for field in fields[:-1])


def _checked(params: Any, tokens: Any, losses: Any) -> np.ndarray:
    """The runs as an array of shape `(runs, 3)`.

    Raises:
        FusionError: if a law cannot be fitted to them.
    """
    columns = [np.asarray(column, float).ravel() for column in (params, tokens, losses)]
    if len({len(column) for column in columns}) != 1:
        raise FusionError(
            "`params`, `tokens` and `losses` must have one value for each run. Received "
            f"{', '.join(str(len(column)) for column in columns)} values."
        )
    runs = np.stack(columns, axis=1)
    if not (np.isfinite(runs).all() and (runs > 0).all()):
        raise FusionError(
            "`params`, `tokens` and `losses` must be finite and positive. Received "
            f"{runs[~((runs > 0) & np.isfinite(runs)).all(axis=1)][0].tolist()}."
        )
    if len(runs) < _FEWEST or not _tells_all(runs):
        raise FusionError(
            f"A scaling law needs at least {_FEWEST} runs, of two or more sizes and two "
            f"or more numbers of tokens. Received {len(runs)} runs of "
            f"{len(set(runs[:, 0]))} sizes and {len(set(runs[:, 1]))} numbers of tokens."
        )
    return runs


def _tells_all(runs: np.ndarray) -> bool:
    """Whether both parameters and tokens differ."""
    return len(set(runs[:, 0])) > 1 and len(set(runs[:, 1])) > 1


def _starts(runs: np.ndarray) -> Iterator[ScalingLaw]:
    """Laws in which each term is a third of the mean loss."""
    params, tokens, losses = runs.T
    third = losses.mean() / 3
    for a, b in _STARTS:
        scales = third / np.mean(params**-a), third / np.mean(tokens**-b)
        yield ScalingLaw(third, scales[0], a, scales[1], b)


def _fitted(runs: np.ndarray, start: ScalingLaw) -> tuple[ScalingLaw, float]:
    """The best law near another one, and what it costs."""
    try:
        from scipy.optimize import least_squares
    except ImportError as error:
        raise ImportError("`ScalingLaw.fit` needs SciPy: pip install scipy") from error
    params, tokens, losses = runs.T

    def law(x):
        # Positive constants, of like size.
        irreducible, size_scale, data_scale = map(float, np.exp(x[[0, 1, 3]]))
        return ScalingLaw(irreducible, size_scale, float(x[2]), data_scale, float(x[4]))

    def errors(x):
        return np.log(law(x).loss(params, tokens)) - np.log(losses)

    x = np.array(_constants(start))
    x[[0, 1, 3]] = np.log(np.maximum(x[[0, 1, 3]], 1e-6))
    low, high = np.full(5, -14.0), np.full(5, 60.0)
    low[[2, 4]], high[[2, 4]] = _EXPONENTS
    found = least_squares(
        errors, np.clip(x, low, high), bounds=(low, high), loss="huber", f_scale=_HUBER
    )
    return law(found.x), float(found.cost)
