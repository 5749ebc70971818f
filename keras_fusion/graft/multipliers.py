"""A learning rate of its own for each variable, in an optimizer that has one for all."""

import keras


class ScaledSteps:
    """Stands in for an optimizer's update, which it calls once for each multiplier.

    Args:
        optimizer: a built optimizer without wrapper.
        multipliers: dict from the id of a variable to a number; 1 for those left out.
    """

    def __init__(self, optimizer: keras.optimizers.Optimizer, multipliers: dict):
        self.multipliers = multipliers
        self._step = type(optimizer)._backend_update_step.__get__(optimizer)

    def __call__(self, grads, trainable_variables, learning_rate):
        """Updates the variables, in groups of equal multipliers."""
        groups = {}
        for pair in zip(grads, trainable_variables, strict=True):
            groups.setdefault(self.multipliers.get(id(pair[1]), 1.0), []).append(pair)
        for multiplier, pairs in groups.items():
            self._step(*map(list, zip(*pairs, strict=True)), learning_rate * multiplier)


def of(optimizer: keras.optimizers.Optimizer) -> dict:
    """The multipliers of an optimizer, by the ids of its variables."""
    step = vars(optimizer).get("_backend_update_step")
    return step.multipliers if isinstance(step, ScaledSteps) else {}


def hand_on(old, new, pairs: list[tuple], added: dict | None) -> None:
    """Gives a grown optimizer the multipliers of the old one, times those of a growth.

    Args:
        old: the optimizer of the smaller model, without wrapper.
        new: that of the bigger one.
        pairs: list of `(variable of the smaller model, variable of the bigger one)`.
        added: dict from the id of a bigger model's variable to its multiplier, or `None`.
    """
    before, added = of(old), added or {}
    if not before and not added:
        return
    product = {
        id(target): before.get(id(source), 1.0) * added.get(id(target), 1.0)
        for source, target in pairs
    }
    vars(new)["_backend_update_step"] = ScaledSteps(new, product)
