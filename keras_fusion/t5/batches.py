"""Batches of span corruption for a T5 model, as a `tf.data.Dataset`.

A batch, its rows and their spans, is a function of the seed and the step alone. So a
resumed run starts at its step without reading what came before, and hosts divide a batch
without communicating.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from keras_fusion.errors import FusionError
from keras_fusion.t5.rows import Rows
from keras_fusion.t5.span_corruption import SpanCorruption
from keras_fusion.t5.vocabulary import PAD_ID

# Batches never end; a run takes as many as it has steps.
_ENDLESS = np.iinfo(np.int64).max


@dataclasses.dataclass(frozen=True)
class TrainingBatches:
    """Endless batches; every epoch has new rows, new spans and a new order.

    Args:
        rows: `Rows` of `task.length` tokens.
        task: `SpanCorruption`.
        batch_size: int. Rows per batch, over all hosts.
        seed: int. Equal seeds give equal batches.
        host: int. This host's number. Defaults to 0.
        hosts: int. Number of hosts that share each batch; a divisor of `batch_size`.
            Defaults to 1.

    Raises:
        FusionError: if the rows do not fill a batch, or `hosts` does not divide it.
    """

    rows: Rows
    task: SpanCorruption
    batch_size: int
    seed: int
    host: int = 0
    hosts: int = 1

    def __post_init__(self):
        if self.batch_size > len(self.rows):
            raise FusionError(
                f"The text has {len(self.rows)} rows of {self.rows.length} tokens, fewer "
                f"than batch_size={self.batch_size}. Use more text, or a smaller batch."
            )
        if self.batch_size % self.hosts or not 0 <= self.host < self.hosts:
            raise FusionError(
                "`hosts` must divide `batch_size`, and `host` be below `hosts`. Received: "
                f"host={self.host}, hosts={self.hosts}, batch_size={self.batch_size}."
            )

    def __call__(self, step: int) -> tuple:
        """This host's part of one batch.

        Args:
            step: int. The number of the batch, from 0.

        Returns:
            Tuple `(features, targets, sample_weights)` of arrays, see `examples`.
        """
        epoch, place = divmod(step, len(self.rows) // self.batch_size)
        shift, order = _order(len(self.rows), self.rows.length, self.seed, epoch)
        begin = place * self.batch_size
        mine = order[begin : begin + self.batch_size][self.host :: self.hosts]
        rng = np.random.default_rng([self.seed, 1, step, self.host])
        return examples(self.rows.take(mine, shift), self.task, rng)

    def dataset(self, start: int = 0) -> tf.data.Dataset:
        """The batches from some step on.

        Args:
            start: int. The step of the first batch. Defaults to 0.
        """
        return streamed(self, start)


def streamed(
    batch: Callable[[int], tuple], start: int = 0, stop: int = _ENDLESS
) -> tf.data.Dataset:
    """The batches of some steps, made in the background.

    Args:
        batch: function from a step to a nest of arrays, always of the same shapes.
        start: int. The first step. Defaults to 0.
        stop: int. The step after the last one. Defaults to none.

    Returns:
        A dataset of the nests.
    """
    like = batch(start)
    types = [a.dtype for a in tf.nest.flatten(like)]

    def of_step(step):
        arrays = tf.numpy_function(
            lambda i: tf.nest.flatten(batch(int(i))), [step], types
        )
        for array, known in zip(arrays, tf.nest.flatten(like), strict=True):
            array.set_shape(known.shape)
        return tf.nest.pack_sequence_as(like, arrays)

    steps = tf.data.Dataset.range(start, stop)
    return steps.map(of_step, num_parallel_calls=2).prefetch(tf.data.AUTOTUNE)


@functools.lru_cache(maxsize=4)  # computed once per epoch, not once per batch
def _order(rows, length, seed, epoch):
    """The shift of the rows of an epoch, and their order."""
    rng = np.random.default_rng([seed, 0, epoch])
    return int(rng.integers(length)), rng.permutation(rows)


def validation_batches(
    rows: Rows, task: SpanCorruption, *, batch_size: int, batches: int, seed: int
) -> tf.data.Dataset:
    """The same batches at every pass.

    Args:
        rows: `Rows` of `task.length` tokens.
        task: `SpanCorruption`.
        batch_size: int.
        batches: int. Number of batches; if there are too few rows, they are repeated with
            other spans.
        seed: int.

    Returns:
        A dataset of `(features, targets, sample_weights)`, see `examples`.
    """
    taken = rows.take(np.arange(batches * batch_size) % len(rows))
    corrupted: Any = examples(taken, task, np.random.default_rng(seed))
    return tf.data.Dataset.from_tensor_slices(corrupted).batch(batch_size).cache()


def examples(
    rows: np.ndarray, task: SpanCorruption, rng: np.random.Generator
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Corrupts rows of tokens and arranges them as inputs of keras-hub's T5.

    Args:
        rows: integer array of shape `(rows, task.length)`.
        task: `SpanCorruption`.
        rng: `np.random.Generator`.

    Returns:
        Tuple of the features, the targets and their weights, see `arranged`.
    """
    return arranged(*task.corrupt(rows, rng))


def arranged(
    inputs: np.ndarray, targets: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Arranges inputs and targets as keras-hub's T5 expects them.

    Args:
        inputs: integer array of shape `(rows, input_length)`, padded with zeros.
        targets: integer array of shape `(rows, target_length)`, padded with zeros.

    Returns:
        Tuple of the features, a dict of token ids and padding masks of shapes
        `(rows, input_length)` and `(rows, target_length)`; the targets of shape
        `(rows, target_length)`; and their weights, zero for padding.
    """
    # The decoder sees the targets one step late, after T5's start token.
    shifted = np.pad(targets, ((0, 0), (1, 0)), constant_values=PAD_ID)[:, :-1]
    features = {
        "encoder_token_ids": inputs,
        "encoder_padding_mask": (inputs != PAD_ID).astype("int32"),
        "decoder_token_ids": shifted,
        "decoder_padding_mask": np.ones_like(shifted),
    }
    return features, targets, (targets != PAD_ID).astype("float32")
