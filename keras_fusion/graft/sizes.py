"""The bytes of an optimizer's state, before a growth and after it."""

import math
import re
from collections.abc import Iterable, Sequence

import keras

from keras_fusion.graft import optimizer as optimizers
from keras_fusion.layout.variables import VariableLayout
from keras_fusion.values import slots


def bytes_of(variables: Iterable[keras.Variable]) -> int:
    """The bytes of variables, which need no values."""
    return sum(math.prod(v.shape) * _width(v.dtype) for v in variables)


def _width(dtype: str) -> int:
    """The bytes of one number; of `bfloat16`, which NumPy alone does not know, too."""
    bits = re.search(r"\d+", dtype)
    return max(1, int(bits[0]) // 8) if bits else 1


def optimizer_bytes(
    model: keras.Model, layouts: Sequence[VariableLayout]
) -> tuple[int, int]:
    """The bytes of the state of a model's optimizer now, and after a growth.

    Args:
        model: the model, which need not have been trained yet.
        layouts: the growth's layouts of the bigger model's variables; none for none.

    Returns:
        `(before, after)`; zeros for a model without optimizer.
    """
    live = optimizers.optimizer_of(model)
    if live is None:
        return 0, 0
    built = optimizers.built_on(live, model)
    total = bytes_of(built.variables)
    return total, total + sum(
        _added(leaf, layouts) for leaf in optimizers.leaves(built)
    )


def _added(
    optimizer: keras.optimizers.Optimizer, layouts: Sequence[VariableLayout]
) -> int:
    """The bytes by which the slots of one optimizer grow."""
    state, rules = optimizers.read_state(optimizer), slots.rules_of(optimizer, True)
    if not layouts:
        return 0
    places, added = state.positions(), 0
    for name, held in state.lists.items():
        rule = rules.get(name, slots.Slot())
        kept = {id(slot): slot for slot in held if slot is not None}
        added -= bytes_of(kept.values())
        for item in layouts:
            place = places.get(id(item.sources[0]))
            slot = None if place is None else held[place]
            if slot is not None:
                added += _grown(slot, rule, item) * _width(slot.dtype)
    return added


def _grown(slot: keras.Variable, rule: slots.Slot, item: VariableLayout) -> int:
    """The entries of a variable's slot after the growth."""
    own, target = tuple(item.sources[0].shape), tuple(item.target.shape)
    for axes_of in (rule.axes_of, tuple):
        if tuple(slot.shape) == axes_of(own):
            return math.prod(axes_of(target))
    return math.prod(slot.shape)  # a placeholder
