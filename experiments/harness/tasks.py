"""The kinds of models that are grown, and their batches."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import keras
import keras_hub
import numpy as np

from experiments.harness.initialization import initialize
from experiments.harness.study import Course, Model, Size, Text
from experiments.harness.text import Tokens
from keras_fusion.flops import training_step_flops
from keras_fusion.t5.model import Architecture
from keras_fusion.t5.model import build as build_t5
from keras_fusion.t5.rows import Rows
from keras_fusion.t5.span_corruption import SpanCorruption
from keras_fusion.t5.vocabulary import EOS_ID

if TYPE_CHECKING:
    import tensorflow as tf

GLANCES = 4  # batches of validation for a curve's point; a final loss takes all


class Task:
    """A kind of model with its data.

    Args:
        model: `Model`, its settings.
        tokens: `Tokens`.
    """

    def __init__(self, model: Model, tokens: Tokens):
        self.settings, self.tokens = model, tokens

    def build(self, size: Size, seed: int) -> keras.Model:
        """A fresh model, not compiled."""
        raise NotImplementedError

    def example(self, rows: np.ndarray, rng: np.random.Generator) -> tuple:
        """A batch `(features, targets, weights)` of rows of tokens."""
        raise NotImplementedError

    def sizes(self, size: Size) -> dict:
        """The widths of a size: a head has 8/3 of its features in the inner layer."""
        head = self.settings.head_size
        if size.width % head:
            raise ValueError(
                f"A width must be a multiple of head_size={head}. Received: {size}."
            )
        heads = size.width // head
        return {"hidden_dim": size.width, "intermediate_dim": heads * (8 * head // 3)}

    def fresh(self, size: Size, seed: int) -> keras.Model:
        """A model with the initial values that the settings want."""
        model = self.build(size, seed)
        if self.settings.initialization:
            initialize(model, self.settings.initialization, seed, size.layers)
        return model

    def compiled(self, size: Size, seed: int, rate) -> keras.Model:
        """A fresh model, ready to train.

        Args:
            size: `Size`.
            seed: int. Of its weights.
            rate: float or `LearningRateSchedule`.
        """
        model = self.fresh(size, seed)
        options = dict(self.settings.optimizer)
        optimizer = getattr(keras.optimizers, options.pop("name"))
        model.compile(
            optimizer=optimizer(rate, **options),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            # TensorFlow's XLA takes longer to compile than it saves; without it JAX
            # would run a step operation by operation.
            jit_compile=keras.config.backend() == "jax",
            metrics=[],
        )
        return model

    @functools.cached_property
    def rows(self) -> tuple[Rows, Rows]:
        """The rows to train on and those held out."""
        return self.tokens.rows(self.row_length)

    @property
    def row_length(self) -> int:
        """Tokens of the text in a row."""
        return self.settings.row_length

    def batches(self, seed: int, start: int) -> "tf.data.Dataset":
        """Endless batches from a step on; every epoch has another order."""
        from keras_fusion.t5 import batches  # It needs TensorFlow; a fleet does not.

        return batches.streamed(self._batches(seed), start)

    def starts(self, seed: int, begin: int, end: int) -> np.ndarray:
        """Where the rows of some steps' batches begin in the joined text.

        Args:
            seed: int.
            begin: int. The first step.
            end: int. The step behind the last.

        Returns:
            Integer array of shape `(end - begin, batch_size)`.
        """
        return self._batches(seed).starts(begin, end)

    @functools.cache  # noqa: B019, a task lives as long as its process
    def _batches(self, seed):
        limit = self.tokens.limit
        rows = None if limit is None else max(limit // self.row_length, 1)
        return _Batches(self, self.rows[0], seed, rows)

    def validation_rows(self) -> np.ndarray:
        """The rows that all runs are validated with, from all over the held-out text."""
        rows = self.rows[1]
        count = min(self.settings.validation_batches * 32, len(rows) // 32 * 32)
        taken = rows.take(np.linspace(0, len(rows) - 1, count).astype(int))
        return np.random.default_rng(0).permutation(taken)

    @functools.cached_property
    def validation(self) -> "tf.data.Dataset":
        """The same batches for all runs."""
        import tensorflow as tf

        example = self.example(self.validation_rows(), np.random.default_rng(0))
        return tf.data.Dataset.from_tensor_slices(example).batch(32).cache()

    @functools.cached_property
    def glance(self) -> "tf.data.Dataset":
        """Some of the validation's batches."""
        return self.validation.take(GLANCES).cache()

    @functools.cache  # noqa: B019, a task lives as long as its process
    def cost(self, size: Size) -> int:
        """The FLOPs of a training step at a size."""
        return training_step_flops(self.compiled(size, 0, 1e-3), self._batches(0)(0))

    @functools.cache  # noqa: B019
    def parameters(self, size: Size) -> int:
        """The parameters of a size."""
        return parameters(self.build(size, 0))

    def steps(self, course: Course) -> int:
        """The steps of the run from scratch that is the course's budget."""
        budget = course.budget
        if budget.steps is not None:
            return budget.steps
        tokens = budget.tokens_per_parameter * self.parameters(budget.size)
        return round(tokens / (self.settings.batch_size * self.settings.row_length))


