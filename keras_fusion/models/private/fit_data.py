"""The data of the `fit()` that is running, which no callback is told."""

import sys
from typing import Any


def fit_data() -> dict[str, int | None]:
    """The sizes of the data of the innermost `fit()` that calls this.

    Returns:
        Dict of `batch_size`, `batches` and `examples`; `None` for what the data does not
        tell.
    """
    values = _locals_of_fit()
    return _sizes(values["epoch_iterator"].data_adapter) if values else {}


def fit_validates() -> bool:
    """Whether the innermost `fit()` that calls this has data to validate on."""
    return _locals_of_fit().get("validation_data") is not None


def _locals_of_fit() -> dict[str, Any]:
    """The local variables of the innermost `fit()`; none outside of one."""
    frame = sys._getframe()
    while frame is not None:
        iterator: Any = frame.f_locals.get("epoch_iterator")
        if frame.f_code.co_name == "fit" and hasattr(iterator, "data_adapter"):
            return frame.f_locals
        frame = frame.f_back
    return {}


def _sizes(adapter: Any) -> dict[str, int | None]:
    batch_size, batches = adapter.batch_size, adapter.num_batches
    rest = adapter.partial_batch_size if adapter.has_partial_batch else None
    examples = None
    # A data set that does not know whether its last batch is smaller tells no more.
    if batch_size and batches and not (adapter.has_partial_batch and not rest):
        examples = batch_size * batches - ((batch_size - rest) if rest else 0)
    return {
        "batch_size": batch_size and int(batch_size),
        "batches": batches and int(batches),
        "examples": examples and int(examples),
    }
