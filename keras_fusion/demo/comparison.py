"""The demo from the text to the report."""

import numpy as np

from keras_fusion.demo.planning import make_plan
from keras_fusion.demo.report import Report
from keras_fusion.demo.settings import Settings
from keras_fusion.demo.training import Trainer
from keras_fusion.t5 import batches, corpus
from keras_fusion.t5.rows import Rows
from keras_fusion.t5.span_corruption import SpanCorruption
from keras_fusion.t5.vocabulary import EOS_ID, Vocabulary


def compare(
    settings: Settings, *, seed: int, limit: float | None, began: float
) -> Report:
    """Trains the parents, the fused model and its twin.

    Args:
        settings: `Settings`.
        seed: int. All weights and all batches follow from it.
        limit: float. Seconds that the demo may take, or `None` for no limit.
        began: float. `time.monotonic()` at the start of the demo.

    Returns:
        A `Report`.
    """
    trainer = make_trainer(settings, seed=seed, began=began)
    wide, small = trainer.costs(timed=limit is not None)
    plan = make_plan(settings, wide, small, limit)
    _show_plan(plan, wide, small)
    # Seeds apart, since a model's seed is also that of its batches.
    partner, parent_run = trainer.parent(plan, seed=3 * seed + 1, title="parent B")
    fused_run = trainer.fused(plan, partner, seed=3 * seed + 2, title="parent A, fused")
    twin_run = trainer.twin(plan, seed=3 * seed + 3, title="from-scratch twin")
    return Report(settings, seed, plan, parent_run, fused_run, twin_run)


def make_trainer(settings: Settings, *, seed: int, began: float) -> Trainer:
    """Prepares text, vocabulary and batches.

    Args:
        settings: `Settings`.
        seed: int. Of the corruption of the validation data.
        began: float. `time.monotonic()` at the start of the demo.

    Returns:
        A `Trainer`.
    """
    documents = corpus.standard_library()
    vocabulary = Vocabulary.train(
        documents.training, size=settings.vocabulary_size, sentinels=settings.sentinels
    )
    stream = vocabulary.stream(documents.training)
    held_out = vocabulary.stream(documents.validation)
    print(
        f"Text: {len(documents.training):,} docstrings ({len(stream):,} tokens) to "
        f"train on, {len(documents.validation):,} ({len(held_out):,}) held out.",
        flush=True,
    )
    task = SpanCorruption(
        settings.row_length,
        vocabulary.first_sentinel,
        EOS_ID,
        sentinels=settings.sentinels,
    )
    _show_example(vocabulary, task, stream)
    batch_size = settings.batch_size
    validation = batches.validation_batches(
        Rows([held_out], task.length),
        task,
        batch_size=batch_size,
        batches=settings.validation_batches,
        seed=seed,
    )
    return Trainer(
        settings,
        settings.architecture(vocabulary.size),
        lambda seed: batches.TrainingBatches(
            Rows([stream], task.length), task, batch_size, seed
        ).dataset(),
        validation,
        began=began,
    )


def _show_example(vocabulary, task, stream):
    """Prints one row as the models see it."""
    row = stream[: task.length].reshape(1, -1)
    inputs, targets = task.corrupt(row, np.random.default_rng(0))
    print(f"  input:  {vocabulary.decode(inputs[0])}")
    print(f"  target: {vocabulary.decode(targets[0])}")


def _show_plan(plan, wide, small):
    """Prints how the budget is spent."""
    for line in (
        f"Budget: {plan.budget / 1e12:.2f} TFLOP for each side. A step costs "
        f"{wide.flops / 1e9:.2f} GFLOP in the wide model and {small.flops / 1e9:.2f} "
        "GFLOP in a parent.",
        f"  fusion: 2 parents x {plan.parent_steps} steps, then {plan.wide_steps} steps "
        "in the fused model",
        f"  twin:   {plan.twin_steps} steps from scratch",
    ):
        print(line, flush=True)
