"""The arguments of a fusion, checked before anything is built."""

from collections.abc import Callable

import keras
import numpy as np

from keras_fusion import placement, structure
from keras_fusion.architecture import skipped_attributes
from keras_fusion.errors import FusionError
from keras_fusion.operator import OFF_DIAGONALS
from keras_fusion.schedules import GrowthSchedule

NORMS = ("joint", "block", "calibrated")


def resolve_parents(
    parents: list[keras.Model] | keras.Model,
    factor: float | None,
    copies: int | None = None,
) -> tuple[list[keras.Model], float]:
    """The K parents, and how much larger than their sum the target is to be.

    In a self-fusion they are K times the same model: once for a factor of 1.5, whose
    other half is new capacity; or as often as `copies` says.

    Raises:
        FusionError: naming the argument.
    """
    if isinstance(parents, keras.Model):
        if factor is None:
            raise FusionError(
                "One model was given as `parents`, and no `factor`. Pass factor=2 to "
                "fuse it with itself, or a list of models."
            )
        number = isinstance(factor, (int, float)) and not isinstance(factor, bool)
        if not number or not 1 < factor < float("inf"):
            raise FusionError(
                f"`factor` must be a number above 1. Received: factor={factor!r}."
            )
        models = [parents] * (copies or int(factor))
        capacity = factor / len(models)
    else:
        if factor is not None:
            raise FusionError(
                f"`factor` is for one model. Received: factor={factor!r} with a list of "
                "parents; leave one of the two out."
            )
        models, capacity = list(parents), 1.0
        _check_count(models)
    for i, model in enumerate(models):
        check_parent(i, model)
    return models, capacity


def _check_count(models):
    if len(models) < 2:
        raise FusionError(
            f"`parents` must be at least two models. Received {len(models)}; to fuse one "
            "with itself pass it alone, with factor=2."
        )


def check_parent(i: int, model: keras.Model) -> None:
    """Checks that a model can be grown.

    Args:
        i: int. Which of `parents`.
        model: the model.

    Raises:
        FusionError: naming what it is or lacks.
    """
    if not isinstance(model, keras.Model):
        raise FusionError(
            f"`parents[{i}]` must be a keras.Model. Received: {model!r} of type "
            f"{type(model).__name__}."
        )
    if not model.built or not model.weights:
        raise FusionError(
            f"`parents[{i}]`, {type(model).__name__} {model.name!r}, is not built, so it "
            "has no weights to fuse. Call it once on a batch, or build() it."
        )
    for address, layer in structure.walk(model, skipped_attributes):
        state = getattr(layer, "quantization_mode", None) and "quantized"
        if state or getattr(layer, "lora_enabled", False):
            raise FusionError(
                f"{type(layer).__name__} at {address!r} of `parents[{i}]` is "
                f"{state or 'LoRA-enabled'}. Fuse the model before that; or build it "
                "anew, without, and give the new layer this one's merged `kernel`."
            )


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
        return placement.agreed(int(np.random.randint(2**31)))
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


def check_growth(
    schedule: GrowthSchedule,
    optimizer_state: str,
    factor: float | Callable,
    multipliers: str | None,
    rewarmup_steps: int,
) -> None:
    """Checks when to grow, and what becomes of the optimizer.

    Raises:
        FusionError: naming the argument.
    """
    if not isinstance(schedule, GrowthSchedule):
        raise FusionError(
            "`schedule` must be a GrowthSchedule such as AtStep(1000). Received: "
            f"schedule={schedule!r}."
        )
    if optimizer_state not in ("carry", "reset"):
        raise FusionError(
            "`optimizer_state` must be 'carry' or 'reset'. Received: "
            f"optimizer_state={optimizer_state!r}."
        )
    if not callable(factor) and not factor > 0:
        raise FusionError(
            "`learning_rate_factor` must be positive, or a function. Received: "
            f"learning_rate_factor={factor!r}."
        )
    if not isinstance(rewarmup_steps, int) or rewarmup_steps < 0:
        raise FusionError(
            "`rewarmup_steps` must be an integer of at least 0. Received: "
            f"rewarmup_steps={rewarmup_steps!r}."
        )
    if multipliers not in (None, "width"):
        raise FusionError(
            "`learning_rate_multipliers` must be 'width' or None. Received: "
            f"learning_rate_multipliers={multipliers!r}."
        )
