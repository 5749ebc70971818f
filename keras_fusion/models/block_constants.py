"""Layers that compute with constants of a width, which keep those of each parent.

ALiBi's slopes are a series over the heads, XLNet's sinusoids one over the features, and
FNet's transform mixes all features. In a bigger model each would be another one. So the
layer becomes one of a class of its own, which computes them block by block, each as its
parent does. `blend` moves them to the stock layer's, as it does for a block norm.
"""

import functools
from typing import Any

import keras

from keras_fusion.models import tree
from keras_fusion.models.block_norms import (
    ExchangedNorm,
    blend_options,
    registered_as,
)
from keras_fusion.models.private.checkpoints import Unsaved
from keras_fusion.models.private.constants import KINDS, Kind
from keras_fusion.models.private.views import as_class
from keras_fusion.models.stock import named_entry, stock_class


class BlockConstant(Unsaved, ExchangedNorm):
    """Base of layers that have constants of their own for each parent's block.

    It is handled as a block norm is. Its blocks are numbers of heads or of features.
    """

    kind: Kind

    def all_variables(self) -> list[keras.Variable]:
        """The stock layer's own variables, in its order, and the blend."""
        own = [v for v in tree.own_variables(self) if v is not self.blend]
        return [*own, self.blend]

    def computed(self, *args: Any, **kwargs: Any) -> Any:
        """What the stock layer computes, with the constants of the blocks."""
        own = self.kind.own(self, args[0] if args else None, kwargs)
        return self.stock.call(as_class(self, self.stock, **own), *args, **kwargs)

    def spans(self) -> list[slice]:
        """The place of each block."""
        return [own for _, own in self._slices()]

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "BlockConstant":
        """Rebuilds a layer of the class that its config names."""
        return cls.made_from(config, constant_class)

    def kept(self) -> str:
        """What TensorFlow's checkpoints cannot hold."""
        return f"has constants of its own for each of its blocks {self.blocks}"


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


def kind_of(layer: keras.Layer) -> Kind | None:
    """The kind of a layer's constants; `None` for a layer without such."""
    return _kind(stock_class(layer))


def _kind(stock: type) -> Kind | None:
    return named_entry(KINDS, stock)
