"""Whether the memory holds a model that is tried and dropped."""

import os

import keras
import numpy as np

from keras_fusion.models import host

_SIGNS = ("out of memory", "resource_exhausted", "resourceexhausted", "oom when")


def holds(model: keras.Model) -> bool:
    """Whether the machine has memory for the values of a model, as far as it says so.

    Args:
        model: a model, with or without values.
    """
    if host.is_distributed():
        return False  # Each device has its part; all processes must decide alike.
    try:
        pages, size = os.sysconf("SC_AVPHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return True  # The system does not say it; then trying tells.
    return 2 * size_of(model) <= pages * size


def size_of(model: keras.Model) -> int:
    """The bytes of a model's values."""
    return sum(
        int(np.prod(v.shape)) * np.dtype(_numpy_dtype(v)).itemsize
        for v in model.variables
    )


def _numpy_dtype(variable: keras.Variable) -> str:
    return "float16" if variable.dtype == "bfloat16" else variable.dtype


def is_exhausted(error: BaseException) -> bool:
    """Whether an error says that the memory of the machine or a device is used up."""
    text = f"{type(error).__name__} {error}".lower()
    return isinstance(error, MemoryError) or any(sign in text for sign in _SIGNS)
