"""The arguments that methods of growth share, checked when an operator is made."""

import numpy as np

from keras_fusion.architecture.parents import check_factor
from keras_fusion.errors import FusionError
from keras_fusion.models import processes
from keras_fusion.values.fuse import OFF_DIAGONALS

NORMS = ("joint", "block", "calibrated")
# Of the noise that breaks the symmetry of copies, until version 0.1.
OLD_NAMES = {"noise": "noise_scale", "off_diagonal_scale": "noise_scale"}

__all__ = [
    "NORMS",
    "OLD_NAMES",
    "check_factor",
    "check_noise_scale",
    "check_norms",
    "check_off_diagonal",
    "check_seed",
    "check_whole_factor",
    "chosen_seed",
]


def check_off_diagonal(off_diagonal: str, *, copies: bool) -> None:
    """Checks how the off-diagonal blocks are filled.

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


def check_noise_scale(noise_scale: float) -> None:
    """Checks the deviation of the symmetry-breaking noise.

    Raises:
        FusionError: naming the argument.
    """
    if not _is_number(noise_scale) or not 0 <= noise_scale < float("inf"):
        raise FusionError(
            "`noise_scale` must be a number of at least 0. Received: "
            f"noise_scale={noise_scale!r}."
        )


def check_whole_factor(factor: int, method: str, advice: str) -> None:
    """Checks a factor that must be whole.

    Args:
        factor: the factor.
        method: string. The operator's name.
        advice: string. What to use for another factor.

    Raises:
        FusionError: naming the argument.
    """
    if not _is_number(factor) or factor % 1 or not 2 <= factor < float("inf"):
        raise FusionError(
            f"`factor` of {method} must be an integer of at least 2. Received: "
            f"factor={factor!r}.{advice}"
        )


def check_seed(seed: int | None) -> None:
    """Checks a seed.

    Raises:
        FusionError: naming the argument.
    """
    whole = isinstance(seed, (int, np.integer)) and not isinstance(seed, bool)
    if seed is not None and not (whole and seed >= 0):
        raise FusionError(
            f"`seed` must be an integer of at least 0, or None. Received: seed={seed!r}."
        )


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def chosen_seed(own: int | None, given: int | None) -> int:
    """The seed of a growth.

    Args:
        own: int. The operator's own seed, which comes first.
        given: int. The run's seed for this growth. If both are `None`, one is drawn from
            the generator that `keras.utils.set_random_seed` governs.
    """
    if own is not None:
        return own
    if given is not None:
        return given
    return processes.agreed(int(np.random.randint(2**31)))


def check_norms(norms: str, probe) -> None:
    """Checks what is to become of the norms.

    Raises:
        FusionError: naming the argument.
    """
    if norms not in NORMS:
        raise FusionError(f"`norms` must be one of {NORMS}. Received: norms={norms!r}.")
    if norms == "calibrated" and probe is None:
        raise FusionError(
            "`norms='calibrated'` measures the norms on data. Received: probe=None. Pass "
            "inputs in the structure of the model's as `probe`."
        )
