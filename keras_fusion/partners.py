"""The partners of a live model: loaded from files that are not trusted, and checked."""

import os
import zipfile

import keras

from keras_fusion import graft
from keras_fusion.errors import FusionError


def load(i: int, given: keras.Model | str | os.PathLike) -> keras.Model:
    """A partner, loaded in Keras's safe mode if it is given as a path, and checked.

    Args:
        i: int. Its place in the list of partners.
        given: a model, or the path of a `.keras` file.

    Raises:
        FusionError: if the file cannot be read or brings code with it, or if a weight is
            not finite.
    """
    where = f"`partners[{i}]`"
    if not isinstance(given, keras.Model):
        where, given = f"{where}, {os.fspath(given)}", _read(where, os.fspath(given))
    for variable in given.weights:
        if keras.backend.is_float_dtype(variable.dtype):
            finite = keras.ops.all(keras.ops.isfinite(variable))
            if not bool(keras.ops.convert_to_numpy(finite)):
                raise FusionError(
                    f"{where}, has values in {variable.path!r} that are not finite (NaN "
                    "or infinite). It has diverged: give an earlier state of it."
                )
    return given


def _read(where, path):
    """Loads a `.keras` file; it must not bring code with it."""
    if not path.endswith(".keras"):
        raise FusionError(
            f"{where} must be a keras.Model or the path of a `.keras` file, which is "
            f"loaded in Keras's safe mode. Received: {path!r}."
        )
    if "://" not in path and not os.path.exists(path):
        raise FusionError(f"{where}, {path}, is not there. Correct the path.")
    try:
        if os.path.isfile(path) and not zipfile.is_zipfile(path):
            raise zipfile.BadZipFile("it has no end")
        return graft.load_safely(path)
    except (OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise FusionError(
            f"{where}, {path}, cannot be read ({error}): it is cut off or damaged. Save "
            "the partner again."
        ) from error
    except (ValueError, TypeError) as error:
        text = str(error)
        if "unsafe" in text or "safe_mode" in text:
            raise FusionError(
                f"{where}, {path}, holds code (a Lambda layer), and a file is loaded in "
                "Keras's safe mode only. Load it yourself if you trust it, and give the "
                "model."
            ) from error
        raise FusionError(f"{where}, {path}, cannot be loaded: {text}") from error
