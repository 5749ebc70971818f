"""Checks the environment before anything is imported that takes seconds."""

import importlib.util

# Import name, and the extra that brings it.
_PACKAGES = {
    "tensorflow": "nlp",
    "keras_hub": "nlp",
    "sentencepiece": "nlp",
    "sklearn": "nlp",
    "filelock": "nlp",
    "tqdm": "nlp",
    "matplotlib": "plot",
}


def check(module: str, backends: tuple[str, ...] = ("tensorflow", "jax")) -> None:
    """Checks the backend and the optional packages.

    Args:
        module: string. The module that is to be run, for the message.
        backends: tuple of strings. Those on which it works.

    Raises:
        ImportError: naming the missing packages and how to install them.
        RuntimeError: if the backend is none of those.
    """
    check_backend(module, backends)
    check_packages(module)


def check_packages(module: str) -> None:
    """Checks the optional packages, without importing them.

    Args:
        module: string. The module that is to be run, for the message.

    Raises:
        ImportError: naming the missing packages and how to install them.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"{module} needs {', '.join(missing)}. Install what is missing with\n"
            "    pip install 'keras-fusion[nlp,plot]'"
        )


def check_backend(module: str, backends: tuple[str, ...]) -> None:
    """Checks Keras's backend, and imports it.

    Args:
        module: string. The module that is to be run, for the message.
        backends: tuple of strings. Those on which it works.

    Raises:
        RuntimeError: if the backend is none of those, or cannot be imported.
    """
    try:
        import keras
    except (ImportError, ValueError) as error:
        raise RuntimeError(f"Keras cannot be imported: {error}") from error

    backend = keras.config.backend()
    if backend not in backends:
        raise RuntimeError(
            f"{module} runs on the backends {', '.join(backends)}. Received: "
            f"KERAS_BACKEND={backend!r}. Run it as\n"
            f"    KERAS_BACKEND={backends[0]} python -m {module}"
        )
