"""Texts become files of tokens, once; training reads rows of them anywhere at once.

Tokens on disk are what makes a run resumable at any step, and a batch the same on every
host: the place of a row is computed, and nothing before it is read.
"""

from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_fusion.t5.documents import Source
from keras_fusion.t5.vocabulary import Vocabulary
from keras_fusion.training.files import whole

_DOCUMENTS_AT_ONCE = 256


def prepare(
    source: Source,
    vocabulary: Vocabulary,
    folder: Path,
    *,
    validation_tokens: int | None = None,
    host: int = 0,
    hosts: int = 1,
) -> None:
    """Writes the tokens of a source, one file a shard; files that are there stay.

    Args:
        source: `Source`.
        vocabulary: `Vocabulary`.
        folder: `Path`. Gets `training-00000.npy` and so on, and `validation-00000.npy`.
        validation_tokens: int. How many to keep for validation. Defaults to all.
        host: int. This host's number: it writes each `hosts`-th shard. Defaults to 0.
        hosts: int. Defaults to 1.
    """
    for name, shards, most in (
        ("training", source.training, None),
        ("validation", source.validation, validation_tokens),
    ):
        for number, shard in list(enumerate(shards))[host::hosts]:
            path = folder / f"{name}-{number:05}.npy"
            if not path.exists():
                with whole(path) as unfinished:
                    np.save(unfinished, tokens(shard(), vocabulary, most))


def tokens(
    documents: tf.data.Dataset, vocabulary: Vocabulary, most: int | None = None
) -> np.ndarray:
    """Joins documents into one stream, each closed by the end token.

    Args:
        documents: `tf.data.Dataset` of strings.
        vocabulary: `Vocabulary`.
        most: int. Stop after about so many tokens. Defaults to none.

    Returns:
        Array of shape `(tokens,)`, of 16 bits where the vocabulary allows it.
    """
    dtype = np.uint16 if vocabulary.size <= 2**16 else np.int32
    parts, count = [np.zeros(0, dtype)], 0
    batches = documents.batch(_DOCUMENTS_AT_ONCE).prefetch(tf.data.AUTOTUNE)
    for texts in batches.as_numpy_iterator():
        stream = vocabulary.stream(text.decode("utf-8") for text in texts)
        parts.append(stream.astype(dtype))
        count += len(stream)
        if most is not None and count >= most:
            break
    return np.concatenate(parts)[:most]


def read(folder: Path, name: str) -> list[np.ndarray]:
    """The streams of a split, mapped from their files and not read.

    Args:
        folder: `Path` that `prepare` has filled.
        name: `"training"` or `"validation"`.

    Returns:
        List of integer arrays of shape `(tokens,)`.

    Raises:
        FileNotFoundError: if there are none.
    """
    paths = sorted(folder.glob(f"{name}-*.npy"))
    if not paths:
        raise FileNotFoundError(
            f"There are no files {name}-*.npy in {str(folder)!r}. Prepare the data first."
        )
    return [np.load(path, mmap_mode="r") for path in paths]
