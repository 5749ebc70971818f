"""Fine-tunes a T5 on a text-to-text task, and decodes its answers."""

import collections
import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence

import keras
import numpy as np

from keras_fusion.errors import FusionError
from keras_fusion.models.flops import training_step_flops
from keras_fusion.t5.batches import arranged, streamed
from keras_fusion.t5.text_task import TextTask
from keras_fusion.t5.vocabulary import EOS_ID, PAD_ID, Vocabulary

# A set's name, a metric's name, its value.
Scores = Mapping[str, Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class Point:
    """One evaluation.

    Attributes:
        step: int. Steps trained.
        training_loss: float. The mean over the steps since the previous evaluation.
        metrics: dict from the validation sets to dicts from metrics to values.
    """

    step: int
    training_loss: float
    metrics: Scores


@dataclasses.dataclass(frozen=True)
class FineTuned:
    """The result of a fine-tuning.

    Attributes:
        task: string. The task's name.
        steps: int.
        history: tuple of `Point`; the last one is the result, whether or not it is best.
        majority: dict like `Point.metrics`: what the training set's most frequent target
            scores, if it is the answer to everything.
        seconds: float. Wall time of the training, compilation included.
        evaluation_seconds: float. Wall time of all evaluations.
        flops: int. FLOPs of the training (see `keras_fusion.flops`).
        predictions: dict from the task's unlabelled sets to tuples of answers.
    """

    task: str
    steps: int
    history: tuple[Point, ...]
    majority: Scores
    seconds: float
    evaluation_seconds: float
    flops: int
    predictions: Mapping[str, tuple[str, ...]]

    @property
    def metrics(self) -> Scores:
        """The metrics of the last evaluation."""
        return self.history[-1].metrics

    @property
    def training_loss(self) -> float:
        """The mean training loss since the last evaluation but one."""
        return self.history[-1].training_loss

    def to_dict(self) -> dict:
        """The result as plain data, with the last evaluation's figures on top."""
        return dataclasses.asdict(self) | {
            "metrics": {name: dict(scores) for name, scores in self.metrics.items()},
            "training_loss": self.training_loss,
        }


@dataclasses.dataclass(frozen=True, eq=False)
class TaskBatches:
    """Endless batches of a task; a batch is a function of the seed and the step alone.

    Args:
        inputs: integer array of shape `(examples, input_length)`, padded with zeros.
        targets: integer array of shape `(examples, target_length)`.
        batch_size: int.
        seed: int. Seeds the order of each epoch.
    """

    inputs: np.ndarray
    targets: np.ndarray
    batch_size: int
    seed: int

    def __call__(self, step: int) -> tuple:
        """One batch.

        Args:
            step: int. The number of the batch, from 0.

        Returns:
            Tuple `(features, targets, sample_weights)` of arrays, see `arranged`.
        """
        places = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, within = np.divmod(places, len(self.inputs))
        rows = [
            _order(len(self.inputs), self.seed, int(epoch))[i]
            for epoch, i in zip(epochs, within, strict=True)
        ]
        return arranged(self.inputs[rows], self.targets[rows])


@functools.lru_cache(maxsize=4)  # computed once per epoch, not once per example
def _order(examples, seed, epoch):
    return np.random.default_rng([seed, epoch]).permutation(examples)


def finetune(
    model: keras.Model,
    task: TextTask,
    vocabulary: Vocabulary,
    *,
    steps: int,
    batch_size: int,
    input_length: int,
    target_length: int,
    learning_rate: float = 1e-3,
    seed: int = 0,
    evaluations: int = 5,
    report: Callable[[Point], None] | None = None,
) -> FineTuned:
    """Fine-tunes a model as T5 was: Adafactor at a constant rate, greedy decoding.

    Args:
        model: functional Keras model like `keras_hub.models.T5Seq2SeqLM`, which maps a
            dict of token ids and padding masks to logits. It is compiled again, and
            trained in place.
        task: `TextTask`.
        vocabulary: `Vocabulary` of the model.
        steps: int. Number of training steps.
        batch_size: int. The evaluations' too.
        input_length: int. Tokens of an input; longer ones are cut, and keep their end.
        target_length: int. Tokens of a target; all of the task's must fit.
        learning_rate: float. Adafactor multiplies it by the size of each weight. Defaults
            to 0.001, T5's; a model with little pre-training needs about ten times that.
        seed: int. Seeds the order of the examples. Defaults to 0.
        evaluations: int. Their number; they are evenly spaced, the last one after the
            last step. Defaults to 5.
        report: function that is called with each `Point`. Defaults to none.

    Returns:
        A `FineTuned`.

    Raises:
        FusionError: if a target of the task does not fit, or the vocabulary cannot spell
            it; if there are no steps; or on a backend on which FLOPs are not counted.
    """
    if steps < 1:
        raise FusionError(f"`steps` must be at least 1. Received: steps={steps}.")
    check_targets(task, vocabulary, target_length)
    batches = TaskBatches(
        encoded(task.training.inputs, vocabulary, input_length),
        encoded(task.training.targets, vocabulary, target_length),
        batch_size,
        seed,
    )
    # Counted first: on a backend that cannot count them, nothing is trained in vain.
    flops = training_step_flops(compiled(model, learning_rate), batches(0)) * steps
    answer = Answerer(model, vocabulary, batch_size, input_length, target_length)
    history, seconds, evaluation_seconds, begin = [], 0.0, 0.0, 0
    for end in _evaluation_steps(steps, evaluations):
        began = time.monotonic()
        loss = _fit(model, batches, begin, end)
        trained = time.monotonic()
        history.append(Point(end, loss, evaluate(task, answer)))
        seconds += trained - began
        evaluation_seconds += time.monotonic() - trained
        begin = end
        if report is not None:
            report(history[-1])
    return FineTuned(
        task=task.name,
        steps=steps,
        history=tuple(history),
        majority=majority(task),
        seconds=seconds,
        evaluation_seconds=evaluation_seconds,
        flops=flops,
        predictions={name: answer(texts) for name, texts in task.unlabelled.items()},
    )


def _evaluation_steps(steps, evaluations):
    """The steps, at least one and at most all of them, after which to evaluate."""
    points = np.linspace(0, steps, max(1, min(evaluations, steps)) + 1)
    return [round(p) for p in points[1:]]


def _fit(model, batches, begin, end):
    fitted = model.fit(streamed(batches, begin, end), verbose=0, shuffle=False)
    return float(fitted.history["loss"][-1])


def compiled(model: keras.Model, learning_rate: float) -> keras.Model:
    """Compiles a model for fine-tuning; its loss is the mean over the targets' tokens.

    Args:
        model: Keras model whose outputs are logits.
        learning_rate: float.

    Returns:
        The same model.
    """
    model.compile(
        optimizer=keras.optimizers.Adafactor(learning_rate, relative_step=False),
        loss=keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, reduction="mean_with_sample_weight"
        ),
    )
    return model


