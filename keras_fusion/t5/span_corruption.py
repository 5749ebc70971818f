"""T5's training task: cut random spans out of a text and predict them.

    tokens   Thank you for inviting me to your party last week
    inputs   Thank you <0> me to your party last <1> </s>
    targets  <0> for inviting <1> week </s>

Pure functions on NumPy arrays. All rows of a batch have the same length, hence the same
number of noise tokens and spans, so inputs and targets have fixed lengths too and need
no padding.

Source: Raffel et al., Exploring the Limits of Transfer Learning with a Unified
Text-to-Text Transformer, JMLR 2020, section 3.1.4; the counts follow its code
(`random_spans_noise_mask`), in which the targets end without a last sentinel.
"""

import bisect
import dataclasses
import math
from typing import Any

import numpy as np

from keras_fusion.errors import FusionError


@dataclasses.dataclass(frozen=True)
class SpanCorruption:
    """Corrupts rows of tokens.

    Args:
        length: int. Tokens in a row before corruption, at least 2.
        first_sentinel: int. The id of the first sentinel; later ones count downwards.
        eos_id: int. The id that closes inputs and targets.
        noise_density: float. The share of tokens to cut out. Defaults to 0.15.
        mean_span_length: float. The mean length of the spans. Defaults to 3.0.
        sentinels: int. Number of sentinels. Defaults to 100, as in T5.

    Raises:
        FusionError: for arguments that cannot be met, which the message names.

    Example:

    >>> import numpy as np
    >>> from keras_fusion.t5.span_corruption import SpanCorruption
    >>> task = SpanCorruption(length=10, first_sentinel=99, eos_id=1)
    >>> tokens = np.arange(10, 30).reshape(2, 10)
    >>> inputs, targets = task.corrupt(tokens, np.random.default_rng(0))
    >>> inputs.shape, targets.shape
    ((2, 10), (2, 4))
    """

    length: int
    first_sentinel: int
    eos_id: int
    noise_density: float = 0.15
    mean_span_length: float = 3.0
    sentinels: int = 100

    def __post_init__(self):
        if self.length < 2:
            raise FusionError(
                "`length` must be at least 2, one token to cut out and one to keep. "
                f"Received: length={self.length}."
            )
        if not 0 < self.noise_density < 1 or self.mean_span_length < 1:
            raise FusionError(
                "`noise_density` must lie between 0 and 1, and `mean_span_length` be at "
                f"least 1. Received: noise_density={self.noise_density}, "
                f"mean_span_length={self.mean_span_length}."
            )
        if self.spans > self.sentinels:
            raise FusionError(
                f"A row of length={self.length} has {self.spans} spans, more than "
                f"sentinels={self.sentinels}. Take shorter rows or more sentinels."
            )

    @classmethod
    def for_input_length(cls, input_length: int, **options: Any) -> "SpanCorruption":
        """Makes the task with the longest rows whose inputs fit.

        Args:
            input_length: int. T5's is 512, which holds rows of 568 tokens.
            **options: the other arguments of the class.

        Returns:
            A `SpanCorruption` whose `input_length` is at most the one asked for.

        Raises:
            FusionError: if nothing fits.
        """
        kept = 1 - options.get("noise_density", cls.noise_density)
        lengths = range(2, math.ceil(input_length / kept) + 2)
        length = bisect.bisect_right(
            lengths,
            input_length,
            # The number of sentinels matters for the result only.
            key=lambda n: cls(n, **options | {"sentinels": n}).input_length,
        )
        if not length:
            raise FusionError(
                "`input_length` must be at least 3: a token, a sentinel and the end. "
                f"Received: input_length={input_length}."
            )
        return cls(lengths[length - 1], **options)

    @property
    def noise_tokens(self) -> int:
        """Number of tokens that are cut out of a row."""
        return min(max(round(self.length * self.noise_density), 1), self.length - 1)

    @property
    def spans(self) -> int:
        """Number of spans in which they are cut out."""
        # Each span is preceded by at least one token that stays.
        most = min(self.noise_tokens, self.length - self.noise_tokens)
        return min(max(round(self.noise_tokens / self.mean_span_length), 1), most)

    @property
    def input_length(self) -> int:
        """Number of tokens in a row of inputs."""
        return self.length - self.noise_tokens + self.spans + 1

    @property
    def target_length(self) -> int:
        """Number of tokens in a row of targets."""
        return self.noise_tokens + self.spans + 1

    def corrupt(
        self, tokens: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Cuts random spans out of every row.

        Args:
            tokens: integer array of shape `(rows, length)`, without sentinels.
            rng: `np.random.Generator`.

        Returns:
            Inputs of shape `(rows, input_length)` and targets of shape
            `(rows, target_length)`, of the type of `tokens`.

        Raises:
            FusionError: if `tokens` has another shape.
        """
        if tokens.ndim != 2 or tokens.shape[1] != self.length:
            raise FusionError(
                f"`tokens` must have the shape (rows, {self.length}). Received an array "
                f"of shape {tokens.shape}."
            )
        noise = self.noise_mask(len(tokens), rng)
        return self._replace_spans(tokens, noise), self._replace_spans(tokens, ~noise)

    def noise_mask(self, rows: int, rng: np.random.Generator) -> np.ndarray:
        """Draws the tokens to cut out; every row begins with one that stays.

        Args:
            rows: int.
            rng: `np.random.Generator`.

        Returns:
            Boolean array of shape `(rows, length)`.
        """
        noise = _random_lengths(rows, self.noise_tokens, self.spans, rng)
        kept = _random_lengths(rows, self.length - self.noise_tokens, self.spans, rng)
        lengths = np.stack([kept, noise], axis=2).reshape(rows, 2 * self.spans)
        ends = np.cumsum(lengths, axis=1)
        # The number of segments that end at or before a position; odd ones are noise.
        segment = (np.arange(self.length)[None, :, None] >= ends[:, None, :]).sum(
            axis=2
        )
        return segment % 2 == 1

    def _replace_spans(self, tokens, mask):
        """Puts one sentinel for each run of True, and an end token after each row."""
        before = np.pad(mask, ((0, 0), (1, 0)))[:, :-1]
        starts = mask & ~before
        sentinels = self.first_sentinel + 1 - np.cumsum(starts, axis=1)
        replaced = np.where(starts, sentinels, tokens).astype(tokens.dtype)
        rows = replaced[~mask | starts].reshape(len(tokens), -1)
        return np.pad(rows, ((0, 0), (0, 1)), constant_values=self.eos_id)

    def restore(self, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Puts the spans back: the inverse of `corrupt`, for one row.

        Args:
            inputs: integer array of shape `(input_length,)`.
            targets: integer array of shape `(target_length,)`.

        Returns:
            The original tokens, of shape `(length,)`.
        """
        inputs, targets = inputs[:-1], targets[:-1]
        lowest = self.first_sentinel - self.spans
        spans = np.split(targets, np.flatnonzero(targets > lowest))[1:]
        pieces = np.split(inputs, np.flatnonzero(inputs > lowest))
        restored = [pieces[0]]
        for span, piece in zip(spans, pieces[1:], strict=True):
            restored += [span[1:], piece[1:]]
        return np.concatenate(restored)


def _random_lengths(rows, total, parts, rng):
    """Splits `total` into `parts` positive lengths, each split equally likely."""
    # A split is a choice of parts - 1 cuts out of total - 1 places.
    order = rng.random((rows, total - 1)).argsort(axis=1)
    cuts = np.sort(order[:, : parts - 1] + 1, axis=1)
    bounds = np.pad(cuts, ((0, 0), (1, 1)), constant_values=((0, 0), (0, total)))
    return np.diff(bounds, axis=1)
