"""Batches of span corruption for a T5 model, as a `tf.data.Dataset`.

NumPy corrupts a whole epoch at once, which takes some milliseconds; TensorFlow cuts it
into batches. The model never waits for its data, not even on two cores.
"""

import numpy as np
import tensorflow as tf

from keras_fusion.demo.span_corruption import SpanCorruption
from keras_fusion.demo.vocabulary import PAD_ID


def training_batches(
    stream: np.ndarray, task: SpanCorruption, *, batch_size: int, seed: int
) -> tf.data.Dataset:
    """Endless batches; every epoch has other rows, other spans and another order.

    Args:
        stream: integer array of shape `(tokens,)`, at least `task.length` of them.
        task: `SpanCorruption`.
        batch_size: int.
        seed: int. Equal seeds give equal batches.

    Returns:
        A dataset of `(features, targets, sample_weights)`, see `examples`.
    """

    def epochs():
        rng = np.random.default_rng(seed)
        while True:
            # Rows begin elsewhere in every epoch.
            rows = _rows(np.roll(stream, -rng.integers(task.length)), task.length)
            yield examples(rng.permutation(rows), task, rng)

    dataset = tf.data.Dataset.from_generator(
        epochs, output_signature=_signature(next(epochs()))
    )
    return dataset.rebatch(batch_size).prefetch(tf.data.AUTOTUNE)


def validation_batches(
    stream: np.ndarray,
    task: SpanCorruption,
    *,
    batch_size: int,
    batches: int,
    seed: int,
) -> tf.data.Dataset:
    """The same batches at every pass.

    Args:
        stream: integer array of shape `(tokens,)`, at least `task.length` of them.
        task: `SpanCorruption`.
        batch_size: int.
        batches: int. How many; rows come again with other spans if there are too few.
        seed: int.

    Returns:
        A dataset of `(features, targets, sample_weights)`, see `examples`.
    """
    rows = np.resize(_rows(stream, task.length), (batches * batch_size, task.length))
    corrupted = examples(rows, task, np.random.default_rng(seed))
    return tf.data.Dataset.from_tensor_slices(corrupted).batch(batch_size).cache()


def examples(
    rows: np.ndarray, task: SpanCorruption, rng: np.random.Generator
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Corrupts rows of tokens and arranges them as keras-hub's T5 takes them.

    Args:
        rows: integer array of shape `(rows, task.length)`.
        task: `SpanCorruption`.
        rng: `np.random.Generator`.

    Returns:
        Tuple of the features, a dict of token ids and padding masks of shapes
        `(rows, input_length)` and `(rows, target_length)`; the targets of shape
        `(rows, target_length)`; and their weights, zero for padding.
    """
    inputs, targets = task.corrupt(rows, rng)
    # The decoder sees the targets one step late, after T5's start token.
    shifted = np.pad(targets, ((0, 0), (1, 0)), constant_values=PAD_ID)[:, :-1]
    features = {
        "encoder_token_ids": inputs,
        "encoder_padding_mask": (inputs != PAD_ID).astype("int32"),
        "decoder_token_ids": shifted,
        "decoder_padding_mask": np.ones_like(shifted),
    }
    return features, targets, (targets != PAD_ID).astype("float32")


def _rows(stream: np.ndarray, length: int) -> np.ndarray:
    if len(stream) < length:
        raise ValueError(
            f"The stream has {len(stream)} tokens, fewer than one row of {length}. Use "
            "more documents or a smaller `length`."
        )
    return stream[: len(stream) // length * length].reshape(-1, length)


def _signature(arrays):
    """The types and shapes of one epoch's arrays, the number of rows left open."""
    return tf.nest.map_structure(
        lambda x: tf.TensorSpec((None, *x.shape[1:]), x.dtype), arrays
    )
