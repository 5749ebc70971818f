"""Loads models from files that are not trusted."""

import contextlib
import math
from typing import Any

import keras
from keras.src.saving import serialization_lib

from keras_fusion.models.private.deferral import without_values


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


def parameters_of(config: dict[str, Any]) -> int:
    """The number of parameters that a serialized model describes.

    The model is built in safe mode, without memory for its parameters.

    Args:
        config: dict. As in a `.keras` file.

    Raises:
        ValueError: if the config holds code, or cannot be built.
    """
    config = {k: v for k, v in config.items() if k != "compile_config"}
    is_torch = keras.config.backend() == "torch"
    nowhere = keras.device("meta") if is_torch else contextlib.nullcontext()
    with nowhere, without_values(), serialization_lib.SafeModeScope(True):
        model = serialization_lib.deserialize_keras_object(config, safe_mode=True)
    return sum(math.prod(v.shape) for v in model.variables)
