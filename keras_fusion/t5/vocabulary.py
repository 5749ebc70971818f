"""A SentencePiece vocabulary with T5's special tokens.

As in T5, 0 is padding (and what the decoder starts from), 1 the end of a document, 2 an
unknown piece, and the sentinels of span corruption lie at the upper end, counted
downwards: the first one is `size - 1`.
"""

import io
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import sentencepiece

PAD_ID = 0
EOS_ID = 1
UNKNOWN_ID = 2


class Vocabulary:
    """Text to token ids and back.

    Args:
        model: bytes. A serialised SentencePiece model whose special tokens have the ids
            above.
        sentinels: int. How many sentinel ids to put above those of the model.

    Example:

    >>> from keras_fusion.t5.vocabulary import Vocabulary
    >>> documents = ["Return a copy of the list.", "Return the length of the list."]
    >>> vocabulary = Vocabulary.train(documents, size=32, sentinels=8)
    >>> vocabulary.decode(vocabulary.encode("a copy of the length"))
    'a copy of the length'
    """

    def __init__(self, model: bytes, sentinels: int):
        self.model = model
        self.processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.sentinels = sentinels

    @classmethod
    def train(
        cls, documents: Iterable[str], *, size: int, sentinels: int
    ) -> "Vocabulary":
        """Trains a unigram model, the kind that T5 uses.

        Args:
            documents: iterable of strings.
            size: int. The number of ids, sentinels included.
            sentinels: int. The number of sentinel ids.

        Returns:
            A `Vocabulary`, the same for the same documents.
        """
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(documents),
            model_writer=model,
            vocab_size=size - sentinels,
            model_type="unigram",
            pad_id=PAD_ID,
            eos_id=EOS_ID,
            unk_id=UNKNOWN_ID,
            bos_id=-1,
            max_sentence_length=2**20,  # by default longer ones are dropped
            minloglevel=2,
        )
        return cls(model.getvalue(), sentinels)

    @classmethod
    def load(cls, path: str | os.PathLike, *, sentinels: int = 100) -> "Vocabulary":
        """Reads a SentencePiece model, such as T5's own with its 100 sentinels.

        Args:
            path: path of the `.model` file.
            sentinels: int. How many sentinel ids to put above the model's. Defaults to
                100.

        Returns:
            A `Vocabulary`.

        Raises:
            ValueError: if the model's padding, end or unknown id is another than T5's.
        """
        vocabulary = cls(Path(path).read_bytes(), sentinels)
        processor = vocabulary.processor
        ids = processor.pad_id(), processor.eos_id(), processor.unk_id()
        if ids != (PAD_ID, EOS_ID, UNKNOWN_ID):
            raise ValueError(
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
