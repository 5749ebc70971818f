"""What a fleet leaves to processes on the CPU: initial values, and growths by the package.

A state is `(trainable, others, optimizer)`, tuples of arrays, as `fleet.State` is.
"""

import keras

from experiments.harness.initialization import renew_blocks, renew_features
from experiments.harness.operators import operator_of
from experiments.harness.study import Course, Model, Size
from experiments.harness.tasks import open_task
from experiments.harness.text import Tokens
from keras_fusion.training import swap


class Vocabulary:
    """All that building a model asks of a text.

    Args:
        size: int. Token ids.
    """

    def __init__(self, size: int):
        self.size = size


def _task(settings, vocabulary):
    return open_task(settings, Tokens(Vocabulary(vocabulary), [], []))


def _compiled(task, size, seed):
    model = task.compiled(size, seed, 1e-3)
    model.optimizer.build(model.trainable_variables)
    return model


def _groups(model, optimizer):
    """The variables, in the groups of a state."""
    return (
        model.trainable_variables,
        model.non_trainable_variables,
        optimizer.variables,
    )


def _state(model, optimizer):
    return tuple(
        tuple(keras.ops.convert_to_numpy(v) for v in group)
        for group in _groups(model, optimizer)
    )


def fresh(
    vocabulary: int, settings: Model, size: Size, seed: int, states: list
) -> tuple[tuple, dict]:
    """The state of a fresh model, and nothing to tell of it."""
    model = _compiled(_task(settings, vocabulary), size, seed)
    return _state(model, model.optimizer), {}


def grow(
    vocabulary: int, settings: Model, course: Course, number: int, states: list
) -> tuple[tuple, dict]:
    """Grows a model by one of a course's growths.

    Args:
        vocabulary: int. Its size.
        settings: `Model`, of the optimizer whose state is grown.
        course: `Course`.
        number: int. Of the growth.
        states: list of the states of the live model and its partners.

    Returns:
        The grown state, and a dict of what the growth changed.
    """
    growth = course.growths[number]
    size = course.growths[number - 1].to if number else course.size
    task, models = _task(settings, vocabulary), []
    for state in states:
        model = _compiled(task, size, course.seed)
        groups = _groups(model, model.optimizer)
        for group, values in zip(groups, state, strict=True):
            for variable, value in zip(group, values, strict=True):
                variable.assign(value)
        models.append(model)
    prepared, difference = swap.prepare(
        models[0],
        operator_of(growth, course.seed, models[1:]),
        course.seed,
        optimizer_state=growth.training.get("optimizer_state", "carry"),
        multipliers=False,
    )
    model, optimizer = prepared.fused, prepared.optimizer
    new = task.fresh(growth.to, course.seed + 1)
    if growth.new_blocks == "random":
        renew_blocks(model, optimizer, new, size.layers)
    if growth.new_features == "random":
        renew_features(prepared.plan, new)
    return _state(model, optimizer), {
        "to": str(growth.to),
        "change": difference.largest,
    }
