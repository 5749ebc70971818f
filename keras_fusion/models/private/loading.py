"""Loads models from files that are not trusted, and layers that changed meanwhile."""

import contextlib
import functools
import math
from collections.abc import Callable
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


def before_loading(function: Callable[[keras.Layer, Any], bool]) -> None:
    """Has a function asked before a layer loads its own variables.

    Args:
        function: it gets the layer and the store, and returns whether it has loaded them.
    """
    own = keras.Layer.load_own_variables

    @functools.wraps(own)
    def load_own_variables(self: keras.Layer, store: Any) -> None:
        if not function(self, store):
            own(self, store)

    keras.Layer.load_own_variables = load_own_variables


def loads_by_itself(cls: type) -> bool:
    """Whether a class of layers has its own way to save or load variables."""
    names = ("load_own_variables", "save_own_variables")
    return any(getattr(cls, name) is not getattr(keras.Layer, name) for name in names)


def find_under_old_name(store: Any) -> None:
    """Opens what version 0.1.0 has saved of a block norm, if the store has nothing.

    There the class, by whose name Keras tells layers in a list apart, had another name.

    Args:
        store: where Keras looks for the variables of a block norm.
    """
    path = getattr(store, "_h5_entry_path", None)
    if path is not None and not len(store.keys()):
        folder, _, name = path.rpartition("/")
        store.get(f"{folder}/block_{name}")
