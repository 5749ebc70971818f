"""Tokens in one file, which travel to a machine without a network."""

import dataclasses
import hashlib
import types
from pathlib import Path

import keras
import numpy as np

from experiments.harness import study, text

MOST_TOKENS = 20_000_000  # compressed about 26 MB
HELD_OUT = 200_000


@dataclasses.dataclass(frozen=True, eq=False)
class PackedText:
    """Tokens to train on and tokens held out.

    Attributes:
        size: int. Token ids.
        training: integer array of shape `(tokens,)`.
        validation: the same.
    """

    size: int
    training: np.ndarray
    validation: np.ndarray

    @classmethod
    def of(cls, tokens: text.Tokens) -> "PackedText":
        """As much of a study's text as the file may hold."""
        streams = (tokens.training, MOST_TOKENS), (tokens.validation, HELD_OUT)
        arrays = (np.concatenate(parts)[:most] for parts, most in streams)
        return cls(tokens.vocabulary.size, *(a.astype("uint16") for a in arrays))

    @classmethod
    def read(cls, path: Path) -> "PackedText":
        """Reads a file that `write` has written."""
        with np.load(path) as held:
            return cls(int(held["size"]), held["training"], held["validation"])

    def write(self, path: Path) -> None:
        """Writes the tokens to one compressed file."""
        np.savez_compressed(
            path, size=self.size, training=self.training, validation=self.validation
        )

    @property
    def vocabulary(self) -> types.SimpleNamespace:
        """What the harness's tasks ask of a vocabulary: its size."""
        return types.SimpleNamespace(size=self.size)

    @property
    def checksum(self) -> str:
        """The sha256 of all tokens."""
        joined = np.concatenate([self.training, self.validation])
        return hashlib.sha256(joined).hexdigest()

    def validation_rows(self, length: int, count: int) -> np.ndarray:
        """Rows from all over the held-out tokens, the same for all runs."""
        starts = np.linspace(0, len(self.validation) - length, count).astype(int)
        return _rows(self.validation, starts, length)


class Batches(keras.utils.PyDataset):
    """Batches from random places of the text, each determined by the seed and its step.

    Args:
        packed: `PackedText`.
        example: function from rows of tokens to what `fit` takes.
        steps: int.
        rows: int. In a batch.
        length: int. Tokens in a row.
        seed: int.
    """

    def __init__(self, packed, example, steps, rows, length, seed):
        super().__init__(workers=4)
        self.packed, self.example, self.steps = packed, example, steps
        self.rows, self.length, self.seed = rows, length, seed

    def __len__(self):
        return self.steps

    def __getitem__(self, step):
        rng = np.random.default_rng([self.seed, step])
        most = len(self.packed.training) - self.length
        starts = rng.integers(0, most, self.rows)
        return self.example(_rows(self.packed.training, starts, self.length))


def _rows(tokens, starts, length):
    return tokens[starts[:, None] + np.arange(length)].astype("int32")


def pack(source: str, folder: Path, path: Path) -> None:
    """Packs a study's text.

    Args:
        source: string, see `study.Text`.
        folder: `Path` of the studies' tokens.
        path: `Path` of the file to write.
    """
    PackedText.of(text.prepare(study.Text(source), folder)).write(path)
