"""The study's text: tokens of the installed packages' documentation strings, once."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np

from keras_fusion.t5 import token_files
from keras_fusion.t5.documents import Source, open_source
from keras_fusion.t5.rows import Rows
from keras_fusion.t5.vocabulary import Vocabulary
from keras_fusion.training.files import whole

SOURCE = "installed-packages"
VOCABULARY_SIZE = 1024
SENTINELS = 16  # more than a row of span corruption has
VOCABULARY_DOCUMENTS = 12_000


@dataclasses.dataclass(frozen=True)
class Text:
    """Tokens to train on and tokens held out.

    Attributes:
        vocabulary: `Vocabulary`.
        training: list of integer arrays of shape `(tokens,)`.
        validation: list of the same.
    """

    vocabulary: Vocabulary
    training: list[np.ndarray]
    validation: list[np.ndarray]

    def rows(self, length: int) -> tuple[Rows, Rows]:
        """Rows of `length` tokens, to train on and to validate with."""
        return Rows(self.training, length), Rows(self.validation, length)

    @property
    def tokens(self) -> int:
        """How many there are to train on."""
        return sum(map(len, self.training))


def prepare(folder: Path, source: Source | None = None) -> Text:
    """Reads the text and keeps its tokens in files; what is there already stays.

    Args:
        folder: `Path`.
        source: `Source`. Defaults to the installed packages.

    Returns:
        The `Text`.
    """
    path = folder / "vocabulary.model"
    if not path.exists() or not list(folder.glob("validation-*.npy")):
        source = source or open_source(SOURCE)
        with whole(path) as unfinished:
            _vocabulary(source).save(unfinished)
        vocabulary = Vocabulary.load(path, sentinels=SENTINELS)
        token_files.prepare(source, vocabulary, folder)
    return Text(
        Vocabulary.load(path, sentinels=SENTINELS),
        token_files.read(folder, "training"),
        token_files.read(folder, "validation"),
    )


def _vocabulary(source):
    """Trained on documents from all over the text, which lies in order of packages."""
    documents = source.training[0]()
    every = max(int(documents.cardinality()) // VOCABULARY_DOCUMENTS, 1)
    taken = itertools.islice(documents.as_numpy_iterator(), 0, None, every)
    return Vocabulary.train(
        (document.decode("utf-8") for document in taken),
        size=VOCABULARY_SIZE,
        sentinels=SENTINELS,
    )
