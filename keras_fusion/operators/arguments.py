"""The arguments that methods of growth share, checked when an operator is made."""

from collections.abc import Sequence
from typing import Any

import keras

from keras_fusion.errors import FusionError, is_integer, is_number, is_path, require
from keras_fusion.models import processes
from keras_fusion.values.fuse import OFF_DIAGONALS

NORMS = ("auto", "block", "calibrated", "joint")


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


def check_noise_scale(noise_scale: float, name: str = "noise_scale") -> None:
    """Checks the deviation of the symmetry-breaking noise.

    Raises:
        FusionError: naming the argument.
    """
    good = is_number(noise_scale) and noise_scale >= 0
    require(good, name, noise_scale, "a number of at least 0")


def check_whole_factor(factor: int, method: str, advice: str) -> None:
    """Checks a factor that must be whole.

    Args:
        factor: the factor.
        method: string. The operator's name.
        advice: string. What to use for another factor.

    Raises:
        FusionError: naming the argument.
    """
    if not is_number(factor) or factor % 1 or not 2 <= factor <= 1000:
        raise FusionError(
            f"`factor` of {method} must be an integer of at least 2 and at most 1000. "
            f"Received: factor={factor!r}.{advice}"
        )


def check_seed(seed: int | None) -> None:
    """Checks a seed.

    Raises:
        FusionError: naming the argument.
    """
    good = seed is None or is_integer(seed)
    require(good, "seed", seed, "an integer of at least 0, or None")


def check_partners(partners: Sequence | None) -> None:
    """Checks what a model is to be fused with.

    Raises:
        FusionError: naming the argument.
    """
    listed = isinstance(partners, (list, tuple)) and len(partners) > 0
    require(
        partners is None
        or (listed and all(isinstance(p, keras.Model) or is_path(p) for p in partners)),
        "partners",
        partners,
        "a list of at least one model or path of a `.keras` file, or None to fuse the "
        "model with itself",
    )


def check_into(into: Any) -> None:
    """Checks what to fuse into.

    Raises:
        FusionError: naming the argument.
    """
    good = into is None or isinstance(into, keras.Model) or callable(into)
    require(good, "into", into, "a model, a function that builds one, or None")


def check_choice(only: Any, to: Any, factor: Any, into: Any, *, copies: bool) -> None:
    """Checks that a choice of widths has a model to choose from.

    Raises:
        FusionError: naming the argument.
    """
    name, value = ("to", to) if to is not None else ("only", only)
    if value is not None and (into is not None or not copies):
        other = "`into` says" if into is not None else "distinct parents do"
        raise FusionError(
            f"`{name}` chooses the widths that grow in a self-fusion, where the others "
            f"stay; {other} it all. Received: {name}={value!r}. Leave one of the two out."
        )
    if to is not None and factor is not None:
        raise FusionError(
            f"`to` says how large the widths become, and so does `factor`. Received: "
            f"to={to!r}, factor={factor!r}. Leave one of the two out."
        )


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
    return processes.drawn_seed()


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
