"""Layers that decide something for all features at once, and decide it for each parent.

A mixture of experts has one routing for a token, and CLIP one cosine for two embeddings.
With features of several parents each parent has its own: the layer becomes one of a class
of its own, which decides for the features of each parent alone. `blend` moves it to the
stock layer's decision over all features, as it does for a block norm.
"""

import functools
import math
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_fusion.models import tree
from keras_fusion.models.block_norms import (
    ExchangedNorm,
    blend_options,
    registered_as,
)
from keras_fusion.models.head_norms import DIFFERENCES
from keras_fusion.models.private.checkpoints import Unsaved
from keras_fusion.models.private.decisions import DECISIONS, Decision, Group
from keras_fusion.models.stock import named_entry, stock_class

SHARES = "shares"


class ParentWise(Unsaved, ExchangedNorm):
    """Base of layers that decide for each parent's features alone.

    It is handled as a block norm is. Copies of a parent decide together, as one group of
    blocks. Its `shares`, of shape `(groups, blocks)`, hold for the blocks of a group how
    many times its share goes into the whole (2 for each of two parents), and else zero;
    its `differences`, of shape `(groups, values)`, what a group adds to the variables
    that all features share, one after another.
    """

    own_arguments = ("blocks", "groups")
    decision: Decision
    differences: keras.Variable | None = None

    def __init__(self, groups: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.groups = int(groups)

    def get_config(self) -> dict[str, Any]:
        """The stock layer's arguments and class, the blocks, and how many groups."""
        return super().get_config() | {"groups": self.groups}

    def all_variables(self) -> list[keras.Variable]:
        """The stock layer's own variables, in its order, the blend, shares, differences."""
        extra = [self.blend, self.shares]
        extra += [self.differences] if self.differences is not None else []
        names = {v.name for v in extra}
        own = tree.own_variables(self)
        return [v for v in own if v.name not in names] + extra

    def computed(self, *args: Any, **kwargs: Any) -> Any:
        """What the stock layer computes, decided for each group, as far as `blend` says."""
        blend = ops.convert_to_tensor(self.blend)
        outputs = self.decision.outputs(self, self._groups(), blend, args, kwargs)
        apart, joint = outputs
        return keras.tree.map_structure(self.blended, apart, joint)

    def _groups(self) -> list[Group]:
        """The groups of blocks, each of one parent."""
        place = np.repeat(np.arange(len(self.blocks)), self.blocks)
        blend: Any = ops.convert_to_tensor(self.blend)
        all_shares: Any = ops.convert_to_tensor(self.shares)
        groups = []
        for i in range(self.groups):
            shares = all_shares[i]
            scale = ops.max(shares)
            members = ops.take(ops.cast(shares > 0, shares.dtype), place)
            groups.append(
                Group(members, scale, self._differences(i), (1 - blend) / scale)
            )
        return groups

    def _differences(self, group: int) -> list[Any]:
        """What a group adds to each variable that all features share."""
        shared = self.decision.shared(self)
        if not shared:
            return []
        values: Any = ops.convert_to_tensor(self.differences)
        start, found = 0, []
        for variable in shared:
            end = start + math.prod(variable.shape)
            found.append(ops.reshape(values[group, start:end], variable.shape))
            start = end
        return found

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "ParentWise":
        """Rebuilds a layer of the class that its config names."""
        return cls.made_from(config, parent_wise_class)

    def kept(self) -> str:
        """What TensorFlow's checkpoints cannot hold."""
        return f"decides for each of its blocks {self.blocks} alone"


registered_as("ParentWise")(ParentWise)


def extra_options(layer: ParentWise) -> list[dict[str, Any]]:
    """The arguments of `add_weight` for what the stock layer does not have."""
    shared = layer.decision.shared(layer)
    sizes = {SHARES: len(layer.blocks), DIFFERENCES: 0}
    sizes[DIFFERENCES] = sum(math.prod(v.shape) for v in shared)
    common = blend_options(layer)
    vectors = [
        common | {"name": name, "shape": (layer.groups, size)}
        for name, size in sizes.items()
        if size
    ]
    if vectors:
        vectors[0]["initializer"] = lambda *_, **__: _fresh_shares(layer)
    return [common, *vectors]


def _fresh_shares(layer: ParentWise) -> np.ndarray:
    """Equal shares, for a layer that is built anew: as if of groups in turn."""
    turns = -(-len(layer.blocks) // layer.groups)
    equal = np.tile(layer.groups * np.eye(layer.groups), turns)
    return equal[:, : len(layer.blocks)]


@functools.cache
def parent_wise_class(stock: Any) -> type[ParentWise]:
    """The class of what a layer that decides becomes, made of its class."""

    @functools.wraps(stock.build)
    def build(self: ParentWise, *args: Any, **kwargs: Any) -> None:
        stock.build(self, *args, **kwargs)
        for options in extra_options(self):
            setattr(self, options["name"], self.add_weight(**options))

    @functools.wraps(stock.call)
    def call(self: ParentWise, *args: Any, **kwargs: Any) -> Any:
        return self.computed(*args, **kwargs)

    members = {"stock": stock, "decision": _decision(stock)}
    members |= {"build": build, "call": call, "__module__": __name__}
    made = type(stock.__name__, (ParentWise, stock), members)
    return registered_as("ParentWise")(made)


def decision_of(layer: keras.Layer) -> Decision | None:
    """What a layer decides for all features; `None` for a layer that does not."""
    return _decision(stock_class(layer))


def _decision(stock: type) -> Decision | None:
    return named_entry(DECISIONS, stock)
