"""Norms of single heads, whose weights all heads share: each parent's heads keep theirs.

A per-head norm of queries or keys needs no statistic per parent. But all heads share one
scale, and the parents' scales differ. The bigger model's scale is their mean, to which each
parent's difference is added; the differences are not trained, and are faded out by the
blend.
"""

import functools
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_fusion.errors import FusionError
from keras_fusion.models.block_norms import BlockNorm, blend_options, made_of
from keras_fusion.models.private.views import StandIn, as_class
from keras_fusion.models.stock import named_entry, stock_class

DIFFERENCES = "differences"
# Norms whose inputs are the heads of all tokens in one row after another.
_IN_ROWS = {"keras_hub>Qwen3_5RMSNormGated": True}
# The attributes, of layers that hold such a norm, of the norm and the number of heads.
_HOLDERS = {"keras_hub>Qwen3_5GatedDeltaNet": ("norm", "num_v_heads")}


class HeadNorm(BlockNorm):
    """Base of norms by head, with weights of its own for each parent's heads.

    Its blocks are numbers of heads, which lie on the last axis but one.
    """

    blocks_axis = -2

    def all_variables(self) -> list[keras.Variable]:
        """The variables of the stock norm, in its order, the blend, the differences."""
        own = super().all_variables()
        stock = [v for v in own[:-1] if v is not self.differences]
        return [*stock, self.blend, self.differences]

    def normalized(self, *args: Any, **kwargs: Any) -> Any:
        """The stock norm of each parent's heads, moved to that of all by `blend`."""
        if named_entry(_IN_ROWS, self.stock) is None:
            return super().normalized(*args, **kwargs)
        size = self.differences.shape[-1]

        def by_head(x: Any) -> Any:
            is_tensor = ops.is_tensor(x) or isinstance(x, keras.KerasTensor)
            return ops.reshape(x, (-1, sum(self.blocks), size)) if is_tensor else x

        inputs: Any = keras.tree.map_structure(by_head, (args, kwargs))
        return ops.reshape(super().normalized(*inputs[0], **inputs[1]), (-1, size))

    def part(self, k: int, own: slice, args: tuple, kwargs: dict[str, Any]) -> Any:
        """The stock norm of one parent's heads, with its weights."""
        places = {id(v): i for i, v in enumerate(self.all_variables()[:-2])}

        def moved(variable: keras.Variable) -> StandIn:
            def value(whole: Any) -> Any:
                difference = self.differences.value[k, places[id(variable)]]
                return whole + ops.cast(difference, whole.dtype)

            return StandIn(variable, variable.shape[0], value)

        def heads(x: Any) -> Any:
            if ops.is_tensor(x) or isinstance(x, keras.KerasTensor):
                return x[..., self._heads_of(own, x), :]
            return x

        inputs: Any = keras.tree.map_structure(heads, (args, kwargs))
        view = as_class(self, self.stock, moved)
        return self.stock.call(view, *inputs[0], **inputs[1])

    def _heads_of(self, own: slice, x: Any) -> slice:
        """One parent's heads of an input, of keys as many times fewer as there are."""
        count = x.shape[-2] if len(x.shape) > 1 else None
        places = np.array([own.start, own.stop]) * (count or 0) / sum(self.blocks)
        if not places[1] or (places % 1).any():
            raise FusionError(
                f"The norm {self.name!r} of {sum(self.blocks)} heads gets an input of "
                f"shape {tuple(x.shape)}, whose last axis but one is not the heads."
            )
        return slice(*map(int, places))


def heads_in_rows(holder: Any) -> dict[int, int]:
    """The number of heads of the norm that a layer holds, by the norm's id."""
    names = named_entry(_HOLDERS, stock_class(holder))
    if names is None:
        return {}
    norm, heads = (getattr(holder, name) for name in names)
    return {id(norm): heads}


def vectors(norm: keras.Layer) -> list[keras.Variable]:
    """The weights of a norm by head, vectors that all heads share."""
    return [v for v in norm.variables if len(v.shape) == 1]


def differences_options(norm: keras.Layer, blocks: int) -> dict[str, Any]:
    """The arguments of `add_weight` for the differences of a norm's variables."""
    stock = vectors(norm)
    shape = (blocks, len(stock), int(stock[0].shape[0]))
    return blend_options(norm) | {"name": DIFFERENCES, "shape": shape}


@functools.cache
def head_class(stock: Any) -> type[BlockNorm]:
    """The class of what a norm by head becomes, made of the norm's class."""
    return made_of(stock, (HeadNorm, stock))
