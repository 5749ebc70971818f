"""Norms with one statistic per parent, which make fusion of distinct parents exact.

One norm over the concatenated features of several parents has one mean and one variance,
which are not the parents' own. A block norm applies the norm that it is made of to each
block of features by itself, with that block's weights. So it needs not know what the
norm computes, and what it computes is each parent's own to the bit. `blend` moves the
output from that to the norm of all features; with `blend` at 1 it is the stock norm.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_fusion.errors import FusionError
from keras_fusion.models.private.checkpoints import Guarded
from keras_fusion.models.private.views import StandIn, as_class
from keras_fusion.models.stock import BlockWise

__all__ = ["BlockLayerNormalization", "BlockRMSNormalization"]

BLEND, BLOCKS = "blend", "blocks"


class BlockNorm(Guarded, BlockWise):
    """Base of all block norms: the blocks and the blend.

    It comes before the class of the stock norm among the bases of a class.
    """

    # The axis of the inputs along which the blocks lie.
    blocks_axis = -1
    # Arguments of the constructor that the stock norm does not have.
    own_arguments: tuple[str, ...] = ("blocks",)

    def __init__(self, blocks: tuple[int, ...], **kwargs: Any):
        super().__init__(**kwargs)
        self.blocks = checked_blocks(blocks)
        if not is_of_last_axis(self):
            raise FusionError(
                f"{type(self).__name__} normalizes the last axis only. Received: "
                f"axis={getattr(self, 'axis', None)!r}."
            )

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the weights of the stock norm and the blend."""
        if input_shape[-1] != sum(self.blocks):
            raise FusionError(
                f"The sizes in `blocks` must add up to the input's last axis. Received: "
                f"blocks={self.blocks} for inputs of shape {tuple(input_shape)}."
            )
        super().build(input_shape)
        self.blend = self.add_weight(**blend_options(self))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return stock_config(self) | {"blocks": self.blocks}

    def all_variables(self) -> list[keras.Variable]:
        """The variables of the stock norm, in its order, and the blend."""
        stock = [v for v in self.variables if v is not self.blend]
        return [*stock, self.blend]

    def save_own_variables(self, store: Any) -> None:
        """Saves the variables and the blocks: more than a stock norm accepts."""
        for i, variable in enumerate(self.all_variables()):
            store[str(i)] = variable
        store[BLOCKS] = np.asarray(self.blocks, "int32")

    def normalized(self, *args: Any, **kwargs: Any) -> Any:
        """The stock norm of each block, moved to the norm of all features by `blend`."""
        joint = self.stock.call(self, *args, **kwargs)
        parts = [self.part(k, own, args, kwargs) for k, own in self._slices()]
        return self.blended(ops.concatenate(parts, axis=self.blocks_axis), joint)

    def blended(self, apart: Any, joint: Any) -> Any:
        """From what holds for the blocks to what holds for all, as far as `blend` says."""
        blend = ops.cast(self.blend, apart.dtype)
        return (1 - blend) * apart + blend * joint

    def _slices(self) -> Iterator[tuple[int, slice]]:
        ends = np.cumsum(self.blocks).tolist()
        for k, (size, end) in enumerate(zip(self.blocks, ends, strict=True)):
            yield k, slice(end - size, end)

    def part(self, k: int, own: slice, args: tuple, kwargs: dict[str, Any]) -> Any:
        """The stock norm of one block of the inputs, with its weights."""
        size = sum(self.blocks)

        def part(x: Any) -> Any:
            if not (ops.is_tensor(x) or isinstance(x, keras.KerasTensor)):
                return x
            return x[..., own] if len(x.shape) and x.shape[-1] == size else x

        def own_entries(variable: keras.Variable) -> StandIn:
            return StandIn(variable, own.stop - own.start, lambda value: value[own])

        inputs: Any = keras.tree.map_structure(part, (args, kwargs))
        view = as_class(self, self.stock, own_entries)
        return self.stock.call(view, *inputs[0], **inputs[1])


def stock_config(layer: Any) -> dict[str, Any]:
    """The config of the stock norm that a block norm is made of."""
    config = layer.stock.get_config(as_class(layer, layer.stock))
    return {
        name: value for name, value in config.items() if name not in layer.own_arguments
    }


