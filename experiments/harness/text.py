"""A study's text as tokens in files, with the checksum that results are told by."""

import dataclasses
import functools
import hashlib
import itertools
import os
from pathlib import Path

import numpy as np

from experiments.harness import study
from keras_fusion.t5 import token_files
from keras_fusion.t5.documents import Listed, Source, open_source
from keras_fusion.t5.rows import Rows
from keras_fusion.t5.vocabulary import Vocabulary
from keras_fusion.training.files import whole

SENTINELS = 16  # more than a row of span corruption has
VOCABULARY_DOCUMENTS = 12_000
NOVELS = "novels"  # the text of this name
HELD_OUT_AUTHORS = 11  # one of so many


@dataclasses.dataclass(frozen=True, eq=False)
class Tokens:
    """Tokens to train on and tokens held out.

    Attributes:
        vocabulary: `Vocabulary`.
        training: list of integer arrays of shape `(tokens,)`.
        validation: list of the same.
        limit: int. How many of them to train on, or `None` for all.
    """

    vocabulary: Vocabulary
    training: list[np.ndarray]
    validation: list[np.ndarray]
    limit: int | None = None

    @functools.cached_property
    def checksum(self) -> str:
        """The sha256 of the vocabulary and all tokens."""
        found = hashlib.sha256(self.vocabulary.model)
        for stream in [*self.training, *self.validation]:
            found.update(np.ascontiguousarray(stream))
        return found.hexdigest()

    def rows(self, length: int) -> tuple[Rows, Rows]:
        """Rows of `length` tokens, to train on and to validate with."""
        return Rows(self.training, length), Rows(self.validation, length)

    def describe(self) -> dict:
        """What results tell of the text."""
        return {
            "sha256": self.checksum,
            "tokens": self.limit or sum(map(len, self.training)),
            "held_out": sum(map(len, self.validation)),
        }


def prepare(text: study.Text, folder: Path, source: Source | None = None) -> Tokens:
    """Reads the text and keeps its tokens in files; what is there already stays.

    Args:
        text: `study.Text`.
        folder: `Path` of the tokens of all texts.
        source: `Source`. Defaults to what the text names.

    Returns:
        The `Tokens`.
    """
    texts, folder = folder, folder / study.digest(text.source, text.vocabulary_size)
    path = folder / "vocabulary.model"
    if not path.exists() or not list(folder.glob("validation-*.npy")):
        named = text.source == NOVELS
        opened = novels(texts / NOVELS) if named else open_source(text.source)
        source = source or opened
        with whole(path) as unfinished:
            _vocabulary(source, text.vocabulary_size).save(unfinished)
        vocabulary = Vocabulary.load(path, sentinels=SENTINELS)
        token_files.prepare(source, vocabulary, folder)
    return Tokens(
        Vocabulary.load(path, sentinels=SENTINELS),
        token_files.read(folder, "training"),
        token_files.read(folder, "validation"),
        text.tokens,
    )


def novels(folder: Path) -> Source:
    """English novels, of which whole authors are held out.

    Args:
        folder: `Path` of the files of computationalstylistics/100_english_novels on GitHub,
            called `Author_Title_Year.txt`.

    Returns:
        A `Source`.

    Raises:
        FileNotFoundError: if there are none.
    """
    authors = {}
    for path in sorted(folder.glob("*_*_*.txt")):
        authors.setdefault(path.name.split("_")[0], []).append(os.fsencode(path))
    if not authors:
        raise FileNotFoundError(
            f"There are no novels in {str(folder)!r}. Put the files of the repository "
            "computationalstylistics/100_english_novels there."
        )
    names = sorted(authors)
    held_out = names[HELD_OUT_AUTHORS // 2 :: HELD_OUT_AUTHORS]
    kept = [path for name in names if name not in held_out for path in authors[name]]
    return Source(
        NOVELS,
        (Listed(kept, are_files=True),),
        (Listed([p for name in held_out for p in authors[name]], are_files=True),),
    )


def _vocabulary(source, size):
    """Trained on documents from all over the text, which lies in order of packages."""
    documents = [shard() for shard in source.training]
    count = sum(int(part.cardinality()) for part in documents)
    every = max(count // VOCABULARY_DOCUMENTS, 1)
    read = itertools.chain.from_iterable(part.as_numpy_iterator() for part in documents)
    return Vocabulary.train(
        (
            document.decode("utf-8")
            for document in itertools.islice(read, 0, None, every)
        ),
        size=size,
        sentinels=SENTINELS,
    )
