"""Loading models from files that are not trusted."""

import keras
from keras.src.saving import serialization_lib


def load_safely(path: str) -> keras.Model:
    """Loads a model in Keras's safe mode, whatever the program allows elsewhere.

    `keras.config.enable_unsafe_deserialization()` outweighs `safe_mode=True` in Keras's
    own `load_model`; here it does not.

    Args:
        path: string. A `.keras` file.

    Raises:
        ValueError: if the file holds code.
    """
    with serialization_lib.SafeModeScope(True):
        return keras.saving.load_model(path, safe_mode=True)
