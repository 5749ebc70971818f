"""Norms with one statistic a parent, which make fusion of distinct parents exact.

One norm over the joined features of several parents has one mean and one variance,
which are not the parents' own. These layers keep a mean and a variance for each block
of features. While the blocks lie in a model they can be led over to one shared
statistic, by `blend`; with `blend` at 1 the layers compute what Keras's do.
"""

import keras
import numpy as np
from keras import ops

from keras_fusion.errors import FusionError

__all__ = ["BlockLayerNormalization", "BlockRMSNormalization"]


class _BlockNorm:
    """What both norms share: the blocks, their statistics and the blend."""

    def __init__(self, blocks, **kwargs):
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

    def build(self, input_shape):
        """Creates the weights of Keras's norm, and the blend."""
        if input_shape[-1] != sum(self.blocks):
            raise FusionError(
                f"The sizes in `blocks` must add up to the input's last axis. Received: "
                f"blocks={self.blocks} for inputs of shape {tuple(input_shape)}."
            )
        super().build(input_shape)
        self.blend = self.add_weight(
            name="blend", shape=(), initializer="zeros", trainable=False
        )

    def get_config(self):
        """The constructor's arguments."""
        return super().get_config() | {"blocks": self.blocks}

    def _normalized(self, x, centered):
        """The input by its statistics, in float32 at least."""
        x = ops.cast(x, keras.backend.result_type(x.dtype, "float32"))
        blend = ops.cast(self.blend, x.dtype)
        parts = ops.split(x, np.cumsum(self.blocks)[:-1].tolist(), axis=-1)
        owner = np.repeat(np.arange(len(self.blocks)), self.blocks)

        def blended(of_block, of_all):
            joined = ops.concatenate([of_block(part) for part in parts], axis=-1)
            return (1 - blend) * ops.take(joined, owner, axis=-1) + blend * of_all

        if centered:
            mean = blended(_mean, _mean(x))
            variance = blended(_variance, _variance(x))
            return (x - mean) * ops.rsqrt(variance + self.epsilon)
        square = blended(_mean_square, _mean_square(x))
        return x * ops.rsqrt(square + self.epsilon)


def _mean(x):
    return ops.mean(x, axis=-1, keepdims=True)


def _mean_square(x):
    return _mean(ops.square(x))


def _variance(x):
    return _mean_square(x - _mean(x))


@keras.saving.register_keras_serializable(package="keras_fusion")
class BlockLayerNormalization(_BlockNorm, keras.layers.LayerNormalization):
    """Layer normalization with one mean and one variance for each block of features.

    Args:
        blocks: tuple of ints. Sizes of the blocks, side by side on the last axis.
        **kwargs: as for `keras.layers.LayerNormalization`, whose weights it has.

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

    def call(self, inputs):
        """Normalizes each block by its own statistics, or by blended ones."""
        x = self._normalized(inputs, centered=True)
        if self.gamma is not None:
            x = x * ops.cast(self.gamma, x.dtype)
        if self.beta is not None:
            x = x + ops.cast(self.beta, x.dtype)
        return ops.cast(x, self.compute_dtype)


@keras.saving.register_keras_serializable(package="keras_fusion")
class BlockRMSNormalization(_BlockNorm, keras.layers.RMSNormalization):
    """RMS normalization with one root mean square for each block of features.

    Args:
        blocks: tuple of ints. Sizes of the blocks, side by side on the last axis.
        **kwargs: as for `keras.layers.RMSNormalization`, whose weights it has.

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

    def call(self, x):
        """Normalizes each block by its own statistic, or by a blended one."""
        y = self._normalized(x, centered=False)
        return ops.cast(y * ops.cast(self.scale, y.dtype), self.compute_dtype)


_BLOCK_NORMS = {
    keras.layers.LayerNormalization: BlockLayerNormalization,
    keras.layers.RMSNormalization: BlockRMSNormalization,
}


def is_block_norm(layer: keras.Layer) -> bool:
    """Whether a layer keeps a statistic for each block."""
    return isinstance(layer, _BlockNorm)


def stock_class(layer: keras.Layer) -> type:
    """The layer's class; for a block norm the class of Keras that it stands for."""
    pairs = ((block, stock) for stock, block in _BLOCK_NORMS.items())
    return next((stock for block, stock in pairs if type(layer) is block), type(layer))


def can_be_block_norm(layer: keras.Layer) -> bool:
    """Whether a layer is a norm of the last axis, block-wise or such that it could be."""
    return stock_class(layer) in _BLOCK_NORMS and layer.axis in (-1, [-1])


def norm_like(
    layer: keras.Layer, blocks: tuple[int, ...] | None, **options
) -> keras.Layer:
    """A new norm with a norm's options.

    Args:
        layer: a norm for which `can_be_block_norm` holds.
        blocks: sizes of its blocks; `None` for a norm of Keras, with one statistic.
        **options: options that are to differ from the norm's.
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
