"""The two models that are grown, and their batches: a decoder and a T5.

A model's size says how many times as wide and how deep it is; FUSION and its peers lead
from one size to another.
"""

import dataclasses
import functools

import keras
import keras_hub
import numpy as np
import tensorflow as tf

from benchmarks.savings.data import Text
from keras_fusion.flops import training_step_flops
from keras_fusion.t5 import batches
from keras_fusion.t5.model import Architecture
from keras_fusion.t5.model import build as build_t5
from keras_fusion.t5.rows import Rows
from keras_fusion.t5.span_corruption import SpanCorruption
from keras_fusion.t5.vocabulary import EOS_ID

WIDTH, INNER = 32, 85  # of one part of the width; the inner one is the usual 8/3
LENGTH = 128  # tokens in a row
GLANCES = 4  # batches of validation for a curve's point; a final loss takes all


@dataclasses.dataclass(frozen=True)
class Size:
    """How big a model is.

    Args:
        times: int. Its width, in parts of 32 features and one head each.
        layers: int. Of each of its stacks.
    """

    times: int
    layers: int


class Task:
    """A kind of model with its data.

    Attributes:
        name: string.
        full: `Size` of the grown model and of the one from scratch.
        budget: int. FLOPs of the run from scratch that is to be matched.
        warmup_steps: int.
        text: `Text`.
    """

    name: str
    full: Size
    scratch_steps: int
    batch_size: int
    warmup_steps = 60
    validation_batches = 32

    def __init__(self, text: Text):
        self.text = text

    def model(self, size: Size, seed: int) -> keras.Model:
        """A fresh model, not compiled."""
        raise NotImplementedError

    def example(self, rows: np.ndarray, rng: np.random.Generator) -> tuple:
        """A batch `(features, targets, weights)` of rows of tokens."""
        raise NotImplementedError

    def optimizer(self, rate) -> keras.optimizers.Optimizer:
        """The optimizer of all runs: Adam with clipped gradients.

        Args:
            rate: float or `LearningRateSchedule`.
        """
        return keras.optimizers.Adam(rate, global_clipnorm=1.0)

    def compiled(
        self, size: Size, seed: int, rate, *, jit_compile: bool = False
    ) -> keras.Model:
        """A fresh model, ready to train.

        Args:
            size: `Size`.
            seed: int. Of its weights.
            rate: float or `LearningRateSchedule`.
            jit_compile: bool. Pays for models that are small and train for long. Defaults
                to False.
        """
        model = self.model(size, seed)
        model.compile(
            optimizer=self.optimizer(rate),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            jit_compile=jit_compile,
        )
        return model

    @functools.cached_property
    def _rows(self):
        return self.text.rows(self.row_length)

    @property
    def row_length(self) -> int:
        """Tokens of the text in a row."""
        return LENGTH

    def batches(self, seed: int, start: int) -> tf.data.Dataset:
        """Endless batches from a step on; every epoch has another order."""
        source = _Batches(self, self._rows[0], seed)
        return batches.streamed(source, start)

    @functools.cached_property
    def validation(self) -> tf.data.Dataset:
        """The same batches for all runs."""
        rows = self._rows[1]
        count = min(self.validation_batches * 32, len(rows) // 32 * 32)
        # From all over the held-out text.
        taken = rows.take(np.linspace(0, len(rows) - 1, count).astype(int))
        taken = np.random.default_rng(0).permutation(taken)
        corrupted = self.example(taken, np.random.default_rng(0))
        return tf.data.Dataset.from_tensor_slices(corrupted).batch(32).cache()

    @functools.cached_property
    def glance(self) -> tf.data.Dataset:
        """Some of the validation's batches."""
        return self.validation.take(GLANCES).cache()

    @functools.cache  # noqa: B019, a task lives as long as its process
    def cost(self, size: Size) -> int:
        """The FLOPs of a training step at a size."""
        model = self.compiled(size, 0, 1e-3)
        batch = _Batches(self, self._rows[0], 0)(0)
        return training_step_flops(model, batch)

    @functools.cached_property
    def budget(self) -> int:
        """The FLOPs of the run from scratch."""
        return self.scratch_steps * self.cost(self.full)


@dataclasses.dataclass(frozen=True)
class _Batches:
    """A function from a step to its batch, so that a run can go on at any step."""

    task: Task
    rows: Rows
    seed: int

    def __call__(self, step):
        size = self.task.batch_size
        epoch, place = divmod(step, len(self.rows) // size)
        shift, order = _order(len(self.rows), self.rows.length, self.seed, epoch)
        taken = self.rows.take(order[place * size :][:size], shift)
        return self.task.example(taken, np.random.default_rng([self.seed, 1, step]))


@functools.lru_cache(maxsize=4)
def _order(rows, length, seed, epoch):
    rng = np.random.default_rng([seed, 0, epoch])
    return int(rng.integers(length)), rng.permutation(rows)


class Decoder(Task):
    """keras-hub's Llama: pre-norm, RMS norms, rotary positions, gated units."""

    name = "decoder"
    full = Size(4, 4)
    scratch_steps = 1000
    batch_size = 8

    @property
    def row_length(self):
        """One more token than is predicted."""
        return LENGTH + 1

    def model(self, size, seed):
        """A Llama with fresh weights."""
        keras.utils.set_random_seed(seed)
        backbone = keras_hub.models.LlamaBackbone(
            vocabulary_size=self.text.vocabulary.size,
            num_layers=size.layers,
            num_query_heads=size.times,
            num_key_value_heads=size.times,
            hidden_dim=WIDTH * size.times,
            intermediate_dim=INNER * size.times,
        )
        return keras_hub.models.LlamaCausalLM(backbone, preprocessor=None)

    def example(self, rows, rng):
        """Next tokens."""
        tokens = rows[:, :-1]
        features = {"token_ids": tokens, "padding_mask": np.ones_like(tokens)}
        return features, rows[:, 1:], np.ones(tokens.shape, "float32")


class LongDecoder(Decoder):
    """The same decoder on four times the budget."""

    name = "decoder-long"
    scratch_steps = 4000


class T5(Task):
    """keras-hub's T5, with gated units, by span corruption.

    Adafactor's steps are relative to each weight's size. Under one rate for all weights,
    Adam's, T5's unscaled attention and its large embedding do not learn together.
    """

    name = "t5"
    full = Size(4, 2)
    scratch_steps = 1000
    batch_size = 12
    validation_batches = 64

    def model(self, size, seed):
        """A T5 with fresh weights."""
        architecture = Architecture(
            hidden_dim=WIDTH * size.times,
            intermediate_dim=INNER * size.times,
            num_heads=size.times,
            num_layers=size.layers,
            head_size=WIDTH,
            vocabulary_size=self.text.vocabulary.size,
        )
        return build_t5(architecture, seed=seed)

    def optimizer(self, rate):
        """Adafactor at the rate that it is given, as in `keras_fusion.t5`."""
        return keras.optimizers.Adafactor(rate, relative_step=False)

    @functools.cached_property
    def _corruption(self):
        vocabulary = self.text.vocabulary
        return SpanCorruption(
            length=LENGTH,
            first_sentinel=vocabulary.first_sentinel,
            eos_id=EOS_ID,
            sentinels=vocabulary.sentinels,
        )

    def example(self, rows, rng):
        """Span corruption."""
        return batches.examples(rows, self._corruption, rng)


class T5Adam(T5):
    """The same T5 with Adam, as a first try had it."""

    name = "t5-adam"

    def optimizer(self, rate):
        """Adam with clipped gradients."""
        return Task.optimizer(self, rate)


TASKS = {task.name: task for task in (Decoder, T5, LongDecoder, T5Adam)}
# Other runs of the same models.
TASKS |= {f"{task.name}-default": task for task in (Decoder, T5)}
