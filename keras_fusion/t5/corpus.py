"""Real English text on every machine with Python: documentation strings.

The sources of the standard library, or of the installed packages, are parsed, never
imported. The split into training and validation documents depends on each document's own
text, or its file's path, alone, so it stays the same when documents are added or come in
another order.
"""

import ast
import dataclasses
import functools
import hashlib
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

SKIPPED_FOLDERS = frozenset(
    {"__pycache__", "dist-packages", "idle_test", "site-packages", "test", "tests"}
)

# Shorter ones are hardly more than the name of what they describe.
MIN_CHARACTERS = 40

# Documents that share so many first characters are copies of each other.
OPENING = 100

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Documents to train on and documents held out, without an overlap.

    Attributes:
        training: tuple of strings.
        validation: tuple of strings.
    """

    training: tuple[str, ...]
    validation: tuple[str, ...]


@functools.cache
def standard_library(validation_fraction: float = 0.05) -> Corpus:
    """Collects the documentation strings of the running Python's standard library.

    The 700 files are parsed once per process, which takes some seconds.

    Args:
        validation_fraction: float. About this share of the documents is held out.
            Defaults to 0.05.

    Returns:
        A `Corpus`; the same one at every call on one installation of Python.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    texts = (text for path in source_files(root) for text in docstrings(path))
    return split(clean(texts), validation_fraction)


def installed_packages(validation_fraction: float = 0.02) -> Corpus:
    """Collects the documentation strings of all packages installed beside this one.

    With TensorFlow, JAX and PyTorch, that is some ten million tokens. Files are held out
    by their paths. A document that opens like an earlier one is left out, since libraries
    copy each other's documentation with few changes.

    Args:
        validation_fraction: float. About this share of the files is held out. Defaults to
            0.02.

    Returns:
        A `Corpus`; the same one at every call on one environment.
    """
    root = Path(sysconfig.get_paths()["purelib"])
    parts, seen = ([], []), set()
    for path in source_files(root):
        held_out = _position(path.relative_to(root).as_posix()) < validation_fraction
        for text in clean(docstrings(path)):
            opening = text[:OPENING]
            if opening not in seen:
                seen.add(opening)
                parts[held_out].append(text)
    return Corpus(*map(tuple, parts))


def source_files(root: Path) -> Iterator[Path]:
    """Yields the Python files below a folder in a fixed order, those of tests left out.

    Args:
        root: `Path` of the folder.
    """
    for path in sorted(root.iterdir()):
        if path.is_dir():
            if path.name not in SKIPPED_FOLDERS:
                yield from source_files(path)
        elif path.suffix == ".py":
            yield path


def docstrings(path: Path) -> list[str]:
    """Reads the docstrings of a module and of its classes and functions.

    Args:
        path: `Path` of a Python file. One that does not parse has no docstrings.

    Returns:
        List of strings, without their common indentation.
    """
    with warnings.catch_warnings():
        # Parsing foreign source code may warn of its invalid escape sequences.
        warnings.simplefilter("ignore")
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            return []
    found = (ast.get_docstring(n) for n in ast.walk(tree) if isinstance(n, _DOCUMENTED))
    return [text for text in found if text]


def clean(texts: Iterable[str]) -> list[str]:
    """Normalises white space and drops repeated and very short documents.

    Args:
        texts: iterable of strings.

    Returns:
        List of strings in the order of their first appearance.
    """
    normalised = (" ".join(text.split()) for text in texts)
    return list(dict.fromkeys(t for t in normalised if len(t) >= MIN_CHARACTERS))


def split(documents: Iterable[str], validation_fraction: float) -> Corpus:
    """Holds documents out by a hash of their text.

    Args:
        documents: iterable of strings.
        validation_fraction: float between 0 and 1. The expected share held out.

    Returns:
        A `Corpus` that keeps the order of the documents.
    """
    training, validation = [], []
    for document in documents:
        held_out = _position(document) < validation_fraction
        (validation if held_out else training).append(document)
    return Corpus(tuple(training), tuple(validation))


def _position(text):
    """A number in [0, 1) that depends on the text alone, uniformly distributed."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
