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

# An axis of so many entries can be cut into enough chunks.
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

    last = len(split.shape) - 1
    axis, devices = split.long_axis(LONG, range(last)), split.parts(last)
    parts = reductions.parts_of(split.shape[-1])
    is_own = parts % devices == 0  # Each device holds whole parts of rows.
    names = [split.names[-1] if is_own else (), *split.names[:-1]]
    own_parts = parts // devices if is_own else parts
    chunks = shards.Chunks.of(split, axis, entries if is_own else entries // devices)

    def sums_of(given: dict[str, Any], number: Any) -> Any:
        product, start = products(given["zero"]), chunks.start(number)
        rows = jax.lax.dynamic_slice_in_dim(given["old"], start, chunks.size, axis)
        if not is_own:
            rows = jax.lax.all_gather(rows, split.names[-1], axis=last, tiled=True)
        rows = product(rows.astype("float32") + given["shift"], given["scale"])
        rows = rows - given["shift_back"]
        if given["centre"] is not None:
            rows = rows - given["centre"]
            rows = product(rows, rows)
        return reductions.row_sums(rows, own_parts)

    def total(given: dict[str, Any]) -> Any:
        def add_chunk(number: Any, sums: Any) -> Any:
            own, start = sums_of(given, number), chunks.start(number)
            return jax.lax.dynamic_update_slice_in_dim(sums, own, start, axis + 1)

        empty = jnp.zeros([own_parts, *map(split.local, range(last))], "float32")
        sums = jax.lax.fori_loop(0, chunks.count, add_chunk, empty)
        for i, over in enumerate(names):
            if over:
                sums = jax.lax.all_gather(sums, over, axis=i, tiled=True)
        return reductions.of_rows(sums)

    everywhere = jax.sharding.PartitionSpec()
    numbers = ("zero", "shift", "scale", "shift_back", "centre")
    specs = dict.fromkeys(numbers, everywhere) | {"old": split.spec}
    return jax.jit(
        jax.shard_map(
            total,
            mesh=split.mesh,
            in_specs=(specs,),
            out_specs=everywhere,
            check_vma=False,
        )
    )
