"""What a block norm is made of, for those who only have to recognize it."""

from collections.abc import Mapping
from typing import TypeVar

import keras

Entry = TypeVar("Entry")


class BlockWise(keras.Layer):
    """Base of the norms with one statistic for each block of features.

    Attributes:
        stock: the class of the norm that it is made of.
        blocks: tuple of ints. Sizes of the blocks.
    """

    stock: type[keras.Layer]
    blocks: tuple[int, ...]


def is_block_norm(layer: keras.Layer) -> bool:
    """Whether a layer has one statistic per block."""
    return isinstance(layer, BlockWise)


def stock_class(layer: keras.Layer) -> type:
    """The layer's class; for a block norm the class of the norm that it is made of."""
    return layer.stock if isinstance(layer, BlockWise) else type(layer)


def named_entry(entries: Mapping[str, Entry], cls: type) -> Entry | None:
    """What a dict has for a class or its nearest base, by `"package>ClassName"`."""
    for base in cls.__mro__:
        key = f"{base.__module__.split('.')[0]}>{base.__name__}"
        if key in entries:
            return entries[key]
    return None
