"""What a fleet leaves to processes on the CPU: initial values, and growths by the package.

A state is `(trainable, others, optimizer)`, tuples of arrays, as `fleet.State` is.
"""

import functools
import inspect

import keras

import keras_fusion
from experiments.harness.initialization import renew_blocks, renew_features
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


@functools.cache
def _task(settings: str, vocabulary: int):
    return open_task(_SETTINGS[settings], Tokens(Vocabulary(vocabulary), [], []))


_SETTINGS: dict[str, Model] = {}


def _compiled(settings, vocabulary, size, seed):
    _SETTINGS[repr(settings)] = settings
    task = _task(repr(settings), vocabulary)
    model = task.compiled(size, seed, 1e-3)
    model.optimizer.build(model.trainable_variables)
    return task, model


def _state(model, optimizer):
    groups = (
        model.trainable_variables,
        model.non_trainable_variables,
        optimizer.variables,
    )
    return tuple(
        tuple(keras.ops.convert_to_numpy(v) for v in group) for group in groups
    )


def fresh(
    vocabulary: int, settings: Model, size: Size, seed: int, states: list
) -> tuple[tuple, dict]:
    """The state of a fresh model, and nothing to tell of it."""
    _, model = _compiled(settings, vocabulary, size, seed)
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
    models = []
    for state in states:
        task, model = _compiled(settings, vocabulary, size, course.seed)
        for group, values in zip(
            (
                model.trainable_variables,
                model.non_trainable_variables,
                model.optimizer.variables,
            ),
            state,
            strict=True,
        ):
            for variable, value in zip(group, values, strict=True):
                variable.assign(value)
        models.append(model)
    operator = keras_fusion.known_operators()[growth.operator].cls
    options = dict(growth.options)
    if "seed" in inspect.signature(operator).parameters:
        options["seed"] = course.seed
    if growth.parents > 1:
        options["partners"] = models[1:]
    prepared, difference = swap.prepare(
        models[0],
        operator(**options),
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
