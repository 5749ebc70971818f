"""The data of a recipe: vocabulary, token files and batches."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import tensorflow as tf

from keras_fusion.errors import FusionError
from keras_fusion.t5 import fingerprint, records, token_files
from keras_fusion.t5.batches import TrainingBatches, validation_batches
from keras_fusion.t5.documents import Source, open_source
from keras_fusion.t5.recipe import Recipe
from keras_fusion.t5.rows import Rows
from keras_fusion.t5.span_corruption import SpanCorruption
from keras_fusion.t5.vocabulary import EOS_ID, Vocabulary
from keras_fusion.training.files import sha256, whole


@dataclasses.dataclass(frozen=True)
class PretrainingData:
    """The data that all nodes of a recipe train on.

    Attributes:
        vocabulary: `Vocabulary`.
        rows: `Rows` to train on.
        validation: `tf.data.Dataset`, the same batches for all nodes and seeds.
        task: `SpanCorruption`.
        batch_size: int.
        fingerprint: dict. That of text and vocabulary, see `fingerprint.recorded`.
            Defaults to an empty one.
    """

    vocabulary: Vocabulary
    rows: Rows
    validation: tf.data.Dataset
    task: SpanCorruption
    batch_size: int
    fingerprint: dict = dataclasses.field(default_factory=dict)

    def batches(self, seed: int, host: int = 0, hosts: int = 1) -> TrainingBatches:
        """The training batches of a seed."""
        return TrainingBatches(self.rows, self.task, self.batch_size, seed, host, hosts)


def prepare(
    recipe: Recipe,
    folder: Path,
    *,
    source: Source | None = None,
    host: int = 0,
    hosts: int = 1,
    show: Callable[[str], None] = print,
) -> None:
    """Trains the vocabulary, if the recipe has none, and writes the token files.

    What is there already stays, so it can be called again, and by several hosts. A folder
    belongs to one text, one vocabulary and one recipe; they are compared first.

    Args:
        recipe: `Recipe`.
        folder: `Path`.
        source: `Source`. Defaults to the recipe's.
        host: int. This host's number. Defaults to 0.
        hosts: int. Number of hosts that share the work. Defaults to 1.
        show: function that shows a line. Defaults to `print`.

    Raises:
        FusionError: if the folder has data of another text or recipe, naming the
            difference; or if the text cannot be read.
    """
    source = source or open_source(recipe.text.source)
    fingerprint.claim(recipe, source, folder)
    # Of several processes one trains the vocabulary, and the others wait for it.
    with fingerprint.data_lock(folder):
        vocabulary = _kept_vocabulary(recipe, source, folder)
    wrote = token_files.prepare(
        source,
        vocabulary,
        folder,
        validation_tokens=fingerprint.validation_tokens(recipe),
        host=host,
        hosts=hosts,
    )
    if hosts > 1:
        shards = len(source.training), len(source.validation)
        token_files.wait(folder, *shards, show)
    if wrote and host == 0:
        show(_summary(vocabulary, token_files.counts(folder)))


def _kept_vocabulary(recipe, source: Source, folder):
    """The folder's vocabulary, made if it is not there."""
    # The record is written last, so that its presence means finished.
    if not (folder / "vocabulary.json").exists():
        vocabulary = _vocabulary(recipe, source)
        with whole(folder / "vocabulary.model") as unfinished:
            vocabulary.save(unfinished)
        content = {"sha256": hashlib.sha256(vocabulary.model).hexdigest()}
        records.write(folder / "vocabulary.json", {"fingerprint": content})
    return load_vocabulary(recipe, folder)


def _vocabulary(recipe, source: Source):
    text = recipe.text
    if text.vocabulary:
        return Vocabulary.load(text.vocabulary, sentinels=text.sentinels)
    try:
        return Vocabulary.train(
            source.sample(),
            size=text.vocabulary_size,
            sentinels=text.sentinels,
            coverage=text.vocabulary_coverage,
            byte_fallback=text.uses_bytes,
        )
    except FusionError as error:
        raise FusionError(
            f"{error} (text.vocabulary_size={text.vocabulary_size} in the recipe, "
            f"text.source={text.source!r})"
        ) from error


def _summary(vocabulary, counts):
    """A line about the vocabulary, which tells whether it fits the text."""
    whole_text = max(counts.tokens, 1)
    unknown, in_bytes = (
        100 * count / whole_text for count in (counts.unknown, counts.bytes)
    )
    return (
        f"vocabulary of {vocabulary.size:,} ids: of {counts.tokens:,} tokens "
        f"{unknown:.2f}% are unknown and {in_bytes:.2f}% are bytes of rare characters"
    )


def load_vocabulary(recipe: Recipe, folder: Path) -> Vocabulary:
    """Opens the vocabulary that `prepare` has written.

    Args:
        recipe: `Recipe`.
        folder: `Path`.

    Raises:
        FusionError: if there is none, or it is not as it was written.
    """
    path = folder / "vocabulary.model"
    if not path.is_file():
        raise FusionError(
            f"There is no vocabulary in {str(folder)!r}. Run `pretrain` first, or bring "
            "the folder from where it ran."
        )
    # An earlier version has no record.
    expected = fingerprint.recorded(folder).get("vocabulary", {}).get("sha256")
    if expected not in (None, sha256(path)):
        raise FusionError(
            f"The vocabulary {str(path)!r} has been changed or damaged. Bring it again "
            "from where it was made, or remove the folder to make its data again."
        )
    return Vocabulary.load(path, sentinels=recipe.text.sentinels)


def load(recipe: Recipe, folder: Path) -> PretrainingData:
    """Opens what `prepare` has written.

    Args:
        recipe: `Recipe`.
        folder: `Path`.

    Returns:
        `PretrainingData`.

    Raises:
        FileNotFoundError: if a file is missing.
        FusionError: if a file is not as it was written, or the text is too short for a
            batch.
    """
    text, batch_size = recipe.text, recipe.training.batch_size
    vocabulary = load_vocabulary(recipe, folder)
    made = fingerprint.of_data(folder) or {}
    training, validation = made.get("shards", (None, None))
    task = text.corruption(vocabulary.first_sentinel, EOS_ID)
    found = PretrainingData(
        vocabulary=vocabulary,
        rows=Rows(token_files.read(folder, "training", training), task.length),
        validation=validation_batches(
            Rows(token_files.read(folder, "validation", validation), task.length),
            task,
            batch_size=batch_size,
            batches=text.validation_batches,
            seed=0,
        ),
        task=task,
        batch_size=batch_size,
        fingerprint=fingerprint.recorded(folder),
    )
    # A text too short for a batch is refused before any model is built.
    found.batches(seed=0)
    return found
