"""The options of `GrowModel`, checked when it is made."""

from collections.abc import Callable

from keras_fusion.errors import FusionError
from keras_fusion.training.schedules import GrowthSchedule


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
