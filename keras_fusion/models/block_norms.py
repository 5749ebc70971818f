"""Norms with one statistic per parent, which make fusion of distinct parents exact.

One norm over the concatenated features of several parents has one mean and one variance,
which are not the parents' own. These layers keep a mean and a variance for each block
of features. `blend` interpolates from these to one shared statistic; with `blend` at 1
the layers compute what Keras's do.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_fusion.errors import FusionError

__all__ = ["BlockLayerNormalization", "BlockRMSNormalization"]


class _BlockNorm(keras.Layer):
    """Base of both norms: the blocks, their statistics and the blend.

    It comes before a norm of Keras among the bases of a class.
    """

    # Attributes of the norm of Keras.
    axis: int | list[int]
    epsilon: float

    def __init__(self, blocks: tuple[int, ...], **kwargs: Any):
        super().__init__(**kwargs)
        sizes = tuple(int(size) for size in blocks)
        if not sizes or any(size < 1 for size in sizes):
            raise FusionError(
                "`blocks` must be the sizes of the blocks, each at least 1. Received: "
                f"blocks={blocks!r}."
            )
        if self.axis not in (-1, [-1]):
            raise FusionError(
                f"{type(self).__name__} normalizes the last axis only. Received: "
                f"axis={self.axis!r}."
            )
        self.blocks = sizes

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the weights of Keras's norm and the blend."""
        if input_shape[-1] != sum(self.blocks):
            raise FusionError(
                f"The sizes in `blocks` must add up to the input's last axis. Received: "
                f"blocks={self.blocks} for inputs of shape {tuple(input_shape)}."
            )
        super().build(input_shape)
        self.blend = self.add_weight(
            name="blend", shape=(), initializer="zeros", trainable=False
        )

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return super().get_config() | {"blocks": self.blocks}

    def _normalized(self, x: Any, centered: bool) -> Any:
        """The input normalized by its statistics, in float32 or wider."""
        x = _cast(x, keras.backend.result_type(x.dtype, "float32"))
        if centered:
            mean, variance = self._blended(_mean, x), self._blended(_variance, x)
            return (x - mean) * ops.rsqrt(variance + self.epsilon)
        return x * ops.rsqrt(self._blended(_mean_square, x) + self.epsilon)

    def _blended(self, statistic: Callable[[Any], Any], x: Any) -> Any:
        """A statistic of each feature's block, interpolated to that of all features."""
        blend = _cast(self.blend, x.dtype)
        parts: Any = ops.split(x, np.cumsum(self.blocks)[:-1].tolist(), axis=-1)
        owner = np.repeat(np.arange(len(self.blocks)), self.blocks)
        by_block = ops.concatenate([statistic(part) for part in parts], axis=-1)
        own: Any = ops.take(by_block, owner, axis=-1)
        return (1 - blend) * own + blend * statistic(x)


def _cast(x: Any, dtype: str) -> Any:
    return ops.cast(x, dtype)


def _mean(x: Any) -> Any:
    return ops.mean(x, axis=-1, keepdims=True)


def _mean_square(x: Any) -> Any:
    return _mean(ops.square(x))


def _variance(x: Any) -> Any:
    return _mean_square(x - _mean(x))


@keras.saving.register_keras_serializable(package="keras_fusion")
class BlockLayerNormalization(_BlockNorm, keras.layers.LayerNormalization):
    """Layer normalization with one mean and one variance for each block of features.

    Args:
        blocks: tuple of ints. Sizes of the blocks, which are consecutive on the last axis.
        **kwargs: arguments of `keras.layers.LayerNormalization`, whose weights it has.

    Input and output shape: `(..., sum(blocks))`.

    Raises:
        FusionError: if `blocks` does not fit the input.

    Example:

    >>> import numpy as np, keras_fusion
    >>> norm = keras_fusion.layers.BlockLayerNormalization((2, 2))
    >>> y = norm(np.array([[1.0, 3.0, 10.0, 30.0]]))
    >>> np.allclose(y, [[-1, 1, -1, 1]], atol=1e-2)
    True
    """

    def call(self, inputs: Any) -> Any:
        """Normalizes each block by its own statistics, or by blended ones."""
        x = self._normalized(inputs, centered=True)
        if self.gamma is not None:
            x = x * _cast(self.gamma, x.dtype)
        if self.beta is not None:
            x = x + _cast(self.beta, x.dtype)
        return _cast(x, self.compute_dtype)


@keras.saving.register_keras_serializable(package="keras_fusion")
class BlockRMSNormalization(_BlockNorm, keras.layers.RMSNormalization):
    """RMS normalization with one root mean square for each block of features.

    Args:
        blocks: tuple of ints. Sizes of the blocks, which are consecutive on the last axis.
        **kwargs: arguments of `keras.layers.RMSNormalization`, whose weights it has.

    Input and output shape: `(..., sum(blocks))`.

    Raises:
        FusionError: if `blocks` does not fit the input.

    Example:

    >>> import numpy as np, keras_fusion
    >>> norm = keras_fusion.layers.BlockRMSNormalization((2, 2))
    >>> y = norm(np.array([[3.0, 3.0, 50.0, -50.0]]))
    >>> np.allclose(y, [[1, 1, 1, -1]], atol=1e-2)
    True
    """

    def call(self, x: Any) -> Any:
        """Normalizes each block by its own statistic, or by a blended one."""
        y = self._normalized(x, centered=False)
        return _cast(y * _cast(self.scale, y.dtype), self.compute_dtype)


_BLOCK_NORMS = {
    keras.layers.LayerNormalization: BlockLayerNormalization,
    keras.layers.RMSNormalization: BlockRMSNormalization,
}


def is_block_norm(layer: keras.Layer) -> bool:
    """Whether a layer has one statistic per block."""
    return isinstance(layer, _BlockNorm)


def stock_class(layer: keras.Layer) -> type:
    """The layer's class; for a block norm the Keras class that it replaces."""
    pairs = ((block, stock) for stock, block in _BLOCK_NORMS.items())
    return next((stock for block, stock in pairs if type(layer) is block), type(layer))


def can_be_block_norm(layer: keras.Layer) -> bool:
    """Whether a layer is a norm of the last axis that is, or can become, a block norm."""
    return stock_class(layer) in _BLOCK_NORMS and layer.axis in (-1, [-1])


def norm_like(
    layer: keras.Layer, blocks: tuple[int, ...] | None, **options: Any
) -> keras.Layer:
    """Makes a new norm with the options of another.

    Args:
        layer: a norm for which `can_be_block_norm` holds.
        blocks: sizes of the new norm's blocks; `None` for a norm of Keras, with one
            statistic.
        **options: options in which the new norm differs.
    """
    stock = stock_class(layer)
    # Plain lists: one that Keras tracks would keep the old norm's weights alive.
    config = {
        key: list(value) if isinstance(value, list) else value
        for key, value in layer.get_config().items()
        if key != "blocks"
    } | options
    if blocks is None:
        return stock.from_config(config)
    return _BLOCK_NORMS[stock].from_config(config | {"blocks": blocks})
