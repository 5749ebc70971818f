"""Sums over variables that lie on several devices, in the order of `reductions`."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from keras_fusion.models import shards
from keras_fusion.models.shards import Split
from keras_fusion.values import reductions

# An axis of so many entries can be cut into enough pieces.
LONG = 64


def products(zero: Any) -> Callable[[Any, Any], Any]:
    """A function that multiplies `float32`, and rounds before anything is added.

    Args:
        zero: a zero of which the compiler does not know that it is one.
    """
    import jax

    def product(a: Any, b: Any) -> Any:
        bits = jax.lax.bitcast_convert_type(a * b, "uint32") ^ zero
        return jax.lax.bitcast_convert_type(bits, "float32")

    return product


@dataclasses.dataclass(frozen=True)
class Statistic:
    """A number that is computed of an old variable, times some factors."""

    compute: Callable[[], float]
    factors: tuple[float, ...] = ()

    def times(self, *factors: float) -> "Statistic":
        """The same times further factors, which are multiplied in their order."""
        return dataclasses.replace(self, factors=(*self.factors, *factors))

    def value(self) -> float:
        """The number."""
        return math.prod((self.compute(), *self.factors))


def mean(split: Split, entries: int, source: keras.Variable) -> Statistic:
    """The mean of an old variable."""
    return Statistic(
        lambda: _total(split, entries, source, {}, None) / math.prod(source.shape)
    )


def deviation(
    split: Split,
    entries: int,
    source: keras.Variable,
    shift: float,
    scale: float,
    shift_back: float,
) -> Statistic:
    """The standard deviation of `(value + shift) * scale - shift_back`."""
    given = {"shift": shift, "scale": scale, "shift_back": shift_back}
    total = functools.partial(_total, split, entries, source, given)
    count = math.prod(source.shape)
    return Statistic(lambda: reductions.deviation_of(total, count))


def _total(
    split: Split,
    entries: int,
    source: keras.Variable,
    given: Mapping[str, float],
    centre: float | None,
) -> float:
    """See `reductions.total`."""
    numbers = {"shift": 0.0, "scale": 1.0, "shift_back": 0.0, **given}
    arguments = {name: np.float32(number) for name, number in numbers.items()}
    arguments |= {"old": source.value, "zero": np.uint32(0)}
    arguments["centre"] = None if centre is None else np.float32(centre)
    return float(summing(split, entries)(arguments))


@functools.lru_cache(maxsize=64)
def summing(split: Split, entries: int) -> Callable[[dict[str, Any]], Any]:
    """The compiled program that sums a variable's entries, or squared distances."""
    import jax
    import jax.numpy as jnp

    axis = split.longest_axis(LONG, before=len(split.shape) - 1)
    pieces = shards.Pieces.of(split, axis, entries)

    def part(given: dict[str, Any]) -> Any:
        product = products(given["zero"])

        def add_piece(number, sums):
            piece = pieces.piece(given["old"], number).astype("float32")
            piece = product(piece + given["shift"], given["scale"])
            piece = piece - given["shift_back"]
            if given["centre"] is not None:
                piece = piece - given["centre"]
                piece = product(piece, piece)
            where = (slice(None),) * axis + (pieces.indices(number),)
            return sums.at[where].set(reductions.row_sums(piece))

        sums = jnp.zeros(split.shape[:-1], "float32")
        return reductions.of_rows(jax.lax.fori_loop(0, pieces.count, add_piece, sums))

    everywhere = jax.sharding.PartitionSpec()
    names = ("zero", "shift", "scale", "shift_back", "centre")
    specs = dict.fromkeys(names, everywhere) | {"old": split.spec}
    return jax.jit(
        jax.shard_map(
            part,
            mesh=split.mesh,
            in_specs=(specs,),
            out_specs=everywhere,
            check_vma=False,
        )
    )
