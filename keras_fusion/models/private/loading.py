"""Loads models from files that are not trusted."""

from typing import Any

import keras
from keras.src.saving import serialization_lib


def load_safely(path: str) -> keras.Model:
    """Loads a model in Keras's safe mode, even if unsafe loading has been enabled.

    `keras.config.enable_unsafe_deserialization()` overrides `safe_mode=True` in Keras's
    own `load_model`, but not here.

    Args:
        path: string. A `.keras` file.

    Raises:
        ValueError: if the file holds code.
    """
    with serialization_lib.SafeModeScope(True):
        model: Any = keras.saving.load_model(path, safe_mode=True)
    return model