def blend_options(layer: keras.Layer) -> dict[str, Any]:
    """The arguments of `add_weight` for the blend; in half precision steps would vanish."""
    dtype = keras.backend.result_type(layer.variable_dtype, "float32")
    return {
        "name": BLEND,
        "shape": (),
        "dtype": dtype,
        "initializer": "zeros",
        "trainable": False,
        "autocast": False,
    }


def checked_blocks(blocks: Any) -> tuple[int, ...]:
    """The sizes of blocks as integers.

    Raises:
        FusionError: if there are none, or one is below 1.
    """
    sizes = tuple(int(size) for size in blocks)
    if not sizes or any(size < 1 for size in sizes):
        raise FusionError(
            "`blocks` must be the sizes of the blocks, each at least 1. Received: "
            f"blocks={blocks!r}."
        )
    return sizes


@keras.saving.register_keras_serializable(package="keras_fusion")
class BlockLayerNormalization(BlockNorm, keras.layers.LayerNormalization):
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

    stock = keras.layers.LayerNormalization

    def call(self, inputs: Any) -> Any:
        """Normalizes each block by its own statistics, as far as `blend` says."""
        return self.normalized(inputs)


@keras.saving.register_keras_serializable(package="keras_fusion")
class BlockRMSNormalization(BlockNorm, keras.layers.RMSNormalization):
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

    stock = keras.layers.RMSNormalization

    def call(self, x: Any) -> Any:
        """Normalizes each block by its own statistic, as far as `blend` says."""
        return self.normalized(x)


class ExchangedNorm(BlockNorm):
    """Base of the block norms that a stock norm of a built model becomes.

    Their classes are made when they are needed, so a file has them under one name, with
    the stock norm in their config. They have the name of the stock class, by which
    Keras's files of weights tell layers apart.
    """

    def get_config(self) -> dict[str, Any]:
        """The stock norm's arguments and class, and the blocks."""
        stock = as_class(self, self.stock)
        serialized: Any = keras.saving.serialize_keras_object(stock)
        keys = ("module", "class_name", "registered_name")
        return super().get_config() | {"norm": {k: serialized[k] for k in keys}}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "ExchangedNorm":
        """Rebuilds a block norm of the class that its config names."""
        return cls.made_from(config, block_class)

    @classmethod
    def made_from(cls, config: dict[str, Any], make: Callable[[Any], Any]) -> Any:
        """Rebuilds one of the class that is made of the stock class in its config."""
        config = dict(config)
        norm = config.pop("norm")
        own = {name: config.pop(name) for name in cls.own_arguments}
        stock = keras.saving.deserialize_keras_object(norm | {"config": config})
        return type(stock).from_config.__func__(make(type(stock)), config | own)


def registered_as(name: str) -> Callable[[type], type]:
    """Registers classes that are made when they are needed, all under one name."""
    return keras.saving.register_keras_serializable("keras_fusion", name)


_registered = registered_as("BlockNorm")
_registered(ExchangedNorm)


@functools.cache
def block_class(stock: Any) -> type[BlockNorm]:
    """The class of what a norm of a built model becomes, made of the norm's class."""
    own = (BlockLayerNormalization, BlockRMSNormalization)
    bases = next(((cls,) for cls in own if cls.stock is stock), (stock,))
    return _registered(made_of(stock, (ExchangedNorm, *bases)))


def made_of(stock: type[keras.Layer], bases: tuple[type, ...]) -> type[BlockNorm]:
    """A class of block norms with the name and the signature of the stock norm."""

    @functools.wraps(stock.call)
    def call(self: BlockNorm, *args: Any, **kwargs: Any) -> Any:
        return self.normalized(*args, **kwargs)

    members = {"stock": stock, "call": call, "__doc__": BlockNorm.__doc__}
    members["__module__"] = __name__
    return type(stock.__name__, bases, members)


def is_of_last_axis(layer: Any) -> bool:
    """Whether a norm is one over the last axis, as far as it tells."""
    return getattr(layer, "axis", -1) in (-1, [-1])
