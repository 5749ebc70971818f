"""Learning rates by variable, for an optimizer that has one for all variables."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras

from keras_fusion.models.private.attributes import instance_attributes


class ScaledSteps:
    """Replaces an optimizer's update and calls it once per multiplier.

    Args:
        optimizer: a built optimizer, without wrapper.
        multipliers: dict from the id of a variable to a number; 1 for other variables.
    """

    def __init__(
        self, optimizer: keras.optimizers.Optimizer, multipliers: Mapping[int, float]
    ):
        self.multipliers = multipliers
        self._step = type(optimizer)._backend_update_step.__get__(optimizer)

    def __call__(
        self, grads: Sequence[Any], trainable_variables: Sequence, learning_rate: Any
    ) -> None:
        """Updates the variables, in groups with equal multipliers."""
        groups: dict[float, list] = {}
        for pair in zip(grads, trainable_variables, strict=True):
            groups.setdefault(self.multipliers.get(id(pair[1]), 1.0), []).append(pair)
        for multiplier, pairs in groups.items():
            self._step(*map(list, zip(*pairs, strict=True)), learning_rate * multiplier)


def bind(optimizer: keras.optimizers.Optimizer) -> None:
    """Lets multipliers that were given to an optimizer's twin act on itself."""
    multipliers = of(optimizer)
    if multipliers:
        scaled = ScaledSteps(optimizer, multipliers)
        instance_attributes(optimizer)["_backend_update_step"] = scaled


def of(optimizer: keras.optimizers.Optimizer) -> Mapping[int, float]:
    """The multipliers of an optimizer, by the ids of its variables."""
    step = instance_attributes(optimizer).get("_backend_update_step")
    return step.multipliers if isinstance(step, ScaledSteps) else {}


def carry(
    old: keras.optimizers.Optimizer,
    new: keras.optimizers.Optimizer,
    pairs: Iterable[tuple[keras.Variable, keras.Variable]],
    added: Mapping[int, float] | None,
) -> None:
    """Gives a grown optimizer the multipliers of the old one, times those of a growth.

    Args:
        old: the optimizer of the smaller model, without wrapper.
        new: that of the bigger model.
        pairs: pairs `(variable of the smaller model, variable of the bigger one)`.
        added: dict from the id of a bigger model's variable to its multiplier, or `None`.
    """
    before, added = of(old), added or {}
    if not before and not added:
        return
    product = {
        id(target): before.get(id(source), 1.0) * added.get(id(target), 1.0)
        for source, target in pairs
    }
    instance_attributes(new)["_backend_update_step"] = ScaledSteps(new, product)
