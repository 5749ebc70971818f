"""Real text models to grow: a T5 by span corruption and decoders by next tokens.

Both read the documentation strings of Python's standard library, as the demo does.
"""

import dataclasses
import time
from collections.abc import Callable

import keras
import keras_hub
import numpy as np
import tensorflow as tf

from keras_fusion.demo import settings
from keras_fusion.demo.comparison import make_trainer
from keras_fusion.t5 import corpus
from keras_fusion.t5.model import build
from keras_fusion.t5.vocabulary import Vocabulary

LENGTH = 96  # tokens in a row of the decoders'


@dataclasses.dataclass(frozen=True)
class Task:
    """A model to grow, its data, and how long to train it.

    Attributes:
        build: function from whether the model is wide, and a seed, to a model.
        batches: function from a seed to endless batches `(features, targets, weights)`.
        validation: `tf.data.Dataset` of the same.
        wide_steps: int. Steps of the wide model whose FLOPs are the budget.
        warmup_steps: int.
        factors: tuple of floats, on the learning rate after the growth.
    """

    build: Callable
    batches: Callable
    validation: tf.data.Dataset
    wide_steps: int
    warmup_steps: int
    factors: tuple[float, ...]


def t5() -> Task:
    """The T5 of the demo."""
    trainer = make_trainer(settings.FULL, seed=0, began=time.monotonic())

    def model(wide, seed):
        shape = trainer.architecture
        return build(shape if wide else shape.halved(), seed=seed)

    return Task(model, trainer.batches, trainer.validation, 500, 50, (0.5,))


def decoder() -> Task:
    """A Llama of three layers, 1.7M parameters when it has grown."""
    return _decoder(3, 3, 96, 8, 700, (0.5, 0.25))


def narrow() -> Task:
    """A Llama of two layers, 0.4M parameters when it has grown, trained for longer."""
    return _decoder(2, 3, 48, 16, 1500, (0.5, 0.25, 1.0))


def _decoder(layers, heads, width, batch_size, wide_steps, factors):
    """RMS norms, rotary positions, gated units; next tokens."""
    documents = corpus.standard_library()
    vocabulary = Vocabulary.train(documents.training, size=1024, sentinels=0)
    rows, held_out = (
        _rows(vocabulary.stream(part))
        for part in (documents.training, documents.validation)
    )

    def model(wide, seed):
        keras.utils.set_random_seed(seed)
        times = 2 if wide else 1
        backbone = keras_hub.models.LlamaBackbone(
            vocabulary_size=vocabulary.size,
            num_layers=layers,
            num_query_heads=heads * times,
            num_key_value_heads=heads * times,
            hidden_dim=width * times,
            # The gated unit's usual 8/3 of the width.
            intermediate_dim=width * times * 8 // 3,
        )
        return keras_hub.models.LlamaCausalLM(backbone, preprocessor=None)

    def batches(seed):
        order = tf.data.Dataset.from_tensor_slices(rows).shuffle(len(rows), seed=seed)
        batched = order.repeat().batch(batch_size)
        return batched.map(_examples).prefetch(tf.data.AUTOTUNE)

    fixed = tf.data.Dataset.from_tensor_slices(held_out[:320]).batch(32)
    validation = fixed.map(_examples).cache()
    return Task(model, batches, validation, wide_steps, 50, factors)


TASKS = {"narrow": narrow, "decoder": decoder, "t5": t5}


def _rows(stream):
    size = LENGTH + 1
    return np.asarray(stream[: len(stream) // size * size].reshape(-1, size), "int32")


def _examples(rows):
    tokens = rows[:, :-1]
    features = {"token_ids": tokens, "padding_mask": tf.ones_like(tokens)}
    return features, rows[:, 1:], tf.ones_like(tokens, "float32")
