"""JSON files that are written whole or not at all, and detect damage to themselves."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from keras_fusion.errors import FusionError
from keras_fusion.training.files import whole

_CHECKSUM = "sha256"


def digest(content: object) -> str:
    """Hashes plain data; different data give different digests.

    Args:
        content: dicts, lists, strings, numbers. The order of a dict does not count.

    Returns:
        String of 16 hexadecimal digits.

    Example:

    >>> from keras_fusion.t5.records import digest
    >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1})
    True
    """
    return _sha256(content)[:16]


def write(path: Path, content: Mapping) -> None:
    """Writes plain data as JSON, with a checksum.

    Args:
        path: `Path`. Folders above it are made.
        content: mapping that JSON can hold.
    """
    plain = json.loads(json.dumps(content))
    with whole(path) as unfinished:
        text = json.dumps(plain | {_CHECKSUM: _sha256(plain)}, indent=1)
        unfinished.write_text(text + "\n", encoding="utf-8")


def read(path: Path, way_out: str) -> dict:
    """Reads what `write` wrote. Files of earlier versions have no checksum.

    Args:
        path: `Path` of a file that exists.
        way_out: string. A sentence for the error, on what to do about a damaged file.

    Returns:
        Dict, without the checksum.

    Raises:
        FusionError: if the file is empty, no JSON, or not as it was written.
    """

    def refuse(reason):
        return FusionError(
            f"The file {str(path)!r} cannot be used: {reason}. {way_out}"
        )

    data = path.read_bytes()
    if not data.strip():
        raise refuse("it is empty")
    try:
        content = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise refuse(f"it is not JSON in UTF-8 ({error})") from error
    if not isinstance(content, dict):
        raise refuse(f"it holds a {type(content).__name__} instead of named values")
    checksum = content.pop(_CHECKSUM, None)
    # Whatever has a fingerprint was written with a checksum.
    if checksum is None and "fingerprint" not in content:
        return content
    if checksum != _sha256(content):
        raise refuse("it has been changed or damaged (its checksum is another)")
    return content


def fingerprint(path: Path, way_out: str) -> dict:
    """Reads the fingerprint of a file that holds nothing else.

    Args:
        path: `Path` of a file that exists.
        way_out: string. See `read`.

    Returns:
        Dict.

    Raises:
        FusionError: as `read`, and if there is no fingerprint.
    """
    found = read(path, way_out).get("fingerprint")
    if not isinstance(found, dict):
        raise FusionError(
            f"The file {str(path)!r} cannot be used: it has no fingerprint. {way_out}"
        )
    return found


def _sha256(content):
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
