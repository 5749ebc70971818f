"""Says what is missing before anything heavy is imported."""

import importlib.util

import keras

# Import name, and the extra that brings it.
_PACKAGES = {
    "tensorflow": "nlp",
    "keras_hub": "nlp",
    "sentencepiece": "nlp",
    "matplotlib": "plot",
}


def check() -> None:
    """Checks the backend and the optional packages.

    Raises:
        ImportError: naming the missing packages and how to install them.
        RuntimeError: if the backend is not TensorFlow.
    """
    backend = keras.config.backend()
    if backend != "tensorflow":
        raise RuntimeError(
            "The demo runs on the TensorFlow backend. Received: KERAS_BACKEND="
            f"{backend!r}. Run it as\n"
            "    KERAS_BACKEND=tensorflow python -m keras_fusion.demo"
        )
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"The demo needs {', '.join(missing)}. Install what is missing with\n"
            "    pip install 'keras-fusion[nlp,plot]'"
        )