def parameters(model: keras.Model) -> int:
    """The parameters of a model that train: the blend of a block norm does not."""
    return sum(math.prod(v.shape) for v in model.trainable_variables)


@dataclasses.dataclass(frozen=True)
class _Batches:
    """A function from a step to its batch, so that a run can go on at any step."""

    task: Task
    rows: Rows
    seed: int
    limit: int | None  # of rows, the same in all epochs

    def __call__(self, step):
        taken = self.rows.take(*self._taken(*divmod(step, self._steps), 1))
        return self.task.example(taken, np.random.default_rng([self.seed, 1, step]))

    def starts(self, begin, end):
        found = []
        while begin < end:
            epoch, place = divmod(begin, self._steps)
            steps = min(end - begin, self._steps - place)
            found.append(self.rows.starts(*self._taken(epoch, place, steps)))
            begin += steps
        return np.concatenate(found).reshape(-1, self.task.settings.batch_size)

    @property
    def _steps(self):
        """Those of an epoch."""
        count = self.limit or len(self.rows)
        return max(count // self.task.settings.batch_size, 1)

    def _taken(self, epoch, place, steps):
        """The rows of some steps of one epoch, and their shift."""
        size = self.task.settings.batch_size
        shift, order = _order(self.rows, self.seed, epoch, self.limit)
        return order[place * size :][: steps * size], shift


@functools.lru_cache(maxsize=64)
def _order(rows, seed, epoch, limit):
    """Where the rows of an epoch begin, and their order."""
    rng = np.random.default_rng([seed, 0, epoch])
    if limit is None:
        return int(rng.integers(rows.length)), rng.permutation(len(rows))
    # From all over the text, and never more of it.
    return 0, rng.permutation(np.linspace(0, len(rows) - 1, limit).astype(int))


class Decoder(Task):
    """keras-hub's Llama: pre-norm, RMS norms, rotary positions, gated units."""

    @property
    def row_length(self):
        """One more token than is predicted."""
        return self.settings.row_length + 1

    def build(self, size, seed):
        """A Llama with fresh weights."""
        widths = self.sizes(size)
        keras.utils.set_random_seed(seed)
        heads = size.width // self.settings.head_size
        backbone = keras_hub.models.LlamaBackbone(
            vocabulary_size=self.tokens.vocabulary.size,
            num_layers=size.layers,
            num_query_heads=heads,
            num_key_value_heads=heads,
            **widths,
        )
        return keras_hub.models.LlamaCausalLM(backbone, preprocessor=None)

    def example(self, rows, rng):
        """Next tokens."""
        tokens = rows[:, :-1]
        features = {"token_ids": tokens, "padding_mask": np.ones_like(tokens)}
        return features, rows[:, 1:], np.ones(tokens.shape, "float32")


class GPT2(Decoder):
    """keras-hub's GPT-2: pre-norm, layer norms, learned positions."""

    def build(self, size, seed):
        """A GPT-2 with fresh weights, without dropout."""
        keras.utils.set_random_seed(seed)
        backbone = keras_hub.models.GPT2Backbone(
            vocabulary_size=self.tokens.vocabulary.size,
            max_sequence_length=self.settings.row_length,
            **_stock_sizes(self, size),
        )
        return keras_hub.models.GPT2CausalLM(backbone, preprocessor=None)


class Bert(Task):
    """keras-hub's BERT, post-norm, by masked tokens."""

    masked = 0.15  # of the tokens

    def build(self, size, seed):
        """A BERT with fresh weights, without dropout."""
        keras.utils.set_random_seed(seed)
        backbone = keras_hub.models.BertBackbone(
            vocabulary_size=self.tokens.vocabulary.size,
            max_sequence_length=self.row_length,
            **_stock_sizes(self, size),
        )
        return keras_hub.models.BertMaskedLM(backbone, preprocessor=None)

    def example(self, rows, rng):
        """The tokens at some places, which a sentinel of the vocabulary hides."""
        count = max(round(self.masked * rows.shape[1]), 1)
        order = rng.random(rows.shape).argsort(axis=1)
        places = np.sort(order[:, :count], axis=1)
        hidden = rows.copy()
        sentinel = self.tokens.vocabulary.first_sentinel
        np.put_along_axis(hidden, places, sentinel, axis=1)
        features = {
            "token_ids": hidden,
            "segment_ids": np.zeros_like(hidden),
            "padding_mask": np.ones_like(hidden),
            "mask_positions": places,
        }
        targets = np.take_along_axis(rows, places, axis=1)
        return features, targets, np.ones(targets.shape, "float32")


def _stock_sizes(task: Task, size: Size) -> dict:
    """The arguments of a backbone with units that are not gated."""
    return {
        "num_layers": size.layers,
        "num_heads": size.width // task.settings.head_size,
        "hidden_dim": size.width,
        "intermediate_dim": 4 * size.width,
        "dropout": 0.0,
    }


class T5(Task):
    """keras-hub's T5, with gated units, by span corruption."""

    def build(self, size, seed):
        """A T5 with fresh weights."""
        architecture = Architecture(
            **self.sizes(size),
            num_heads=size.width // self.settings.head_size,
            num_layers=size.layers,
            head_size=self.settings.head_size,
            vocabulary_size=self.tokens.vocabulary.size,
        )
        return build_t5(architecture, seed=seed)

    @functools.cached_property
    def _corruption(self):
        vocabulary = self.tokens.vocabulary
        return SpanCorruption(
            length=self.row_length,
            first_sentinel=vocabulary.first_sentinel,
            eos_id=EOS_ID,
            sentinels=vocabulary.sentinels,
        )

    def example(self, rows, rng):
        """Span corruption."""
        from keras_fusion.t5 import batches

        return batches.examples(rows, self._corruption, rng)


KINDS = {"decoder": Decoder, "t5": T5, "gpt2": GPT2, "bert": Bert}


def open_task(model: Model, tokens: Tokens) -> Task:
    """The task of some settings.

    Raises:
        ValueError: for an unknown kind of model.
    """
    if model.kind not in KINDS:
        raise ValueError(f"`kind` is one of {list(KINDS)}. Received: {model.kind!r}.")
    return KINDS[model.kind](model, tokens)


class Tasks:
    """The tasks of courses, one for all that are alike in text and settings.

    Args:
        open_text: function from a `study.Text` to its `Tokens`.
    """

    def __init__(self, open_text: Callable[[Text], Tokens]):
        self._open_text = open_text
        self._tokens: dict[Text, Tokens] = {}
        self._tasks: dict[tuple, Task] = {}

    def tokens(self, text: Text) -> Tokens:
        """The tokens of a text, opened once."""
        if text not in self._tokens:
            self._tokens[text] = self._open_text(text)
        return self._tokens[text]

    def __call__(self, course: Course, model: Model) -> Task:
        """The task of a course's text with some settings."""
        key = course.text, repr(model)
        if key not in self._tasks:
            self._tasks[key] = open_task(model, self.tokens(course.text))
        return self._tasks[key]
