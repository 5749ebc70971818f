"""Normal noise at about the cost of copying memory, the same wherever it is made.

Half of the entries of a self-fused kernel are noise, whose only purpose is to make the
copies differ. Drawing a normal number takes some 40 times as long as copying one; so a
table of them is drawn once, and noise is assembled from stretches of it, each from a
random place and with a random sign. Its entries are normal, and any two of them from
different stretches are uncorrelated over the draws of places and signs.

Place and sign are hashes of a key and of where the stretch lies, so that each device can
generate its own part of a variable's noise, and all parts together equal what a single
device would generate.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

TABLE = 2**16  # Entries: 256 KB, which fits in a processor's cache.
STRETCH = 64  # Entries, at most.
_BLOCK = np.array([0xC2B2AE35], np.uint32)
Seed = np.random.Generator | int | Sequence[int] | None


@functools.cache
def table() -> np.ndarray:
    """The normal numbers, of shape `(TABLE + STRETCH - 1,)`."""
    generator = np.random.Generator(np.random.SFC64(0))
    return generator.standard_normal(TABLE + STRETCH - 1, dtype="float32")


def key_of(seed: Seed) -> np.ndarray:
    """The key of a variable's noise, drawn from a generator or made of a seed.

    Returns:
        Array of two numbers of 32 bits.
    """
    if not isinstance(seed, (int, list, tuple, type(None))):
        return np.random.default_rng(seed).integers(0, 2**32, 2, dtype=np.uint32)
    return np.random.SeedSequence(seed).generate_state(2)


def stretch_of(columns: int) -> int:
    """The length of the stretches in rows of a length: a power of two."""
    return min(STRETCH, 1 << max(0, columns - 1).bit_length())


def drawn(key: Any, block: Any, rows: Any, stretches: Any) -> Any:
    """A random number of 32 bits for each stretch.

    Args:
        key: array of two numbers of 32 bits.
        block: int, or array of unsigned integers of 32 bits. The number of the block in
            its variable.
        rows: array of unsigned integers of 32 bits, of NumPy or JAX: rows of the block.
        stretches: array that broadcasts with it: the place of the stretch in its row.
    """
    number = np.array(block, np.uint32) if isinstance(block, int) else block
    hashed = _mixed(rows * np.uint32(0x9E3779B1) ^ key[0])
    place = stretches * np.uint32(0x85EBCA77) + number * _BLOCK
    return _mixed(hashed + place + key[1])


def _mixed(x: Any) -> Any:
    """A bijection of 32 bits in which each bit depends on all others.

    Source: Wellons, Prospecting for Hash Functions, 2018 (lowbias32).
    """
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


class Noise:
    """Normal noise for the blocks of one variable.

    Args:
        seed: `numpy.random.Generator` that draws the key, or a seed.
        deviation: float. The noise's standard deviation.
    """

    def __init__(self, seed: Seed, deviation: float):
        self.key = key_of(seed)
        self.deviation = np.float32(deviation)

    def block(
        self, shape: Sequence[int], *, number: int = 0, part: slice = slice(None)
    ) -> np.ndarray:
        """Makes the noise of a block, or of a part of its first axis.

        Args:
            shape: the shape of the whole block.
            number: int. The number of the block in its variable.
            part: slice of the first axis of a block of two or more axes.

        Returns:
            Array of `float32`.
        """
        *leading, columns = shape if len(shape) > 1 else (1, *shape)
        inner = int(np.prod(leading[1:], dtype=int))
        start, stop, _ = part.indices(leading[0])
        rows = np.arange(start * inner, stop * inner, dtype=np.uint32)[:, None]
        length = stretch_of(columns)
        stretches = np.arange(-(-columns // length), dtype=np.uint32)
        numbers = drawn(self.key, number, rows, stretches)
        windows = np.lib.stride_tricks.sliding_window_view(table(), length)
        noise = windows[numbers & np.uint32(TABLE - 1)]
        noise *= signed(numbers, self.deviation)[..., None]
        noise = noise.reshape(len(rows), len(stretches) * length)[:, :columns]
        return noise.reshape(
            *([stop - start] if len(shape) > 1 else []), *shape[1:] or shape
        )


def signed(numbers: Any, deviation: Any) -> Any:
    """The deviation with the random sign of each stretch."""
    return (1 - 2 * (numbers >> np.uint32(31)).astype("float32")) * deviation
