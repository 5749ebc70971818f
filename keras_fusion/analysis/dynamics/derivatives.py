"""The loss of a Keras model as a function of its weights, and its derivatives.

The loss's second derivative is only applied to vectors: one product costs about as much
as two gradients, and no matrix is formed. Vectors are lists of arrays in the order of
`model.trainable_variables`.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from keras_fusion.errors import FusionError
from keras_fusion.models import host, tree

# One array per trainable variable.
Vector = Sequence[np.ndarray]
# A function from the gradient to the vectors to multiply, on tensors of the backend.
Directions = Callable[[list], Sequence[list]]

_HALF = ("float16", "bfloat16")


class Derivatives:
    """Gradient and second-derivative products of a compiled model's loss.

    The loss is that of `fit` in inference mode (no dropout), including penalties. Models
    of mixed precision are computed in float32. The functions are compiled once per shape
    of the batch; they use the model's weights at the time of the call.

    Args:
        model: a built, compiled model.
        directions: function from the gradient to a list of vectors, each of which is
            multiplied by the second derivative. It may use `keras.ops` only. By default
            there are none.

    Raises:
        FusionError: if the model is not compiled, or on PyTorch.

    Example:

    >>> import keras, numpy as np
    >>> from keras_fusion.dynamics import Derivatives
    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> derivatives = Derivatives(model, lambda gradient: [gradient])
    >>> result = derivatives(np.ones((4, 1)), np.ones((4, 1)))
    >>> [p.shape for p in result.products[0]]
    [(1, 1), (1,)]
    """

    def __init__(
        self,
        model: keras.Model,
        directions: Directions = lambda gradient: [],
    ):
        if not model.compiled:
            raise FusionError(
                f"{model.name!r} is not compiled, so it has no loss. Call compile() with "
                "the loss of the training run."
            )
        backend = keras.config.backend()
        if backend not in _ENGINES:
            raise FusionError(
                f"Second derivatives work on {sorted(_ENGINES)}. Received: the backend "
                f"{backend!r}."
            )
        self.model = model
        self._run = _ENGINES[backend](self._loss, directions)

    def __call__(self, x: Any, y: Any, sample_weight: Any = None) -> "Result":
        """Computes the loss, its gradient and the products on a batch.

        Args:
            x: inputs of a batch, in the form that `fit` takes.
            y: its targets.
            sample_weight: its sample weights, if any.

        Returns:
            `Result` of NumPy arrays.
        """
        values = [v.value for v in self.model.trainable_variables]
        others = [v.value for v in self.model.non_trainable_variables]
        batch: Any = keras.tree.map_structure(
            lambda a: a if a is None else keras.ops.convert_to_tensor(a),
            (x, y, sample_weight),
        )
        with _in_float32(self.model):
            loss, gradient, products = self._run(values, others, *batch)
        return Result(
            float(host.to_numpy(loss)),
            [host.to_numpy(g) for g in gradient],
            [[host.to_numpy(p) for p in product] for product in products],
        )

    def _loss(
        self, values: Sequence, others: Sequence, x: Any, y: Any, sample_weight: Any
    ) -> Any:
        model = self.model
        state = [
            *zip(model.trainable_variables, values, strict=True),
            *zip(model.non_trainable_variables, others, strict=True),
        ]
        # The model's state, such as its metrics, does not change.
        with keras.StatelessScope(state_mapping=state):
            outputs = model(x, training=False)
            return model.compute_loss(x, y, outputs, sample_weight, training=False)


@dataclasses.dataclass(frozen=True)
class Result:
    """The loss, its gradient, and the second derivative's products on a batch.

    Args:
        loss: float.
        gradient: list of arrays, one per trainable variable.
        products: list of such lists, one per direction.

    Example: see `Derivatives`, which returns it.

    >>> import keras, numpy as np
    >>> from keras_fusion.dynamics import Derivatives
    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> result = Derivatives(model)(np.ones((4, 1)), np.ones((4, 1)))
    >>> [g.shape for g in result.gradient], result.products
    ([(1, 1), (1,)], [])
    """

    loss: float
    gradient: list[np.ndarray]
    products: list[list[np.ndarray]]


def dot(a: Vector, b: Vector) -> float:
    """The inner product of two vectors, in float64."""
    return float(
        sum(np.vdot(np.asarray(u, "float64"), v) for u, v in zip(a, b, strict=True))
    )


def norm(a: Vector) -> float:
    """The Euclidean norm of a vector."""
    return float(np.sqrt(dot(a, a)))


@contextlib.contextmanager
def _in_float32(model: keras.Model) -> Iterator[None]:
    """Opens a scope in which layers of half precision compute in float32."""
    half = [
        (layer, layer.dtype_policy)
        for _, layer in tree.walk(model)
        if layer.compute_dtype in _HALF
    ]
    try:
        for layer, _ in half:
            layer.dtype_policy = "float32"
        yield
    finally:
        for layer, policy in half:
            layer.dtype_policy = policy


def _tensorflow(loss_of: Callable[..., Any], directions: Directions) -> Callable:
    import tensorflow as tf

    @tf.function(reduce_retracing=True, autograph=False)
    def run(
        values: Sequence, others: Sequence, x: Any, y: Any, sample_weight: Any
    ) -> tuple:
        values = [tf.identity(value) for value in values]
        with tf.GradientTape(persistent=True) as outer:
            outer.watch(values)
            with tf.GradientTape() as inner:
                inner.watch(values)
                loss = loss_of(values, others, x, y, sample_weight)
            zero = tf.UnconnectedGradients.ZERO
            slopes = inner.gradient(loss, values, unconnected_gradients=zero)
            gradient = [tf.convert_to_tensor(slope) for slope in slopes]
        products = [
            [
                tf.convert_to_tensor(product)
                for product in outer.gradient(gradient, values, vector, zero)
            ]
            # The second derivative is symmetric, so either side gives the product.
            for vector in directions(gradient)
        ]
        return loss, gradient, products

    return run


def _jax(loss_of: Callable[..., Any], directions: Directions) -> Callable:
    import jax

    @jax.jit
    def run(
        values: Sequence, others: Sequence, x: Any, y: Any, sample_weight: Any
    ) -> tuple:
        def slope(values: Sequence) -> tuple:
            loss, gradient = jax.value_and_grad(loss_of)(
                values, others, x, y, sample_weight
            )
            return gradient, loss

        gradient, product, loss = jax.linearize(slope, values, has_aux=True)
        return loss, gradient, [product(vector) for vector in directions(gradient)]

    return run


_ENGINES = {"tensorflow": _tensorflow, "jax": _jax}
