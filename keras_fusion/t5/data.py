"""The data of a recipe: vocabulary, token files, batches."""

import dataclasses
from pathlib import Path

import tensorflow as tf

from keras_fusion.t5 import token_files
from keras_fusion.t5.batches import TrainingBatches, validation_batches
from keras_fusion.t5.documents import Source, open_source
from keras_fusion.t5.recipe import Recipe
from keras_fusion.t5.rows import Rows
from keras_fusion.t5.span_corruption import SpanCorruption
from keras_fusion.t5.vocabulary import EOS_ID, Vocabulary
from keras_fusion.training.files import whole

# Enough for a vocabulary, and few enough to read from a corpus of any size.
_VOCABULARY_DOCUMENTS = 200_000


@dataclasses.dataclass(frozen=True)
class PretrainingData:
    """What all nodes of a recipe train on.

    Attributes:
        vocabulary: `Vocabulary`.
        rows: `Rows` to train on.
        validation: `tf.data.Dataset`, the same batches for all nodes and seeds.
        task: `SpanCorruption`.
        batch_size: int.
    """

    vocabulary: Vocabulary
    rows: Rows
    validation: tf.data.Dataset
    task: SpanCorruption
    batch_size: int

    def batches(self, seed: int, host: int = 0, hosts: int = 1) -> TrainingBatches:
        """The training batches of a seed."""
        return TrainingBatches(self.rows, self.task, self.batch_size, seed, host, hosts)


def prepare(recipe: Recipe, folder: Path, *, host: int = 0, hosts: int = 1) -> None:
    """Trains the vocabulary, if the recipe has none, and writes the token files.

    What is there already stays, so it can be called again, and by several hosts.

    Args:
        recipe: `Recipe`.
        folder: `Path`.
        host: int. This host's number. Defaults to 0.
        hosts: int. How many share the work. Defaults to 1.
    """
    source = open_source(recipe.text.source)
    path = folder / "vocabulary.model"
    if not path.exists():
        with whole(path) as unfinished:
            _vocabulary(recipe, source).save(unfinished)
    text = recipe.text
    rows = text.validation_batches * recipe.training.batch_size
    token_files.prepare(
        source,
        Vocabulary.load(path, sentinels=text.sentinels),
        folder,
        # Rows are longer than inputs, and the last one may not be whole.
        validation_tokens=2 * (rows + 1) * text.input_length,
        host=host,
        hosts=hosts,
    )


def _vocabulary(recipe, source: Source):
    text = recipe.text
    if text.vocabulary:
        return Vocabulary.load(text.vocabulary, sentinels=text.sentinels)
    documents = source.training[0]().take(_VOCABULARY_DOCUMENTS)
    return Vocabulary.train(
        (d.decode("utf-8") for d in documents.as_numpy_iterator()),
        size=text.vocabulary_size,
        sentinels=text.sentinels,
    )


def load(recipe: Recipe, folder: Path) -> PretrainingData:
    """Opens what `prepare` has written.

    Args:
        recipe: `Recipe`.
        folder: `Path`.

    Returns:
        `PretrainingData`.
    """
    text, batch_size = recipe.text, recipe.training.batch_size
    vocabulary = Vocabulary.load(folder / "vocabulary.model", sentinels=text.sentinels)
    task = SpanCorruption.for_input_length(
        text.input_length,
        first_sentinel=vocabulary.first_sentinel,
        eos_id=EOS_ID,
        noise_density=text.noise_density,
        mean_span_length=text.mean_span_length,
        sentinels=text.sentinels,
    )
    return PretrainingData(
        vocabulary=vocabulary,
        rows=Rows(token_files.read(folder, "training"), task.length),
        validation=validation_batches(
            Rows(token_files.read(folder, "validation"), task.length),
            task,
            batch_size=batch_size,
            batches=text.validation_batches,
            seed=0,
        ),
        task=task,
        batch_size=batch_size,
    )
