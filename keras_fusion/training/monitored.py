"""The value of an epoch that a schedule watches."""

from keras_fusion.errors import FusionError
from keras_fusion.models import private


def monitored(logs: dict, monitor: str) -> float | None:
    """The value of an epoch that a schedule watches.

    Args:
        logs: dict of metrics at the end of the epoch.
        monitor: string. The name of one of them.

    Returns:
        float; `None` for a `val_...` in an epoch that is not validated
        (`validation_freq`).

    Raises:
        FusionError: if there is none of that name.
    """
    validated = any(name.startswith("val_") for name in logs)
    if monitor.startswith("val_") and not validated and private.fit_validates():
        return None
    if monitor not in logs:
        raise FusionError(
            f"`monitor={monitor!r}` is not among the epoch's values {sorted(logs)}. Name "
            "one of them (val_... needs validation_data)."
        )
    return logs[monitor]
