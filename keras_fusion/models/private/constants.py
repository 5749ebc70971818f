"""The constants of keras-hub's layers that depend on a width, by block.

Each function gives attributes in place of a layer's own, with which the stock layer
computes the constants of each block as a model of that width does.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from keras import ops

from keras_fusion.errors import FusionError
from keras_fusion.models.private.views import as_class


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
    own: Callable[[Any, Any, dict[str, Any]], dict[str, Any]]
    of: str


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


KINDS = {
    "keras_hub>BloomAttention": Kind(lambda layer: layer.num_heads, _bloom, "heads"),
    "keras_hub>FalconTransformerDecoder": Kind(
        lambda layer: layer.num_attention_heads, _falcon, "heads"
    ),
    "keras_hub>ContentAndQueryEmbedding": Kind(
        lambda layer: layer.hidden_dim, _xlnet, "features"
    ),
    "keras_hub>FNetEncoder": Kind(_features, _fnet, "features"),
}
