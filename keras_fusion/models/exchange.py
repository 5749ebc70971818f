"""Exchanges layers of a built model for block-wise ones, and back.

The layer stays the same object with the same variables, in whatever holds it: a graph, a
block of keras-hub, a subclassed model. Only its class changes, to a subclass of its own,
and it gets a blend.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_fusion.errors import FusionError
from keras_fusion.models import private, tree
from keras_fusion.models.block_constants import constant_class, kind_of
from keras_fusion.models.block_norms import (
    BLEND,
    BlockNorm,
    blend_options,
    block_class,
    checked_blocks,
    is_of_last_axis,
)
from keras_fusion.models.head_norms import (
    DIFFERENCES,
    HeadNorm,
    differences_options,
    head_class,
)
from keras_fusion.models.parent_wise import (
    SHARES,
    ParentWise,
    decision_of,
    extra_options,
    parent_wise_class,
)
from keras_fusion.models.private.attributes import attributes
from keras_fusion.models.stock import is_block_norm, stock_class

# Names of the variables of which each parent has values of its own.
VALUES_BY_PARENT = (DIFFERENCES, SHARES)


def features(norm: keras.Layer) -> int | None:
    """The number of features that a built norm normalizes; `None` if it is not known."""
    for variable in tree.own_variables(norm):
        if len(variable.shape) == 1:
            return int(variable.shape[0])
    shape = (norm.get_build_config() or {}).get("input_shape") or (None,)
    return shape[-1]


def reason_against(norm: keras.Layer) -> str | None:
    """The reason why a norm cannot be block-wise, or `None`."""
    if not is_of_last_axis(norm):
        return f"it normalizes axis {norm.axis!r} and not the last one"
    if private.loads_by_itself(type(norm)):
        return "its class saves or loads its variables in its own way"
    held = {id(value) for _, value in attributes(norm)}
    for variable in tree.own_variables(norm):
        if id(variable) not in held:
            return f"its variable {variable.name!r} is not one of its attributes"
        if len(variable.shape) > 1:
            return f"its variable {variable.name!r} has {len(variable.shape)} axes"
    return None


def make_as(
    layer: keras.Layer, blocks: Sequence[int], *, by_head: bool, groups: int = 0
) -> None:
    """Makes a layer block-wise in the one way that there is for it.

    Args:
        layer: a norm, or a layer with constants of a width or with decisions.
        blocks: sizes of the blocks.
        by_head: bool. Whether a norm has weights for each parent's heads.
        groups: int. How many groups of blocks decide alone.
    """
    if decision_of(layer) is not None:
        make_parent_wise(layer, blocks, groups)
    elif kind_of(layer) is not None:
        make_constants_block_wise(layer, blocks)
    elif by_head:
        make_head_wise(layer, blocks)
    else:
        make_block_wise(layer, blocks)


def follow(layer: keras.Layer, other: BlockNorm) -> None:
    """Makes a layer block-wise as another one is."""
    groups = other.groups if isinstance(other, ParentWise) else 0
    by_head = isinstance(other, HeadNorm)
    make_as(layer, other.blocks, by_head=by_head, groups=groups)


def make_block_wise(norm: keras.Layer, blocks: Sequence[int]) -> None:
    """Makes a built norm one with a statistic for each block.

    Args:
        norm: the norm, for which there is no `reason_against`.
        blocks: sizes of the blocks.

    Raises:
        FusionError: if the blocks are not its features.
    """
    sizes, size = checked_blocks(blocks), features(norm)
    if size != sum(sizes):
        raise FusionError(
            f"The blocks {sizes} of the norm {norm.name!r} do not add up to its {size} "
            "features."
        )
    stock: Any = type(norm)
    private.use_class(norm, block_class(stock))
    norm.blocks = sizes
    private.add_variable(norm, **blend_options(norm))


def make_head_wise(norm: keras.Layer, blocks: Sequence[int]) -> None:
    """Gives each parent's heads weights of their own in a built norm by head.

    Args:
        norm: the norm, for which there is no `reason_against`.
        blocks: numbers of the parents' heads.
    """
    options = differences_options(norm, len(blocks))
    stock: Any = type(norm)
    private.use_class(norm, head_class(stock))
    norm.blocks = checked_blocks(blocks)
    private.add_variable(norm, **blend_options(norm))
    private.add_variable(norm, **options)


def make_constants_block_wise(layer: keras.Layer, blocks: Sequence[int]) -> None:
    """Gives a layer whose constants depend on a width those of each block.

    Args:
        layer: the layer, which has a `kind_of` constants.
        blocks: the parts of the width.

    Raises:
        FusionError: if they do not add up to it.
    """
    kind = kind_of(layer)
    size = kind.size(layer) if kind is not None else None
    what = "the width on which its constants depend"
    sizes = _blocks_of(size, blocks, layer, what)
    private.use_class(layer, constant_class(stock_class(layer)))
    held: Any = layer
    held.blocks = sizes
    private.add_variable(layer, **blend_options(layer))


def make_parent_wise(layer: Any, blocks: Sequence[int], groups: int) -> None:
    """Makes a layer that decides for all features decide for each parent's.

    Args:
        layer: the layer, which has a `decision_of` its own.
        blocks: sizes of the parents' blocks of features.
        groups: int. How many groups of blocks decide alone.

    Raises:
        FusionError: if the blocks are not its features.
    """
    decision = decision_of(layer)
    size = decision.size(layer) if decision is not None else None
    sizes = _blocks_of(size, blocks, layer, "the number of its features")
    private.use_class(layer, parent_wise_class(stock_class(layer)))
    layer.blocks, layer.groups = sizes, groups
    for options in extra_options(layer):
        private.add_variable(layer, **options)


def _blocks_of(
    size: int | None, blocks: Sequence[int], layer: keras.Layer, what: str
) -> tuple[int, ...]:
    """The sizes of blocks, which must add up to a size of the layer."""
    sizes = checked_blocks(blocks)
    if size != sum(sizes):
        raise FusionError(
            f"The blocks {sizes} of {type(layer).__name__} {layer.name!r} do not add up "
            f"to {size}, {what}."
        )
    return sizes


def make_block_wise_again(
    norm: keras.Layer, blocks: Sequence[int], values: Mapping[str, np.ndarray]
) -> None:
    """Makes a norm the block norm that it was, with its values by name."""
    groups = len(values.get(SHARES, ()))
    make_as(norm, blocks, by_head=DIFFERENCES in values, groups=groups)
    for name, value in values.items():
        getattr(norm, name).assign(value)


def extra_variables(norm: BlockNorm) -> list[keras.Variable]:
    """The variables of a block norm that the stock norm does not have."""
    return [v for v in norm.all_variables() if v.name in (BLEND, *VALUES_BY_PARENT)]


def values_by_parent(norm: BlockNorm) -> list[keras.Variable]:
    """The variables of a block norm that hold what each parent has of its own."""
    return [v for v in norm.all_variables() if v.name in VALUES_BY_PARENT]


def make_stock(norm: BlockNorm) -> None:
    """Makes a block norm the norm that it is made of again."""
    for variable in extra_variables(norm):
        private.remove_variable(norm, variable.name)
    private.forget(norm)
    for name in norm.own_arguments:
        delattr(norm, name)
    private.use_class(norm, norm.stock)


def block_norms(model: keras.Layer) -> list[BlockNorm]:
    """The block norms of a model."""
    return [layer for _, layer in tree.walk(model) if is_block_norm(layer)]


def owners(model: keras.Layer) -> dict[int, list[keras.Layer]]:
    """The layers that hold each layer of a model, directly or not, by its id."""
    found: dict[int, list[keras.Layer]] = {}

    def descend(layer: keras.Layer, above: list[keras.Layer]) -> None:
        first = id(layer) not in found
        found.setdefault(id(layer), []).extend(above)
        for child in tree.children(layer).values() if first else ():
            descend(child, [*above, layer])

    descend(model, [])
    return found


def mark(norms: Iterable[keras.Layer], holding: dict[int, list[keras.Layer]]) -> None:
    """Marks the configs of the layers that hold block norms.

    Args:
        norms: the block norms.
        holding: the result of `owners`.
    """
    marked = {id(x): x for norm in norms for x in holding.get(id(norm), ())}
    for layer in marked.values():
        private.mark(layer, True)


def mark_owners(model: keras.Layer) -> None:
    """Marks the configs of all layers of a model that hold block norms."""
    norms = block_norms(model)
    if norms:
        mark(norms, owners(model))


def unmark(model: keras.Layer) -> None:
    """Takes the marks from the configs of a model's layers."""
    for _, layer in tree.walk(model):
        private.mark(layer, False)
