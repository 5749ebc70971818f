"""Sources of text: C4, a folder of text files, or the documentation in Python itself.

A source is a list of shards for training and one for validation. A shard is read on its
own, by any host, and always in the same order.
"""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from keras_fusion.errors import FusionError
from keras_fusion.t5 import corpus

if TYPE_CHECKING:
    import tensorflow as tf  # Takes seconds; what is wrong with a text is said before.

_VALIDATION_SHARE = 0.05

# Enough for a vocabulary, and few enough to read from a corpus of any size.
_SAMPLED_DOCUMENTS = 200_000
_SAMPLED_CHARACTERS = 2**28
_WHOLE_CHARACTERS = 2**13  # a document of so many is taken whole

# A function that returns the documents of a shard, as a dataset of strings.
Shard = Callable[[], "tf.data.Dataset"]


@dataclasses.dataclass(frozen=True)
class Listed:
    """A shard whose documents are listed, in memory or as files.

    Attributes:
        items: sequence of strings: the documents, or the paths of their files.
        are_files: bool. Defaults to `False`.
    """

    items: Sequence[str] | Sequence[bytes]
    are_files: bool = False

    def __len__(self) -> int:
        return len(self.items)

    def __call__(self, every: int = 1) -> "tf.data.Dataset":
        """The documents, or one of so many."""
        import tensorflow as tf

        found = tf.data.Dataset.from_tensor_slices(list(self.items[::every]))
        return found.map(tf.io.read_file) if self.are_files else found


