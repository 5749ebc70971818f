"""The ramps of a model's learning rates: made, started, resumed and settled."""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_fusion import graft
from keras_fusion.errors import FusionError, is_number
from keras_fusion.layout.parent_blocks import Blocks
from keras_fusion.models import private
from keras_fusion.training.learning_rate import (
    GrownSchedule,
    Ramp,
    RampedRate,
    ramped,
    rate_of,
    settled,
)
from keras_fusion.values import slots

# A growth's ramps.


def measured(
    model: keras.Model, measure: Callable, blocks: Blocks | None
) -> list[float]:
    """The factors on the optimizers' learning rates, measured on the grown model.

    Args:
        model: the grown model.
        measure: function `(model, blocks, optimizer)`.
        blocks: `Blocks` of the growth.

    Returns:
        List of floats, one per optimizer of the model; ones if measuring failed.

    Raises:
        FusionError: if what was measured is no number.
    """
    optimizers = graft.leaves(graft.optimizer_of(model))
    try:
        factors = [measure(model, blocks, optimizer) for optimizer in optimizers]
    except Exception as error:  # The model has grown and must train on.
        warnings.warn(
            f"{measure!r} could not measure the learning rate's factor ({error}); the "
            "learning rate stays as it is.",
            stacklevel=2,
        )
        return [1.0] * len(optimizers)
    return [_number(measure, factor) for factor in factors]


def _number(measure: Callable, factor: Any) -> float:
    """A measured factor as a number; arrays of one number are numbers too."""
    try:
        return float(np.asarray(keras.ops.convert_to_numpy(factor)).item())
    except (TypeError, ValueError) as error:
        raise FusionError(
            f"{measure!r} must return a number, the learning rate's factor. Received: "
            f"{factor!r}. The model has not grown."
        ) from error


def _check_factor(optimizer: keras.optimizers.Optimizer, factor: float) -> None:
    """Checks a factor, and the learning rate that it makes.

    Raises:
        FusionError: if either is not finite and positive.
    """
    what, value = "`learning_rate_factor`", factor
    if is_number(factor) and factor > 0 and graft.schedule_of(optimizer) is None:
        what = (
            f"`learning_rate_factor={factor!r}`, times the rate {rate_of(optimizer)!r},"
        )
        with np.errstate(over="ignore"):
            value = float(np.float32(rate_of(optimizer) * factor))
        if rate_of(optimizer) == 0.0:
            return
    if not (is_number(value) and value > 0):
        raise FusionError(
            f"{what} must be finite and positive. Received: {value!r}. The model has not "
            "grown; correct the number, or the function that measured it."
        )


def of_growth(
    model: keras.Model, factors: list[float], rewarmup_steps: int, reset: bool
) -> list[Ramp]:
    """The ramps of a growth that happens now.

    Args:
        model: the live model, before the growth or right after it.
        factors: list of floats, one per optimizer of the model.
        rewarmup_steps: int. Steps over which the rates rise from 0.
        reset: bool. Whether the growth resets the optimizers' moments.

    Returns:
        List of `Ramp`, one per optimizer.

    Raises:
        FusionError: if a factor, or a rate that it makes, is not finite and positive.
    """
    optimizers = graft.leaves(graft.optimizer_of(model))
    for optimizer, factor in zip(optimizers, factors, strict=True):
        _check_factor(optimizer, factor)
    return [
        Ramp(
            factor,
            rewarmup_steps,
            graft.steps(optimizer),
            slots.correction(optimizer) if reset else None,
            optimizer.gradient_accumulation_steps or 1,
        )
        for optimizer, factor in zip(optimizers, factors, strict=True)
    ]


def warn_of_schedulers() -> None:
    """Warns of callbacks of Keras's that set the learning rate in each epoch."""
    for callback in private.callbacks_of_fit():
        if isinstance(callback, keras.callbacks.LearningRateScheduler):
            warnings.warn(
                "LearningRateScheduler sets the learning rate at each epoch's begin, and "
                "undoes `learning_rate_factor` unless its function multiplies the rate "
                "that it is given. A schedule in the optimizer keeps the factor.",
                stacklevel=3,
            )


def start(model: keras.Model, ramps: list[Ramp]) -> None:
    """Puts the learning rates of a model that has just grown on ramps.

    A schedule is wrapped; a rate that is a variable is multiplied by the ramp's factor
    at once, and in each update by the rest of the ramp.
    """
    for optimizer, ramp in zip(
        graft.leaves(graft.optimizer_of(model)), ramps, strict=True
    ):
        schedule = graft.schedule_of(optimizer)
        if ramp.is_trivial:
            continue
        if schedule is not None:
            optimizer.learning_rate = ramped(schedule, ramp)
            continue
        optimizer.learning_rate = rate_of(optimizer) * ramp.factor
        _follow(optimizer, ramp)


def resume(model: keras.Model, growths: list[list[Ramp]]) -> None:
    """Resumes ramps on a model that was loaded after its growths.

    A loaded schedule holds its ramps itself, and a loaded rate has the factors in it.

    Args:
        model: the model.
        growths: list of lists of `Ramp`, the ramps of each growth so far.
    """
    if not growths:
        return
    for optimizer, *own in zip(
        graft.leaves(graft.optimizer_of(model)), *growths, strict=True
    ):
        is_variable = graft.schedule_of(optimizer) is None
        if is_variable and private.attached(optimizer, RampedRate) is None:
            for ramp in own:
                _follow(optimizer, ramp)
            if private.attached(optimizer, RampedRate) is not None:
                private.compile_again(model)  # A step that was compiled has no ramp.


def _follow(optimizer: keras.optimizers.Optimizer, ramp: Ramp) -> None:
    """Leaves to the updates what is not done once and for all."""
    rest = dataclasses.replace(ramp, factor=1.0)
    if not rest.is_trivial:
        rate = private.attached(optimizer, RampedRate)
        (rate or private.attach(optimizer, RampedRate(optimizer))).add(rest)


def settle(model: keras.Model) -> None:
    """Takes ramps that are over out of the learning-rate schedules."""
    for optimizer in graft.leaves(graft.optimizer_of(model)):
        schedule = graft.schedule_of(optimizer)
        if isinstance(schedule, GrownSchedule):
            private.sync(model)
            optimizer.learning_rate = settled(schedule, graft.steps(optimizer))
