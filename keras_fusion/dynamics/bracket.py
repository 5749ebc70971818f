"""The modified field of a training that grows, by backward error analysis.

n steps of gradient descent of size h follow, up to terms of third order, the flow over
the time n h of a modified field. For a small network trained first and the grown one
after it, the two flows together are that of one field with a Lie bracket:
docs/dynamics.md has the derivation. The small network lives inside the grown one as the
parameters of its blocks, the others held fixed, which a mask of zeros and ones tells.
"""

import dataclasses

import keras
import numpy as np

from keras_fusion.dynamics.derivatives import Derivatives, dot, norm
from keras_fusion.errors import FusionError


@dataclasses.dataclass(frozen=True)
class Phases:
    """How long and with which steps both phases train.

    Args:
        small_steps: int. Steps of the small network, n1.
        small_rate: float. Their learning rate, h1.
        big_steps: int. Steps of the grown network, n2.
        big_rate: float. Their learning rate, h2.
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

    With the loss L, its gradient g, its second derivative H and the projection P on the
    small network's parameters, the fields are `f_small = -P g` and `f_big = -g`, and the
    bracket is `[f_small, f_big] = f_big' f_small - f_small' f_big = H P g - P H g`.

    Args:
        model: the grown model, built and compiled.
        mask: list of arrays of zeros and ones, one a trainable variable and of its shape:
            ones where the small network's parameters are.

    Raises:
        FusionError: if the mask does not fit the model.

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
    formula is derived anew in docs/dynamics.md.
    """

    def __init__(self, model: keras.Model, mask: list):
        self._derivatives = Derivatives(model, lambda g: [self._project(g), g])
        shapes = [tuple(v.shape) for v in model.trainable_variables]
        given = [np.shape(m) for m in mask]
        if shapes != given:
            wrong = next(
                (
                    f"{v.path!r} has {s}, the mask {g}"
                    for v, s, g in zip(
                        model.trainable_variables, shapes, given, strict=False
                    )
                    if s != g
                ),
                f"{len(shapes)} variables, {len(given)} masks",
            )
            raise FusionError(
                f"`mask` must have an array for each trainable variable, of its shape: "
                f"{wrong}."
            )
        self.mask = [np.asarray(m, "float32") for m in mask]

    def _project(self, vector):
        return [
            v * keras.ops.cast(m, v.dtype)
            for v, m in zip(vector, self.mask, strict=True)
        ]

    def __call__(self, x, y, sample_weight=None) -> "Field":
        """Computes the bracket on a batch, at the model's present weights.

        Args:
            x: the inputs of a batch, as `fit` takes them.
            y: its targets.
            sample_weight: its weights, if any.

        Returns:
            The `Field`.
        """
        result = self._derivatives(x, y, sample_weight)
        of_small, of_big = result.products
        masked = [m * v for m, v in zip(self.mask, of_big, strict=True)]
        return Field(
            loss=result.loss,
            gradient=result.gradient,
            mask=self.mask,
            bracket=[a - b for a, b in zip(of_small, masked, strict=True)],
            of_small=of_small,
            of_big=of_big,
        )


@dataclasses.dataclass(frozen=True)
class Field:
    """Both fields, their self-terms and their bracket at one point.

    Args:
        loss: float.
        gradient: vector g.
        mask: vector of zeros and ones, P.
        bracket: vector `H P g - P H g`.
        of_small: vector `H P g`.
        of_big: vector `H g`.
    """

    loss: float
    gradient: list
    mask: list
    bracket: list
    of_small: list
    of_big: list

    def implicit_regularization(self, learning_rate: float) -> float:
        """What gradient descent of this rate minimizes besides the loss: h/4 |g|^2."""
        return learning_rate / 4 * dot(self.gradient, self.gradient)

    @property
    def bracket_norm(self) -> float:
        """The bracket's Euclidean norm."""
        return norm(self.bracket)

    @property
    def alignment(self) -> float:
        """The cosine of the bracket and the descent direction, from -1 to 1.

        Positive if the bracket helps to lower the loss; zero if there is no bracket.
        """
        scale = self.bracket_norm * norm(self.gradient)
        return -dot(self.bracket, self.gradient) / scale if scale else 0.0

    def loss_change(self, phases: Phases) -> float:
        """What the bracket adds to the loss over both phases, to leading order."""
        return phases.bracket_weight * dot(self.gradient, self.bracket)

    def modified(self, phases: Phases, *, with_bracket: bool = True) -> list:
        """The modified field, whose flow over the time 1 is both phases.

        Its error is of third order in the learning rates; of second order without the
        bracket.
        """
        h1, n1 = phases.small_rate, phases.small_steps
        h2, n2 = phases.big_rate, phases.big_steps
        rows = zip(
            self.gradient,
            self.mask,
            self.bracket,
            self.of_small,
            self.of_big,
            strict=True,
        )
        return [
            -n1 * h1 * m * g
            - n2 * h2 * g
            - n1 * h1**2 / 2 * m * small
            - n2 * h2**2 / 2 * big
            + with_bracket * phases.bracket_weight * bracket
            for g, m, bracket, small, big in rows
        ]
