"""An optimizer's update, and the learning rate that it reads."""

from collections.abc import Callable
from typing import Any

import keras

from keras_fusion.models.private.attributes import instance_attributes


def update_of(optimizer: keras.optimizers.Optimizer) -> tuple[Callable, Callable]:
    """The function that updates, and the one that gives the present learning rate."""
    return optimizer.apply, optimizer._get_current_learning_rate


def replace_update(
    optimizer: keras.optimizers.Optimizer,
    apply: Callable[..., Any],
    rate: Callable[[], Any],
) -> None:
    """Puts other functions in the place of those of `update_of`, in this object alone."""
    instance_attributes(optimizer).update(apply=apply, _get_current_learning_rate=rate)
