"""The modified field of a training that grows, by backward error analysis.

Up to terms of third order, n steps of gradient descent of size h follow the flow of a
modified field over the time n h. If a small network is trained first and the grown one
after it, the two flows together are that of one field with a Lie bracket:
docs/dynamics.md has the derivation. The small network is contained in the grown one as
the parameters of its blocks, the others being fixed.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_fusion.analysis.dynamics.derivatives import (
    Derivatives,
    Vector,
    dot,
    norm,
)
from keras_fusion.errors import FusionError


@dataclasses.dataclass(frozen=True)
class Phases:
    """The lengths and learning rates of the two phases of a training run.

    Args:
        small_steps: int. Steps of the small network, n1.
        small_rate: float. Their learning rate, h1.
        big_steps: int. Steps of the grown network, n2.
        big_rate: float. Their learning rate, h2.

    Example:

    >>> from keras_fusion.dynamics import Phases
    >>> Phases(small_steps=10, small_rate=0.1, big_steps=20, big_rate=0.1).bracket_weight
    1.0
    """

    small_steps: int = 1
    small_rate: float = 1.0
    big_steps: int = 1
    big_rate: float = 1.0

    @property
    def bracket_weight(self) -> float:
        """The factor of the bracket in the modified field, n1 n2 h1 h2 / 2."""
        small, big = self.small_steps * self.small_rate, self.big_steps * self.big_rate
        return small * big / 2


class Bracket:
    """The Lie bracket of the small network's field and the grown one's.

    With the loss L, its gradient g and its second derivative H, the small network is
    trained along `f_small = -A g` and the grown one along `f_big = -C g`, where A and C
    are diagonal: A is the projection on the small network's parameters, or the speed at
    which its own training moves each of them, and C is one. The bracket is
    `[f_small, f_big] = f_big' f_small - f_small' f_big = C H A g - A H C g`.

    Args:
        model: the grown model, built and compiled.
        small: list of arrays A, one per trainable variable and of its shape: zeros and
            ones (`Blocks.masks()`), or speeds (`Blocks.speeds()`).
        normalized: bool. For optimizers that normalize the gradient's scale: C is then
            one number per variable, `mean |g| / mean g^2`, with which the loss falls as
            fast as under steps of the gradient's sign; A is multiplied by it.

    Raises:
        FusionError: if `small` does not fit the model.

    Example:

    >>> import keras, numpy as np
    >>> from keras_fusion.dynamics import Bracket
    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> mask = [np.ones((1, 1)), np.zeros(1)]  # a bias that was added
    >>> field = Bracket(model, mask)(np.ones((4, 1)), np.ones((4, 1)))
    >>> [v.shape for v in field.bracket]
    [(1, 1), (1,)]

    Source: Mazzawi et al., Deep Fusion, ICML 2024, use the bracket to explain growth; the
    formula is derived in docs/dynamics.md.
    """

    def __init__(self, model: keras.Model, small: Vector, *, normalized: bool = False):
        self.normalized = normalized
        self._small = [np.asarray(a, "float32") for a in small]
        # As tensors they are arguments of the compiled function, not constants in it.
        speeds = [keras.ops.convert_to_tensor(a) for a in self._small]

        def directions(gradient: list) -> list[list]:
            big = self._big(gradient, keras.ops)
            along = [c * g for c, g in zip(big, gradient, strict=True)]
            rows = zip(speeds, along, strict=True)
            return [[keras.ops.cast(a, v.dtype) * v for a, v in rows], along]

        self._derivatives = Derivatives(model, directions)
        _check(model, small)

    def _big(self, gradient: Sequence, backend: Any) -> list:
        """The numbers C, computed by `keras.ops` or NumPy."""
        if not self.normalized:
            return [1.0] * len(gradient)
        # A variable without a gradient does not move.
        tiny = np.finfo("float32").tiny
        return [
            backend.mean(backend.abs(g)) / (backend.mean(g * g) + tiny)
            for g in gradient
        ]

    def __call__(self, x: Any, y: Any, sample_weight: Any = None) -> "Field":
        """Computes the bracket on a batch, at the model's current weights.

        Args:
            x: inputs of a batch, in the form that `fit` takes.
            y: its targets.
            sample_weight: its sample weights, if any.

        Returns:
            The `Field`.
        """
        result = self._derivatives(x, y, sample_weight)
        of_small, of_big = result.products
        big = self._big(result.gradient, np)
        small = [a * c for a, c in zip(self._small, big, strict=True)]
        rows = zip(small, big, of_small, of_big, strict=True)
        return Field(
            loss=result.loss,
            gradient=result.gradient,
            small=small,
            big=big,
            bracket=[c * u - a * v for a, c, u, v in rows],
            of_small=of_small,
            of_big=of_big,
        )


def _check(model: keras.Model, small: Vector) -> None:
    shapes = [tuple(v.shape) for v in model.trainable_variables]
    given = [np.shape(a) for a in small]
    if shapes == given:
        return
    rows = zip(model.trainable_variables, shapes, given, strict=False)
    wrong = next(
        (f"{v.path!r} has {s}, the array {a}" for v, s, a in rows if s != a),
        f"{len(shapes)} variables, {len(given)} arrays",
    )
    raise FusionError(
        "`small` must have an array for each trainable variable, of its shape: "
        f"{wrong}."
    )


@dataclasses.dataclass(frozen=True)
class Field:
    """The two fields, their self-terms and their bracket at one point.

    Args:
        loss: float.
        gradient: vector g.
        small: vector A, the small network's speeds.
        big: list of numbers C, one per variable.
        bracket: vector `C H A g - A H C g`.
        of_small: vector `H A g`.
        of_big: vector `H C g`.

    A vector is a list of arrays, one per trainable variable and of its shape.

    Example: see `Bracket`, which returns it.

    >>> import numpy as np
    >>> from keras_fusion.dynamics import Field
    >>> g, a = [np.array([3.0, 4.0])], [np.array([1.0, 0.0])]
    >>> field = Field(1.0, g, a, [1.0], [0 * g[0]], g, g)
    >>> field.small_descent, field.big_descent
    (9.0, 25.0)
    """

    loss: float
    gradient: Vector
    small: Vector
    big: Sequence[float]
    bracket: Vector
    of_small: Vector
    of_big: Vector

    def implicit_regularization(self, learning_rate: float) -> float:
        """The term that gradient descent of this rate adds to the loss: h/4 |g|^2."""
        return learning_rate / 4 * dot(self.gradient, self.gradient)

    @property
    def small_descent(self) -> float:
        """The rate at which the loss falls along the small network's field, `g A g`."""
        return dot(self.gradient, _times(self.small, self.gradient))

    @property
    def big_descent(self) -> float:
        """The rate at which the loss falls along the grown network's field, `g C g`."""
        return dot(self.gradient, _times(self.big, self.gradient))

    @property
    def small_curvature(self) -> float:
        """The loss's curvature along the small network's field, `g A H A g / g A g`."""
        along = dot(_times(self.small, self.gradient), self.of_small)
        return along / self.small_descent if self.small_descent else 0.0

    @property
    def bracket_norm(self) -> float:
        """The bracket's Euclidean norm."""
        return norm(self.bracket)

    @property
    def alignment(self) -> float:
        """The cosine of the bracket and the descent direction, from -1 to 1.

        It is zero up to rounding: both fields descend the same loss, and H is symmetric,
        so `g C H A g = g A H C g`. The bracket affects the loss at third order only, see
        `bracket_effect`.
        """
        scale = self.bracket_norm * norm(self.gradient)
        return -dot(self.bracket, self.gradient) / scale if scale else 0.0

    def bracket_effect(self, phases: Phases) -> float:
        """The bracket's effect on the loss at the end of both phases, to leading order.

        Half the difference between training the small network first and the grown one
        after it, and the other way round, for phases of many small steps. Negative if the
        bracket helps.
        """
        small = phases.small_steps * phases.small_rate
        along_small = small * dot(self.bracket, self.of_small)
        big = phases.big_steps * phases.big_rate
        along_big = big * dot(self.bracket, self.of_big)
        return -phases.bracket_weight * (along_small + along_big)

    def modified(
        self, phases: Phases, *, with_bracket: bool = True
    ) -> list[np.ndarray]:
        """The modified field, whose flow over the time 1 equals both phases.

        Its error is of third order in the learning rates; of second order without the
        bracket.

        Args:
            phases: `Phases`. The lengths and learning rates.
            with_bracket: bool. Whether to include the bracket. Defaults to `True`.

        Returns:
            List of arrays, one per trainable variable and of its shape.
        """
        h1, n1 = phases.small_rate, phases.small_steps
        h2, n2 = phases.big_rate, phases.big_steps
        rows = zip(
            self.gradient,
            self.small,
            self.big,
            self.bracket,
            self.of_small,
            self.of_big,
            strict=True,
        )
        return [
            -n1 * h1 * a * g
            - n2 * h2 * c * g
            - n1 * h1**2 / 2 * a * of_small
            - n2 * h2**2 / 2 * c * of_big
            + with_bracket * phases.bracket_weight * bracket
            for g, a, c, bracket, of_small, of_big in rows
        ]


def _times(a: Sequence, b: Sequence) -> list:
    return [u * v for u, v in zip(a, b, strict=True)]
