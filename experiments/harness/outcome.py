"""What a run has come to, as plain data."""

import importlib
from typing import Any

import keras
import keras_hub

from experiments.harness.clock import Clock
from experiments.harness.study import Course
from experiments.harness.tasks import Task


def outcome(course: Course, task: Task, clock: Clock, **found: Any) -> dict:
    """The result of a run.

    Args:
        course: `Course`.
        task: `Task`.
        clock: `Clock`.
        **found: what was measured: `events`, `curve`, `finals`, `seconds`, and anything
            else that is to be told.
    """
    last = clock.phases[-1]
    backend = importlib.import_module(keras.config.backend())
    return {
        "course": course.to_dict(),
        "text": task.tokens.describe(),
        "budget": clock.budget,
        "costs": {str(p.size): p.cost for p in clock.phases},
        "parents_share": last.spent / clock.budget,
        "own_share": last.own / clock.budget,
        "params": task.parameters(last.size),
        **found,
        "versions": {m.__name__: m.__version__ for m in (keras, keras_hub, backend)},
    }


def final(clock: Clock, branch: Any, loss: float) -> dict:
    """One end of a run: its budget, what was spent by then, and the loss."""
    spent = clock.spent(branch.end)
    return {"budget": branch.budget, "spent": spent, "loss": loss}
