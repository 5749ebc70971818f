"""Recorded growths, done again on the model that a script has built."""

import os
from pathlib import Path

import keras

from keras_fusion.errors import FusionError
from keras_fusion.training import circumstances, matching, swap
from keras_fusion.training.journal import Author, Entry, Journal
from keras_fusion.training.matching import (
    changes_behind_model,
    changes_behind_weights,
    check_script,
    check_ungrown,
)
from keras_fusion.training.record import GROWTH, Change, SavedGrowths


def replay(
    model: keras.Model,
    journal: Journal,
    author: Author,
    growths: int | str | os.PathLike | None,
) -> tuple[SavedGrowths, list[Change]] | None:
    """Does the growths in an author's record again.

    Args:
        model: the model.
        journal: its `Journal`.
        author: `Author` with a record.
        growths: int. How many; or the path of a checkpoint, which tells it, see
            `saved_shapes`; `None` for all.

    Returns:
        The `SavedGrowths`, and those of its changes that are still ahead of the model;
        `None` if there is no record, and the checkpoint is from before any growth.

    Raises:
        FusionError: if the record does not fit the model, the script or the file.
    """
    record = author.record
    is_there = record is not None and Path(record).exists()
    if not (record is None or is_there or isinstance(growths, int | None)):
        check_ungrown(model, Path(growths))
        swap.build_optimizer(model)
        return None
    if record is None or not is_there:
        raise FusionError(
            f"There is no record to replay. Received: record={record!r}. Name the file "
            "that the run wrote as `record` of this callback."
        )
    saved, where = SavedGrowths.read(record), f"The record {os.fspath(record)}"
    check_script(saved.script, author.script(), where)
    done = changes_behind_model(saved.changes, model, where)
    circumstances.check(saved.run, circumstances.of(model), where, same_stage=not done)
    target = _target(saved.changes, done, growths, where)
    entries = [
        Entry(author if change.kind == GROWTH else None, change)
        for change in saved.changes[:target]
    ]
    with matching.named(where):
        journal.resume(model, entries, done, [author])
    swap.build_optimizer(model)
    return saved, saved.changes[target:]


def _target(
    changes: list[Change],
    done: int,
    growths: int | str | os.PathLike | None,
    where: str,
) -> int:
    """The number of changes that the model is to have behind it."""
    ends = [i + 1 for i, change in enumerate(changes) if change.kind == GROWTH]
    if growths is None:
        return len(changes)
    if isinstance(growths, int):
        if not 0 <= growths <= len(ends):
            raise FusionError(
                f"{where} holds {len(ends)} growths. Received: growths={growths}."
            )
        return max(ends[growths - 1] if growths else 0, done)
    target = changes_behind_weights(changes, Path(growths))
    if target < done:
        raise FusionError(
            f"The model has grown further than the weights in {growths}. Build it as at "
            "the start of the script."
        )
    return target
