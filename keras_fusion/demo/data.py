"""The demo's text: rows of tokens, corrupted batches, and what they look like."""

import numpy as np

from keras_fusion.demo.settings import Settings
from keras_fusion.t5 import batches, corpus
from keras_fusion.t5.data import PretrainingData
from keras_fusion.t5.rows import Rows
from keras_fusion.t5.span_corruption import SpanCorruption
from keras_fusion.t5.vocabulary import EOS_ID, Vocabulary


def load(settings: Settings, seed: int) -> PretrainingData:
    """Reads the documentation strings of Python's standard library.

    Args:
        settings: `Settings`.
        seed: int. Of the corruption of the validation data.

    Returns:
        `PretrainingData` for all models of the demo.
    """
    documents = corpus.standard_library()
    vocabulary = Vocabulary.train(
        documents.training, size=settings.vocabulary_size, sentinels=settings.sentinels
    )
    task = SpanCorruption(
        settings.row_length,
        vocabulary.first_sentinel,
        EOS_ID,
        sentinels=settings.sentinels,
    )
    parts = documents.training, documents.validation
    stream, held_out = map(vocabulary.stream, parts)
    print(
        f"Text: {len(documents.training):,} docstrings ({len(stream):,} tokens) to "
        f"train on, {len(documents.validation):,} ({len(held_out):,}) held out.",
        flush=True,
    )
    validation = batches.validation_batches(
        Rows([held_out], task.length),
        task,
        batch_size=settings.batch_size,
        batches=settings.validation_batches,
        seed=seed,
    )
    rows = Rows([stream], task.length)
    return PretrainingData(vocabulary, rows, validation, task, settings.batch_size)


def show_example(data: PretrainingData) -> None:
    """Prints one row as the models see it."""
    row = data.rows.take(np.zeros(1, int))
    inputs, targets = data.task.corrupt(row, np.random.default_rng(0))
    print(f"  input:  {data.vocabulary.decode(inputs[0])}")
    print(f"  target: {data.vocabulary.decode(targets[0])}", flush=True)
