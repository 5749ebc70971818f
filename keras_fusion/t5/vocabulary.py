"""A SentencePiece vocabulary with T5's special tokens.

As in T5, 0 is padding (and the decoder's start token), 1 the end of a document, 2 an
unknown piece, and the sentinels of span corruption are at the upper end, counted
downwards: the first one is `size - 1`.
"""

import functools
import io
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import sentencepiece

from keras_fusion.errors import FusionError

PAD_ID = 0
EOS_ID = 1
UNKNOWN_ID = 2

# SentencePiece takes no other coverage than from here to 1.
LEAST_COVERAGE = 0.98

# SentencePiece drops longer sentences without a word, so documents are cut first.
_SENTENCE_BYTES = 2**20
_SENTENCE_CHARACTERS = _SENTENCE_BYTES // 4  # at most 4 bytes each in UTF-8


class Vocabulary:
    """Turns text into token ids and back.

    Args:
        model: bytes. A serialised SentencePiece model whose special tokens have the ids
            above.
        sentinels: int. Number of sentinel ids above those of the model.

    Example:

    >>> from keras_fusion.t5.vocabulary import Vocabulary
    >>> documents = ["Return a copy of the list.", "Return the length of the list."]
    >>> vocabulary = Vocabulary.train(documents, size=32, sentinels=8)
    >>> vocabulary.decode(vocabulary.encode("a copy of the length"))
    'a copy of the length'
    """

    def __init__(self, model: bytes, sentinels: int):
        self.model = model
        if not model:  # SentencePiece would write to the error stream.
            raise FusionError("A SentencePiece model must not be empty.")
        try:
            self.processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise FusionError(
                f"These {len(model)} bytes are no SentencePiece model."
            ) from error
        self.sentinels = sentinels

    @classmethod
    def train(
        cls,
        documents: Iterable[str],
        *,
        size: int,
        sentinels: int,
        coverage: float = 0.9995,
        byte_fallback: bool = False,
    ) -> "Vocabulary":
        """Trains a unigram model, the kind that T5 uses.

        Args:
            documents: iterable of strings.
            size: int. The number of ids, sentinels included.
            sentinels: int. The number of sentinel ids.
            coverage: float between 0.98 and 1. The share of the text's characters that
                get a piece of their own; rarer ones do not. Defaults to 0.9995.
            byte_fallback: bool. Whether characters without a piece are spelled in bytes,
                so that nothing is unknown; that takes 256 ids. Defaults to `False`.

        Returns:
            A `Vocabulary`, the same for the same documents.

        Raises:
            FusionError: if the text is empty, or `size` does not fit it; the message says
                which sizes do.
        """
        if size - sentinels <= UNKNOWN_ID + 1 or not LEAST_COVERAGE <= coverage <= 1:
            raise FusionError(
                "`size` must leave room for pieces beside the three special tokens and "
                f"the sentinels, and `coverage` lie between {LEAST_COVERAGE} and 1. "
                f"Received: size={size}, sentinels={sentinels}, coverage={coverage}."
            )
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=_pieces(documents),
                model_writer=model,
                vocab_size=size - sentinels,
                model_type="unigram",
                character_coverage=coverage,
                byte_fallback=byte_fallback,
                pad_id=PAD_ID,
                eos_id=EOS_ID,
                unk_id=UNKNOWN_ID,
                bos_id=-1,
                max_sentence_length=_SENTENCE_BYTES,
                minloglevel=2,
            )
        except RuntimeError as error:
            reason = _reason(str(error), size, sentinels, byte_fallback)
            raise FusionError(f"No vocabulary can be trained: {reason}") from error
        return cls(model.getvalue(), sentinels)

    @classmethod
    def load(cls, path: str | os.PathLike, *, sentinels: int = 100) -> "Vocabulary":
        """Reads a SentencePiece model, such as T5's own with its 100 sentinels.

        Args:
            path: path of the `.model` file.
            sentinels: int. Number of sentinel ids above the model's. Defaults to 100.

        Returns:
            A `Vocabulary`.

        Raises:
            FusionError: if there is no such file, or it is no SentencePiece model, or the
                model's padding, end or unknown id is another than T5's.
        """
        if not Path(path).is_file():
            raise FusionError(f"There is no vocabulary file {str(path)!r}.")
        try:
            vocabulary = cls(Path(path).read_bytes(), sentinels)
        except FusionError as error:
            raise FusionError(f"The vocabulary {str(path)!r}: {error}") from error
        processor = vocabulary.processor
        ids = processor.pad_id(), processor.eos_id(), processor.unk_id()
        if ids != (PAD_ID, EOS_ID, UNKNOWN_ID):
            raise FusionError(
                f"The SentencePiece model {str(path)!r} has {ids} as the ids of padding, "
                f"end and unknown, and T5's are {(PAD_ID, EOS_ID, UNKNOWN_ID)}. Train it "
                "with pad_id=0, eos_id=1, unk_id=2."
            )
        return vocabulary

    def save(self, path: str | os.PathLike) -> None:
        """Writes the SentencePiece model, without the sentinels."""
        Path(path).write_bytes(self.model)

    @property
    def size(self) -> int:
        """The number of token ids, sentinels included."""
        return self.processor.get_piece_size() + self.sentinels

    @property
    def first_sentinel(self) -> int:
        """The id of the first sentinel; the second one is one less, and so on."""
        return self.size - 1

    @functools.cached_property
    def is_byte(self) -> np.ndarray:
        """Which ids are single bytes: a boolean array of shape `(size,)`."""
        pieces = range(self.processor.get_piece_size())
        known = [self.processor.is_byte(piece) for piece in pieces]
        return np.array(known + [False] * self.sentinels)

    def encode(self, text: str) -> list[int]:
        """Turns a text into a list of token ids, without an end token."""
        return self.processor.encode(text)

    def decode(self, tokens: Iterable[int]) -> str:
        """Turns token ids into text, sentinels as `<0>`, `<1>`, ... as T5 shows them.

        Args:
            tokens: iterable of ints.

        Returns:
            A string.
        """
        parts, plain = [], []
        for token in map(int, tokens):
            if token > self.first_sentinel - self.sentinels:
                parts += [
                    self.processor.decode(plain),
                    f"<{self.first_sentinel - token}>",
                ]
                plain = []
            else:
                plain.append(token)
        parts.append(self.processor.decode(plain))
        return " ".join(part for part in parts if part)

    def stream(self, documents: Iterable[str]) -> np.ndarray:
        """Joins documents into one array of tokens, each closed by the end token.

        Args:
            documents: iterable of strings.

        Returns:
            `int32` array of shape `(tokens,)`.
        """
        encoded = self.processor.encode(list(documents), add_eos=True)
        return np.concatenate([np.asarray(tokens, "int32") for tokens in encoded])


def _pieces(documents: Iterable[str]) -> Iterator[str]:
    for text in documents:
        for begin in range(0, len(text), _SENTENCE_CHARACTERS):
            yield text[begin : begin + _SENTENCE_CHARACTERS]


def _reason(error, size, sentinels, byte_fallback):
    """The message of SentencePiece, in the words of `Vocabulary.train`."""
    if match := re.search(r"value <= (\d+)", error):
        return (
            f"the text is too short for size={size}. It allows at most "
            f"{int(match[1]) + sentinels}, {sentinels} sentinels included."
        )
    if match := re.search(r"required_chars\. \d+ vs (\d+)", error):
        ways = ", a lower coverage, or no byte fallback (256 ids)"
        return (
            f"size={size} is too small for the characters of the text. It needs at least "
            f"{int(match[1]) + sentinels}, {sentinels} sentinels included"
            + (ways if byte_fallback else ", or a lower coverage")
            + "."
        )
    if "sentences_.empty()" in error or "all_chars_count" in error:
        return "the text is empty."
    return error