@dataclasses.dataclass(frozen=True)
class Source:
    """Documents to train on and documents held out.

    Attributes:
        name: string.
        training: tuple of shards: functions without arguments that return a
            `tf.data.Dataset` of strings, a document each.
        validation: tuple of shards.
        identity: function without arguments that reads the whole text and returns a dict
            of plain data, a different one for every text. Defaults to one that returns an
            empty dict.
    """

    name: str
    training: tuple[Shard, ...]
    validation: tuple[Shard, ...]
    identity: Callable[[], dict[str, Any]] = dict

    def sample(
        self,
        documents: int = _SAMPLED_DOCUMENTS,
        characters: int = _SAMPLED_CHARACTERS,
    ) -> Iterator[str]:
        """Yields training documents from all shards, equally many of each.

        They are evenly spaced in a shard whose documents are listed. Of a long document
        that would take more than its share of the characters, evenly spaced pieces are
        taken.

        Args:
            documents: int. At most about so many. Defaults to 200,000.
            characters: int. Their sum, above which pieces are taken. Defaults to 2**28.
        """
        each = -(-documents // len(self.training))
        for shard in self.training:
            size = len(shard) if isinstance(shard, Listed) else each
            every = -(-size // each)
            found = shard(every) if isinstance(shard, Listed) else shard()
            share = characters // len(self.training) // min(max(size, 1), each)
            for text in texts(found.take(each), self.name):
                yield _shortened(text, max(share, _WHOLE_CHARACTERS))


def texts(documents: "tf.data.Dataset", name: str) -> Iterator[str]:
    """Yields the documents of a shard as text.

    Args:
        documents: `tf.data.Dataset` of strings.
        name: string. Where they are from, for the error.

    Raises:
        FusionError: if one is not UTF-8.
    """
    # Annotated as arrays, and bytes in truth.
    found = cast(Iterator[bytes], documents.as_numpy_iterator())
    for number, document in enumerate(found):
        try:
            yield document.decode("utf-8")
        except UnicodeDecodeError as error:
            raise FusionError(
                f"Document {number} of a shard of {name!r} is not UTF-8: {error}."
            ) from error


def _shortened(text, most):
    """Evenly spaced pieces of a text, joined; the whole text if it is short."""
    if len(text) <= most:
        return text
    pieces = 16
    step, length = len(text) // pieces, max(most // pieces, 1)
    return " ".join(text[i * step : i * step + length] for i in range(pieces))


def open_source(name: str, *, shards: int = 16) -> Source:
    """Opens a source by its name.

    Args:
        name: `"standard-library"`, the documentation strings of Python's standard
            library; `"installed-packages"`, those of the packages beside this one;
            `"c4/en"` or another config of C4, through tensorflow-datasets; or
            the path of a folder with text files.
        shards: int. Number of parts in which a large source is read. Defaults to 16.

    Returns:
        A `Source`.

    Raises:
        FusionError: if there is no such source, or it is empty.
    """
    if name == "standard-library":
        return standard_library()
    if name == "installed-packages":
        return _documented(name, corpus.installed_packages())
    if name == "c4" or name.startswith("c4/"):
        return c4(name, shards=shards)
    if name and Path(name).is_dir():
        return text_folder(Path(name), shards=shards)
    raise FusionError(
        "A source is 'standard-library', 'installed-packages', 'c4/en' (or another "
        f"config of C4), or an existing folder of text files. Received: source={name!r}."
    )


def standard_library() -> Source:
    """The documentation strings of Python's standard library, see `corpus`."""
    return _documented("standard-library", corpus.standard_library(_VALIDATION_SHARE))


def _documented(name, documents):
    @functools.cache
    def identity():
        digest = hashlib.sha256()
        for part in (documents.training, documents.validation):
            for text in part:
                _add(digest, text.encode("utf-8", "surrogatepass"))
            _add(digest, b"")
        count = len(documents.training) + len(documents.validation)
        return {"documents": count, "sha256": digest.hexdigest()}

    return Source(
        name, (Listed(documents.training),), (Listed(documents.validation),), identity
    )


def text_folder(folder: Path, *, shards: int = 16) -> Source:
    """The files `*.txt` below a folder, a document each, in UTF-8.

    Whether a file is held out depends on its own name alone, so that this does not change
    when files are added.

    Args:
        folder: `Path`.
        shards: int. Number of parts in which they are read. Defaults to 16.

    Returns:
        A `Source`.

    Raises:
        FusionError: if there are no files, or only a few of which none is held out; from
            its `identity`, if a file cannot be read or is not UTF-8.
    """
    paths = [path for path in sorted(folder.rglob("*.txt")) if not path.is_dir()]
    training, validation = [], []
    for path in paths:
        digest = hashlib.sha256(_name(path, folder)).digest()
        held_out = int.from_bytes(digest[:8], "big") < _VALIDATION_SHARE * 2**64
        (validation if held_out else training).append(os.fsencode(path))
    if not training or not validation:
        raise FusionError(
            f"The folder {str(folder)!r} has {len(training)} text files to train on and "
            f"{len(validation)} to validate with (about one in "
            f"{round(1 / _VALIDATION_SHARE)} is held out by its name). Give it more files "
            "that end in .txt, a document each."
        )
    parts = [training[i::shards] for i in range(min(shards, len(training)))]
    return Source(
        str(folder),
        tuple(Listed(part, are_files=True) for part in parts),
        (Listed(validation, are_files=True),),
        functools.cache(lambda: _identity_of_files(folder, paths)),
    )


def _name(path, folder):
    # As bytes, since a file's name need not be UTF-8.
    return os.fsencode(path.relative_to(folder).as_posix())


def _identity_of_files(folder: Path, paths: Iterable[Path]) -> dict[str, Any]:
    """Reads all files; the folder's own name and place do not count."""
    digest, count, size = hashlib.sha256(), 0, 0
    for path in paths:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise FusionError(
                f"The file {str(path)!r} cannot be read: {error.strerror}. Remove it, or "
                "mend it."
            ) from error
        _check_text(path, content)
        _add(digest, _name(path, folder))
        _add(digest, content)
        count, size = count + 1, size + len(content)
    return {"documents": count, "bytes": size, "sha256": digest.hexdigest()}


def _check_text(path, content):
    try:
        content.decode("utf-8")
        # Valid UTF-8, and yet no text: UTF-16 and binary files have them.
        place, reason = content.find(b"\0"), "a zero byte"
    except UnicodeDecodeError as error:
        place, reason = error.start, f"the byte 0x{content[error.start]:02x}"
    if place >= 0:
        raise FusionError(
            f"The file {str(path)!r} is not text in UTF-8: it has {reason} at position "
            f"{place}. Convert it (iconv -t UTF-8), or remove it."
        )


def _add(digest, content):
    """Adds bytes with their length, so that no two lists of bytes look the same."""
    digest.update(len(content).to_bytes(8, "big"))
    digest.update(content)


def c4(config: str = "c4/en", *, shards: int = 64) -> Source:
    """The Colossal Clean Crawled Corpus, through tensorflow-datasets.

    It must be in the data directory of tensorflow-datasets (`tfds build c4` prepares it
    there, in some thousand CPU hours).

    Args:
        config: string. C4's name in tensorflow-datasets, with its config.
        shards: int. Number of parts in which the training split is read. Defaults to 64.

    Returns:
        A `Source`.

    Raises:
        FusionError: if tensorflow-datasets does not have it.
    """
    import tensorflow_datasets as tfds  # Takes seconds, and only this needs it.

    def refuse(error):
        first = (str(error).splitlines() or [""])[0]
        return FusionError(
            f"tensorflow-datasets has no {config!r} here: {first.rstrip('.')}. Build it "
            "(tfds build c4), or name the folder of its data in TFDS_DATA_DIR."
        )

    try:
        builder: Any = tfds.builder(config)
        parts = tfds.even_splits("train", shards)
    # Of many kinds, down to AssertionError.
    except Exception as error:
        raise refuse(error) from error

    def read(split):
        try:
            examples = builder.as_dataset(split=split, shuffle_files=False)
        except Exception as error:
            raise refuse(error) from error
        return examples.map(lambda example: example["text"])

    def identity():
        sizes = {
            name: split.num_examples for name, split in builder.info.splits.items()
        }
        return {"name": builder.info.full_name, "documents": sizes}

    return Source(
        config,
        tuple(lambda s=s: read(s) for s in parts),
        (lambda: read("validation"),),
        identity,
    )
