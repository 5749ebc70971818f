"""Where texts come from: C4, a folder of text files, or what every Python ships.

A source is a list of shards for training and one for validation. A shard is read on its
own, by any host, and always in the same order.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

import tensorflow as tf

from keras_fusion.t5 import corpus

_VALIDATION_SHARE = 0.05


@dataclasses.dataclass(frozen=True)
class Source:
    """Documents to train on and documents held out.

    Attributes:
        name: string.
        training: tuple of shards: functions without arguments that return a
            `tf.data.Dataset` of strings, a document each.
        validation: tuple of shards.
    """

    name: str
    training: tuple[Callable[[], tf.data.Dataset], ...]
    validation: tuple[Callable[[], tf.data.Dataset], ...]


def open_source(name: str, *, shards: int = 16) -> Source:
    """Opens a source by its name.

    Args:
        name: `"standard-library"`, the documentation strings of Python's standard
            library; `"installed-packages"`, those of the packages beside this one;
            `"c4/en"` or another config of C4, through tensorflow-datasets; or
            the path of a folder with text files.
        shards: int. In how many parts to read what is large. Defaults to 16.

    Returns:
        A `Source`.

    Raises:
        ValueError: if there is no such source, or it is empty.
    """
    if name == "standard-library":
        return standard_library()
    if name == "installed-packages":
        return _documented(name, corpus.installed_packages())
    if name == "c4" or name.startswith("c4/"):
        return c4(name, shards=shards)
    if Path(name).is_dir():
        return text_folder(Path(name), shards=shards)
    raise ValueError(
        "A source is 'standard-library', 'installed-packages', 'c4/en' (or another "
        f"config of C4), or an existing folder of text files. Received: source={name!r}."
    )


def standard_library() -> Source:
    """The documentation strings of Python's standard library, see `corpus`."""
    return _documented("standard-library", corpus.standard_library(_VALIDATION_SHARE))


def _documented(name, documents):
    return Source(
        name,
        (lambda: _strings(documents.training),),
        (lambda: _strings(documents.validation),),
    )


def text_folder(folder: Path, *, shards: int = 16) -> Source:
    """The files `*.txt` below a folder, a document each, in UTF-8.

    Which of them are held out depends on each file's own name alone, so that it stays
    when files are added.

    Args:
        folder: `Path`.
        shards: int. In how many parts to read them. Defaults to 16.

    Returns:
        A `Source`.

    Raises:
        ValueError: if there are no files, or only a few of which none is held out.
    """
    training, validation = [], []
    for path in sorted(folder.rglob("*.txt")):
        digest = hashlib.sha256(path.relative_to(folder).as_posix().encode()).digest()
        held_out = int.from_bytes(digest[:8], "big") < _VALIDATION_SHARE * 2**64
        (validation if held_out else training).append(str(path))
    if not training or not validation:
        raise ValueError(
            f"The folder {str(folder)!r} has {len(training)} text files to train on and "
            f"{len(validation)} to validate with (about one in "
            f"{round(1 / _VALIDATION_SHARE)} is held out by its name). Give it more files "
            "that end in .txt, a document each."
        )
    parts = [training[i::shards] for i in range(min(shards, len(training)))]
    return Source(
        str(folder),
        tuple(lambda part=part: _files(part) for part in parts),
        (lambda: _files(validation),),
    )


def c4(config: str = "c4/en", *, shards: int = 64) -> Source:
    """The Colossal Clean Crawled Corpus, through tensorflow-datasets.

    It must have been prepared (`tfds build c4`, a job of some thousand CPU hours) or be
    in the data directory of tensorflow-datasets.

    Args:
        config: string. C4's name in tensorflow-datasets, with its config.
        shards: int. In how many parts to read the training split. Defaults to 64.

    Returns:
        A `Source`.
    """
    import tensorflow_datasets as tfds  # Takes seconds, and only this needs it.

    builder = tfds.builder(config)

    def read(split):
        examples = builder.as_dataset(split=split, shuffle_files=False)
        return examples.map(lambda example: example["text"])

    return Source(
        config,
        tuple(lambda s=s: read(s) for s in tfds.even_splits("train", shards)),
        (lambda: read("validation"),),
    )


def _strings(documents: Iterable[str]) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(list(documents))


def _files(paths: list[str]) -> tf.data.Dataset:
    return _strings(paths).map(tf.io.read_file)