class Answerer:
    """Decodes a model's answers greedily, with one forward pass per token.

    Args:
        model: see `finetune`. It answers with the weights that it has at each call.
        vocabulary: `Vocabulary`.
        batch_size: int.
        input_length: int. Tokens of an input; longer ones are cut.
        target_length: int. The most tokens of an answer, its end included.
    """

    def __init__(
        self,
        model: keras.Model,
        vocabulary: Vocabulary,
        batch_size: int,
        input_length: int,
        target_length: int,
    ):
        # The logits of a whole vocabulary would take longer to fetch than to compute.
        best = keras.ops.argmax(model.output, axis=-1)
        self.best = keras.Model(model.input, best)
        self.vocabulary = vocabulary
        self.batch_size = batch_size
        self.input_length = input_length
        self.target_length = target_length

    def __call__(self, inputs: Sequence[str]) -> tuple[str, ...]:
        """Answers each input.

        Args:
            inputs: sequence of strings.

        Returns:
            Tuple of strings.
        """
        rows = encoded(inputs, self.vocabulary, self.input_length)
        # The last batch is filled up, so that all have one shape and are compiled once.
        missing = -len(rows) % self.batch_size
        rows = np.pad(rows, ((0, missing), (0, 0)), constant_values=EOS_ID)
        answers = [
            self._text(tokens)
            for begin in range(0, len(rows), self.batch_size)
            for tokens in self._decoded(rows[begin : begin + self.batch_size])
        ]
        return tuple(answers[: len(inputs)])

    def _decoded(self, rows):
        targets = np.full((len(rows), self.target_length), PAD_ID, "int32")
        for place in range(self.target_length):
            features, _, _ = arranged(rows, targets)
            best = np.asarray(self.best.predict_on_batch(features))
            targets[:, place] = best[:, place]
            if (targets == EOS_ID).any(axis=1).all():
                break
        return targets

    def _text(self, tokens):
        (ends,) = np.nonzero(tokens == EOS_ID)
        return self.vocabulary.decode(tokens[: ends[0]] if len(ends) else tokens)


