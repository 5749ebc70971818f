"""Normal noise at about the cost of copying memory.

Half of the entries of a self-fused kernel are noise, whose only purpose is to make the
copies differ. Drawing a normal number takes some 40 times as long as copying one; so a
table of them is drawn once, and noise is assembled from stretches of it, each from a
random place and with a random sign. Its entries are normal, and any two of them from
different stretches are uncorrelated over the draws of places and signs.
"""

import functools
from collections.abc import Sequence

import numpy as np

TABLE = 2**20  # Entries: 4 MB, which fits in a processor's cache.
STRETCH = 256


@functools.cache
def _stretches() -> np.ndarray:
    """All stretches of the table: a view of shape `(TABLE, STRETCH)`."""
    drawn = np.random.Generator(np.random.SFC64(0)).standard_normal(
        TABLE + STRETCH - 1, dtype="float32"
    )
    return np.lib.stride_tricks.sliding_window_view(drawn, STRETCH)


class Noise:
    """Normal noise for one variable.

    Args:
        rng: `numpy.random.Generator` for the places and signs, or a seed of one.
        deviation: float. The noise's standard deviation.
    """

    def __init__(
        self, rng: np.random.Generator | Sequence[int] | None, deviation: float
    ):
        self.rng = np.random.default_rng(rng)
        self.deviation = deviation

    def like(self, block: np.ndarray) -> np.ndarray:
        """Draws noise of an array's shape and dtype."""
        count = -(-block.size // STRETCH)
        drawn = self.rng.integers(0, 2 * TABLE, count, dtype=np.uint32)
        noise = _stretches()[drawn >> 1]
        signs = (drawn & 1).astype("float32") * 2 - 1
        noise *= (signs * np.float32(self.deviation))[:, None]
        flat = noise.ravel()[: block.size]
        return flat.reshape(block.shape).astype(block.dtype, copy=False)
