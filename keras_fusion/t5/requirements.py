"""Says what is missing before anything heavy is imported."""

import importlib.util

import keras

# Import name, and the extra that brings it.
_PACKAGES = {
    "tensorflow": "nlp",
    "keras_hub": "nlp",
    "sentencepiece": "nlp",
    "sklearn": "nlp",
    "matplotlib": "plot",
}


def check(module: str, backends: tuple[str, ...] = ("tensorflow", "jax")) -> None:
    """Checks the backend and the optional packages.

    Args:
        module: string. What is to be run, for the message.
        backends: tuple of strings. On which it works.

    Raises:
        ImportError: naming the missing packages and how to install them.
        RuntimeError: if the backend is none of those.
    """
    backend = keras.config.backend()
    if backend not in backends:
        raise RuntimeError(
            f"{module} runs on the backends {', '.join(backends)}. Received: "
            f"KERAS_BACKEND={backend!r}. Run it as\n"
            f"    KERAS_BACKEND={backends[0]} python -m {module}"
        )
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"{module} needs {', '.join(missing)}. Install what is missing with\n"
            "    pip install 'keras-fusion[nlp,plot]'"
        )