def evaluate(
    task: TextTask, answer: Callable[[Sequence[str]], Sequence[str]]
) -> dict[str, dict[str, float]]:
    """Scores the answers to all validation sets of a task.

    Args:
        task: `TextTask`.
        answer: function from inputs to answers, such as an `Answerer`.

    Returns:
        Dict from the sets' names to dicts from the metrics' names to values.
    """
    return {
        name: task.score(name, answer(texts.inputs))
        for name, texts in task.validation.items()
    }


def majority(task: TextTask) -> dict[str, dict[str, float]]:
    """Scores the training set's most frequent target as the answer to everything.

    Args:
        task: `TextTask`.

    Returns:
        Dict from the sets' names to dicts from the metrics' names to values.

    Example:

    >>> from keras_fusion.t5.finetuning import majority
    >>> from keras_fusion.t5.metrics import accuracy
    >>> from keras_fusion.t5.text_task import Texts, TextTask
    >>> texts = Texts(("is it?", "was it?", "will it?"), ("yes", "yes", "no"))
    >>> task = TextTask("it", texts, {"seen": texts}, ("no", "yes"), {"acc": accuracy})
    >>> majority(task)
    {'seen': {'acc': 0.666...}}
    """
    ((word, _),) = collections.Counter(task.training.targets).most_common(1)
    return evaluate(task, lambda inputs: [word] * len(inputs))


def encoded(texts: Sequence[str], vocabulary: Vocabulary, length: int) -> np.ndarray:
    """Encodes texts as rows of token ids, each closed by the end token.

    Args:
        texts: sequence of strings.
        vocabulary: `Vocabulary`.
        length: int. Shorter ones are padded; longer ones lose their last tokens and keep
            the end token.

    Returns:
        `int32` array of shape `(texts, length)`.
    """
    rows = np.full((len(texts), length), PAD_ID, "int32")
    for row, text in zip(rows, texts, strict=True):
        tokens = [*vocabulary.encode(text)[: length - 1], EOS_ID]
        row[: len(tokens)] = tokens
    return rows


def check_targets(task: TextTask, vocabulary: Vocabulary, target_length: int) -> None:
    """Checks that every target of a task can be learnt and decoded.

    Args:
        task: `TextTask`.
        vocabulary: `Vocabulary`.
        target_length: int. Tokens of a target, its end included.

    Raises:
        FusionError: if one does not fit, or the vocabulary cannot spell it.
    """
    for text in sorted({*task.labels, *task.training.targets}):
        tokens = vocabulary.encode(text)
        spelt = vocabulary.decode(tokens)
        if spelt != text:
            raise FusionError(
                f"The vocabulary cannot spell the target {text!r} of the task "
                f"{task.name!r}: it reads {spelt!r}. Train `vocabulary` on text with all "
                "characters of the targets, such as the targets themselves."
            )
        if len(tokens) >= target_length:
            raise FusionError(
                f"The target {text!r} of the task {task.name!r} has {len(tokens)} tokens "
                f"and the end token, more than target_length={target_length}. Use "
                f"target_length={len(tokens) + 1} or more."
            )
