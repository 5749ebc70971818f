"""Files of tokens, which texts are turned into once, and training reads rows from.

Tokens on disk make a run resumable at any step, and a batch the same on every host: the
place of a row is computed, and nothing before it is read. Beside each file is a record of
its number of tokens, of the unknown ones among them, and of a checksum.
"""

import dataclasses
import itertools
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from keras_fusion.errors import FusionError
from keras_fusion.t5 import records
from keras_fusion.t5.documents import Source, texts
from keras_fusion.t5.vocabulary import UNKNOWN_ID, Vocabulary
from keras_fusion.training.files import whole

if TYPE_CHECKING:
    import tensorflow as tf

_DOCUMENTS_AT_ONCE = 256

# A shard of C4 has gigabytes, too many to read at every start.
_CHECKED_BYTES = 2**28

_AGAIN = "Remove it, and `pretrain` writes it again."
_WAIT = 5.0  # seconds until a look at what the other hosts have written


@dataclasses.dataclass(frozen=True)
class Counts:
    """Numbers of tokens, and of those that are not pieces of text.

    Attributes:
        tokens: int.
        unknown: int. The unknown piece.
        bytes: int. Bytes of characters that have no piece of their own.
    """

    tokens: int = 0
    unknown: int = 0
    bytes: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.tokens + other.tokens,
            self.unknown + other.unknown,
            self.bytes + other.bytes,
        )


def prepare(
    source: Source,
    vocabulary: Vocabulary,
    folder: Path,
    *,
    validation_tokens: int | None = None,
    host: int = 0,
    hosts: int = 1,
) -> bool:
    """Writes the tokens of a source, one file per shard; files that are there stay.

    Args:
        source: `Source`.
        vocabulary: `Vocabulary`.
        folder: `Path`. Gets `training-00000.npy` and so on, and `validation-00000.npy`.
        validation_tokens: int. Number of tokens to keep for validation. Defaults to all.
        host: int. This host's number: it writes each `hosts`-th shard. Defaults to 0.
        hosts: int. Defaults to 1.

    Returns:
        Whether anything was left to do.
    """
    wrote = False
    for name, shards, most in (
        ("training", source.training, None),
        ("validation", source.validation, validation_tokens),
    ):
        for number, shard in list(enumerate(shards))[host::hosts]:
            path = _path(folder, name, number)
            # The record is written last, so that its presence means finished.
            if not (path.exists() and _record(path).exists()):
                stream = tokens(shard(), vocabulary, most, name=source.name)
                _write(path, stream, vocabulary)
                wrote = True
    return wrote


def _write(path, stream, vocabulary):
    counts = Counts(
        tokens=len(stream),
        unknown=int((stream == UNKNOWN_ID).sum()),
        bytes=int(vocabulary.is_byte[stream].sum()),
    )
    with whole(path) as unfinished:
        np.save(unfinished, stream)
    content = dataclasses.asdict(counts) | {"crc32": _crc32(stream)}
    records.write(_record(path), {"fingerprint": content})


def _path(folder, name, number):
    return folder / f"{name}-{number:05}.npy"


def _record(path):
    return path.with_suffix(".json")


def _crc32(stream):
    return zlib.crc32(stream.view(np.uint8)[:_CHECKED_BYTES])


def tokens(
    documents: "tf.data.Dataset",
    vocabulary: Vocabulary,
    most: int | None = None,
    *,
    name: str = "text",
) -> np.ndarray:
    """Joins documents into one stream, each closed by the end token.

    Args:
        documents: `tf.data.Dataset` of strings.
        vocabulary: `Vocabulary`.
        most: int. Stop after about so many tokens. Defaults to none.
        name: string. The source's, for errors.

    Returns:
        Array of shape `(tokens,)`, of 16 bits where the vocabulary allows it.

    Raises:
        FusionError: if a document is not UTF-8.
    """
    import tensorflow as tf  # Reading tokens does without it.

    dtype = np.uint16 if vocabulary.size <= 2**16 else np.int32
    parts, count = [np.zeros(0, dtype)], 0
    decoded = texts(documents.prefetch(tf.data.AUTOTUNE), name)
    while batch := list(itertools.islice(decoded, _DOCUMENTS_AT_ONCE)):
        stream = vocabulary.stream(batch)
        parts.append(stream.astype(dtype))
        count += len(stream)
        if most is not None and count >= most:
            break
    return np.concatenate(parts)[:most]


def read(folder: Path, name: str, shards: int | None = None) -> list[np.ndarray]:
    """Opens the streams of a split, mapped from their files and not kept in memory.

    Args:
        folder: `Path` that `prepare` has filled.
        name: `"training"` or `"validation"`.
        shards: int. How many files there must be, with their records. Defaults to those
            that are there, of earlier versions also without records.

    Returns:
        List of integer arrays of shape `(tokens,)`.

    Raises:
        FileNotFoundError: if there are none, or too few.
        FusionError: if a file is not as it was written.
    """
    if shards is None:
        paths = sorted(folder.glob(f"{name}-*.npy"))
    else:
        paths = [_path(folder, name, number) for number in range(shards)]
    missing = [p for p in paths if not p.exists() or shards and not _record(p).exists()]
    if missing or not paths:
        raise FileNotFoundError(
            f"There are no files {name}-*.npy in {str(folder)!r}, or not all of them with "
            "their records. Prepare the data first: `pretrain` does."
        )
    return [_stream(path) for path in paths]


def _stream(path):
    try:
        stream = np.load(path, mmap_mode="r")
    # A damaged header fails in many ways.
    except Exception as error:
        raise _damaged(path) from error
    record = _record(path)
    if record.exists():
        expected = records.fingerprint(record, _AGAIN)
        found = {"tokens": len(stream), "crc32": _crc32(stream)}
        if any(expected.get(key) != value for key, value in found.items()):
            raise _damaged(path)
    return stream


def _damaged(path):
    return FusionError(
        f"The token file {str(path)!r} has been changed or damaged. {_AGAIN}"
    )


def counts(folder: Path) -> Counts:
    """Adds up the records in a folder, those of all splits.

    Args:
        folder: `Path` that `prepare` has filled.
    """
    names = [field.name for field in dataclasses.fields(Counts)]
    total = Counts()
    for path in [*folder.glob("training-*.npy"), *folder.glob("validation-*.npy")]:
        found = records.fingerprint(_record(path), _AGAIN)
        total += Counts(**{name: found[name] for name in names})
    return total


def wait(
    folder: Path, training: int, validation: int, show: Callable[[str], None] = print
) -> None:
    """Waits until all hosts have written their shards.

    Args:
        folder: `Path` that all hosts share.
        training: int. Number of shards that there will be.
        validation: int. The same for the validation set.
        show: function that shows a line. Defaults to `print`.
    """
    paths = [_path(folder, "training", number) for number in range(training)]
    paths += [_path(folder, "validation", number) for number in range(validation)]
    for attempt in itertools.count():
        missing = [path for path in paths if not _record(path).exists()]
        if not missing:
            return
        if attempt % 12 == 0:
            show(f"waiting for {len(missing)} token files of other hosts in {folder}")
        time.sleep(_WAIT)
