"""A classification task that needs no download: which package is a sentence from?

The sentences are those of the documentation strings of some packages of Python's standard
library. A document that pre-training holds out (see `corpus`) is held out here as well, so
nothing of the validation set has been seen by any part of the training.
"""

import functools
import re
import sysconfig
from pathlib import Path

from keras_fusion.t5 import corpus
from keras_fusion.t5.metrics import accuracy
from keras_fusion.t5.text_task import Texts, TextTask

PREFIX = "builtin sentence: "

# The six with the most documentation of which a fair part is held out (of importlib and
# multiprocessing hardly a sentence is), among those that every version of Python has:
# tkinter and idlelib are often packaged separately, distutils and lib2to3 are gone.
PACKAGES = ("asyncio", "email", "http", "logging", "unittest", "xml")

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")


@functools.lru_cache(maxsize=1)
def builtin() -> TextTask:
    """Opens the task.

    An example is a sentence and not a whole document, since only about 70 documents of
    these packages are held out; their sentences make a validation set of about 150, so an
    accuracy has a standard error of about 0.04. A sentence that occurs in two packages
    is left out. So is a held-out one that occurs in any document of the standard library
    that is trained on.

    Returns:
        A `TextTask` whose labels are the names of the packages.
    """
    library = corpus.standard_library()
    held_out = frozenset(library.validation)
    trained_on = "\n".join(library.training)
    training, validation = {}, {}
    for sentence, (package, documents) in _origins().items():
        if documents.isdisjoint(held_out):
            training[sentence] = package
        elif sentence not in trained_on:
            validation[sentence] = package
    return TextTask(
        name="builtin",
        training=_texts(training),
        validation={"validation": _texts(validation)},
        labels=PACKAGES,
        metrics={"accuracy": accuracy},
    )


def sentences(document: str) -> list[str]:
    """Cuts a document into its sentences, very short ones left out.

    Args:
        document: string.

    Returns:
        List of strings of at least `corpus.MIN_CHARACTERS` characters.

    Example:

    >>> from keras_fusion.t5.builtin_task import sentences
    >>> sentences("Return a copy. The elements of the list itself are not copied.")
    ['The elements of the list itself are not copied.']
    """
    return corpus.clean(_SENTENCE_END.split(document))


def _origins():
    """Dict from each sentence to its package and the documents that contain it."""
    root = Path(sysconfig.get_paths()["stdlib"])
    origins = {}
    for package in PACKAGES:
        texts = [
            t
            for path in corpus.source_files(root / package)
            for t in corpus.docstrings(path)
        ]
        for document in corpus.clean(texts):
            for sentence in sentences(document):
                packages, documents = origins.setdefault(sentence, (set(), set()))
                packages.add(package)
                documents.add(document)
    return {
        sentence: (next(iter(packages)), documents)
        for sentence, (packages, documents) in origins.items()
        if len(packages) == 1
    }


def _texts(packages):
    return Texts(tuple(PREFIX + s for s in packages), tuple(packages.values()))
