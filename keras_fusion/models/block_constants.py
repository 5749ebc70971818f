"""Layers that compute with constants of a width, which keep those of each parent.

ALiBi's slopes are a series over the heads, XLNet's sinusoids one over the features, and
FNet's transform mixes all features. In a bigger model each would be another one. So the
layer becomes one of a class of its own, which computes them block by block, each as its
parent does. `blend` moves them to the stock layer's, as it does for a block norm.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_fusion.errors import FusionError
from keras_fusion.models import tree
from keras_fusion.models.block_norms import (
    ExchangedNorm,
    blend_options,
    registered_as,
)
from keras_fusion.models.private.views import as_class
from keras_fusion.models.stock import stock_class


class BlockConstant(ExchangedNorm):
    """Base of layers that have constants of their own for each parent's block.

    It is handled as a block norm is. Its blocks are numbers of heads or of features.
    """

    kind: "Kind"

    def all_variables(self) -> list[keras.Variable]:
        """The stock layer's own variables, in its order, and the blend."""
        own = [v for v in tree.own_variables(self) if v is not self.blend]
        return [*own, self.blend]

    def computed(self, *args: Any, **kwargs: Any) -> Any:
        """What the stock layer computes, with the constants of the blocks."""
        own = self.kind.own(self, args[0] if args else None, kwargs)
        return self.stock.call(as_class(self, self.stock, **own), *args, **kwargs)

    def blended(self, apart: Any, joint: Any) -> Any:
        """From what holds for the blocks to what holds for all, as far as `blend` says."""
        blend = ops.cast(self.blend, apart.dtype)
        return (1 - blend) * apart + blend * joint

    def spans(self) -> list[slice]:
        """The place of each block."""
        return [own for _, own in self._slices()]

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "BlockConstant":
        """Rebuilds a layer of the class that its config names."""
        return cls.made_from(config, constant_class)

    def _trackable_children(self, save_type: str = "checkpoint", **kwargs: Any) -> dict:
        if save_type == "checkpoint":
            raise FusionError(
                f"A tf.train.Checkpoint cannot hold that the {type(self).__name__} "
                f"{self.name!r} has constants of its own for each of its blocks "
                f"{self.blocks}: a stock model would restore it without a word, to "
                "another function. Save the model as .keras or .weights.h5."
            )
        return super()._trackable_children(save_type, **kwargs)


registered_as("BlockConstant")(BlockConstant)


@functools.cache
def constant_class(stock: Any) -> type[BlockConstant]:
    """The class of what a layer with such constants becomes, made of its class."""

    @functools.wraps(stock.build)
    def build(self: BlockConstant, *args: Any, **kwargs: Any) -> None:
        stock.build(self, *args, **kwargs)
        self.blend = self.add_weight(**blend_options(self))

    @functools.wraps(stock.call)
    def call(self: BlockConstant, *args: Any, **kwargs: Any) -> Any:
        return self.computed(*args, **kwargs)

    members = {"stock": stock, "kind": _kind(stock), "build": build, "call": call}
    members["__module__"] = __name__
    made = type(stock.__name__, (BlockConstant, stock), members)
    return registered_as("BlockConstant")(made)


@dataclasses.dataclass(frozen=True)
class Kind:
    """What of a layer class depends on a width.

    Args:
        size: function from a layer to that width.
        own: function `(layer, first input, inputs by name)` that gives the attributes
            with which the stock layer computes block by block.
        of: string. What the width counts.
    """

    size: Callable[[Any], int | None]
    own: Callable[[BlockConstant, Any, dict[str, Any]], dict[str, Any]]
    of: str


def kind_of(layer: keras.Layer) -> Kind | None:
    """The kind of a layer's constants; `None` for a layer without such."""
    return _kind(stock_class(layer))


def _kind(stock: type) -> Kind | None:
    for cls in stock.__mro__:
        kind = _KINDS.get(f"{cls.__module__.split('.')[0]}>{cls.__name__}")
        if kind is not None:
            return kind
    return None


# ALiBi. The slopes of n heads are no part of those of 2n in the order of the heads.


def _slopes(layer: Any, of: Any) -> Callable[[int], Any]:
    """The slopes of each parent's heads, one after another."""

    def slopes(heads: int) -> Any:
        if heads != sum(layer.blocks):
            raise FusionError(
                f"{type(layer).__name__} {layer.name!r} has heads in blocks of "
                f"{layer.blocks}. Received: {heads} heads."
            )
        apart = _listed([of(own) for own in layer.blocks], layer)
        return layer.blended(apart, _listed([of(heads)], layer))

    return slopes


def _listed(parts: Sequence[Sequence[float]], layer: Any) -> Any:
    return ops.convert_to_tensor(np.concatenate(parts), dtype=layer.blend.dtype)


def _bloom(layer: Any, inputs: Any, named: dict[str, Any]) -> dict[str, Any]:
    alibi = layer._alibi_layer
    view = as_class(alibi, type(alibi), _get_slopes=_slopes(layer, alibi._get_slopes))
    return {"_alibi_layer": view.call}


def _falcon(layer: Any, inputs: Any, named: dict[str, Any]) -> dict[str, Any]:
    stock = as_class(layer, layer.stock)
    return {"_get_slopes": _slopes(layer, stock._get_slopes)}


def _xlnet(layer: Any, inputs: Any, named: dict[str, Any]) -> dict[str, Any]:
    """Sinusoids of relative positions."""

    def encoding(*args: Any, **kwargs: Any) -> Any:
        def of(size: int) -> Any:
            view = as_class(layer, layer.stock, hidden_dim=size)
            return view.relative_positional_encoding(*args, **kwargs)

        apart = ops.concatenate([of(size) for size in layer.blocks], axis=-1)
        return layer.blended(apart, of(layer.hidden_dim))

    return {"relative_positional_encoding": encoding}


def _fnet(layer: Any, inputs: Any, named: dict[str, Any]) -> dict[str, Any]:
    """The layer's first norm gets the sum of its inputs and of their transform."""
    inputs = named["inputs"] if inputs is None else inputs
    mixed = [_real_fft(inputs[..., own]) for own in layer.spans()]
    apart, norm = inputs + ops.concatenate(mixed, axis=-1), layer._mixing_layer_norm
    return {"_mixing_layer_norm": lambda joint: norm(layer.blended(apart, joint))}


def _real_fft(x: Any) -> Any:
    """The real part of the transform over positions and features, in float32."""
    real = ops.cast(x, "float32")
    return ops.cast(ops.fft2((real, ops.zeros_like(real)))[0], x.dtype)


def _features(layer: Any) -> int | None:
    return ((layer.get_build_config() or {}).get("input_shape") or (None,))[-1]


_KINDS = {
    "keras_hub>BloomAttention": Kind(lambda layer: layer.num_heads, _bloom, "heads"),
    "keras_hub>FalconTransformerDecoder": Kind(
        lambda layer: layer.num_attention_heads, _falcon, "heads"
    ),
    "keras_hub>ContentAndQueryEmbedding": Kind(
        lambda layer: layer.hidden_dim, _xlnet, "features"
    ),
    "keras_hub>FNetEncoder": Kind(_features, _fnet, "features"),
}
