"""The arguments that methods of growth have in common, checked before anything is built."""

import numpy as np

from keras_fusion.errors import FusionError
from keras_fusion.models import processes
from keras_fusion.values.fuse import OFF_DIAGONALS

NORMS = ("joint", "block", "calibrated")


def check_noise(off_diagonal: str, scale: float, copies: bool) -> None:
    """Checks the options of the off-diagonal blocks.

    Raises:
        FusionError: naming the argument.
    """
    if off_diagonal not in OFF_DIAGONALS:
        raise FusionError(
            f"`off_diagonal` must be one of {OFF_DIAGONALS}. Received: "
            f"off_diagonal={off_diagonal!r}."
        )
    if off_diagonal == "paired" and not copies:
        raise FusionError(
            "`off_diagonal='paired'` is for copies of one model, whose inputs are equal "
            "so that the noise cancels. Use 'zeros' or 'random' for distinct parents."
        )
    if not (isinstance(scale, (int, float)) and scale >= 0):
        raise FusionError(
            "`off_diagonal_scale` must be a number of at least 0. Received: "
            f"off_diagonal_scale={scale!r}."
        )


def drawn_seed(seed: int | None) -> int:
    """The seed, or one from the generator that keras.utils.set_random_seed governs."""
    if seed is None:
        return processes.agreed(int(np.random.randint(2**31)))
    return seed


def check_norms(norms: str, batch) -> None:
    """Checks what is to become of the norms.

    Raises:
        FusionError: naming the argument.
    """
    if norms not in NORMS:
        raise FusionError(f"`norms` must be one of {NORMS}. Received: norms={norms!r}.")
    if norms == "calibrated" and batch is None:
        raise FusionError(
            "`norms='calibrated'` measures the norms on data. Received: batch=None. Pass "
            "inputs in the structure of the model's as `batch` (`probe` in a callback)."
        )
