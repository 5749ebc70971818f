"""Partners from `.keras` files that are not trusted.

A file is looked at before anything is made of it: how large it is when it is unpacked, and
whether its config describes the weights that it holds. It is loaded in Keras's safe mode.
"""

import json
import math
import os
import zipfile
from collections.abc import Iterator
from typing import Any

import h5py
import keras

from keras_fusion.errors import FusionError
from keras_fusion.models import private

_CONFIG, _WEIGHTS = "config.json", "model.weights.h5"
# Bytes of the largest config that is read.
_LONGEST_CONFIG = 2**26
# How many times its size a file may have unpacked, and bytes that it may have anyhow.
_MOST_UNPACKED, _FREE = 100, 2**26
# Parameters that a model may have and no file does (states of random generators).
_SLACK = 2**20
# Characters of Keras's own message in an error.
_LONGEST_TEXT = 500


def load(where: str, path: str) -> keras.Model:
    """Loads a `.keras` file; it must not bring code with it.

    Args:
        where: string. Which partner it is, for errors.
        path: string.

    Raises:
        FusionError: naming the file and the reason.
    """
    if not path.endswith(".keras"):
        raise FusionError(
            f"{where} must be a keras.Model or the path of a `.keras` file, which is "
            f"loaded in Keras's safe mode. Received: {path!r}."
        )
    if "://" not in path and not os.path.exists(path):
        raise FusionError(f"{where}, {path}, is not there. Correct the path.")
    try:
        if os.path.isfile(path):
            _check(path)
        return private.load_safely(path)
    except _RefusedError as error:
        raise FusionError(f"{where}, {path}, {error}") from error
    except (OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise FusionError(
            f"{where}, {path}, cannot be read ({_text(error)}): it is cut off or damaged. "
            "Save the partner again."
        ) from error
    except Exception as error:
        raise FusionError(f"{where}, {path}, {_reason(error)}") from error


class _RefusedError(Exception):
    """What is wrong with a file, to be said after its name."""


def _text(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]} ..."


def _reason(error: Exception) -> str:
    text = str(error)
    if "vocabulary file outside of the" in text:
        return (
            "names a vocabulary file outside of itself, which is not read. Give the layer "
            "its vocabulary as a list, and save the partner again."
        )
    if "unsafe" in text or "safe_mode" in text:
        return (
            "holds code (a Lambda layer), and a file is loaded in Keras's safe mode only. "
            "Load it yourself if you trust it, and give the model."
        )
    return f"cannot be loaded: {_text(error)}"


def _check(path: str) -> None:
    """Checks a file's sizes without unpacking it."""
    if not zipfile.is_zipfile(path):
        raise zipfile.BadZipFile("it has no end")
    size = os.path.getsize(path)
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(item.file_size for item in archive.infolist())
        if unpacked > _MOST_UNPACKED * size + _FREE:
            raise _RefusedError(
                f"has {size:,} bytes and would have {unpacked:,} unpacked, which no model "
                "has. Save the partner again."
            )
        if archive.getinfo(_CONFIG).file_size > _LONGEST_CONFIG:
            raise _RefusedError(
                f"has a config of {archive.getinfo(_CONFIG).file_size:,} bytes, and "
                f"{_LONGEST_CONFIG:,} are read at most. Load the model yourself if you "
                "trust it, and give it."
            )
        # Keras reads in jumps, which leaves the checksums out.
        damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"the checksum of {damaged[:100]} is wrong")
        config = json.loads(archive.read(_CONFIG))
        held = _held(archive, size)
    if not isinstance(config, dict):
        raise _RefusedError("has a config that is none. Save the partner again.")
    if held is not None:
        _check_parameters(config, held)


def _held(archive: zipfile.ZipFile, size: int) -> int | None:
    """The parameters that a file holds, its optimizer's among them."""
    if _WEIGHTS not in archive.namelist():
        return None
    with archive.open(_WEIGHTS) as stream, h5py.File(stream) as weights:
        sets = list(_datasets(weights))
        total = sum(math.prod(s.shape) * s.dtype.itemsize for s in sets)
        if total > _MOST_UNPACKED * size + _FREE:
            raise _RefusedError(
                f"has {size:,} bytes and says that its weights have {total:,}. Save the "
                "partner again."
            )
        return sum(math.prod(s.shape) for s in sets)


def _datasets(group: h5py.Group) -> Iterator[h5py.Dataset]:
    for name in group:
        # A link may lead to another file.
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise _RefusedError("holds links to other files. Save the partner again.")
        item = group[name]
        if isinstance(item, h5py.Group):
            yield from _datasets(item)
        elif isinstance(item, h5py.Dataset):
            if item.external or item.is_virtual:
                raise _RefusedError(
                    "has weights in other files. Save the partner again."
                )
            yield item


def _check_parameters(config: dict[str, Any], held: int) -> None:
    """Checks that a config describes no more parameters than there are values for."""
    described = private.parameters_of(config)
    if described > held + _SLACK:
        raise _RefusedError(
            f"has a config of {described:,} parameters, and holds values of {held:,}. Save "
            "the partner again."
        )
