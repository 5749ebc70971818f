"""The bytes of a model and of its optimizer's state, before a growth and after it.

Those on one device are asked for as well: of a variable that is sharded it holds a part.
"""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import keras

from keras_fusion.graft import optimizer as optimizers
from keras_fusion.layout.variables import VariableLayout
from keras_fusion.models import host
from keras_fusion.values import slots


def bytes_of(variables: Iterable[keras.Variable], per_device: bool = False) -> int:
    """The bytes of variables, which need no values; on request those on one device."""
    return sum(_bytes(math.prod(v.shape), v, per_device) for v in variables)


def _bytes(entries: int, variable: keras.Variable, per_device: bool) -> int:
    """The bytes of so many numbers with a variable's dtype and sharding."""
    parts = host.parts_of(variable) if per_device else 1
    return entries * _width(variable.dtype) // parts


def _width(dtype: str) -> int:
    """The bytes of one number; of `bfloat16`, which NumPy alone does not know, too."""
    bits = re.search(r"\d+", dtype)
    return max(1, int(bits[0]) // 8) if bits else 1


def device_bytes(
    model: keras.Model, planned: Any = None
) -> tuple[int, int | None, int | None]:
    """The bytes on each device before a growth, during it, and after it.

    Those of the weights and of the optimizers' state. During a growth the models that it
    grows from are there, all that a chain makes between, and the last one.

    Args:
        model: the model that grows.
        planned: `Plan` or `Plans`; `None` for a model that does not grow.

    Returns:
        `(before, during, after)`, the last two `None` without a plan.
    """
    before = _with_state(model)
    if planned is None:
        return before, None, None
    state = optimizer_bytes(model, planned.layouts, per_device=True)[1]
    after = bytes_of(planned.fused.weights, per_device=True) + state
    partners = {id(x): x for x in planned.parents if x is not model}
    others = sum(map(_with_state, partners.values()))
    others += sum(
        bytes_of(stage.fused.weights, per_device=True)
        for stage in planned.stages
        if stage.fused is not planned.fused
    )
    return before, before + others + after, after


def _with_state(model: keras.Model) -> int:
    """The bytes of a model and of its optimizer's state on each device."""
    state, _ = optimizer_bytes(model, [], per_device=True)
    return bytes_of(model.weights, per_device=True) + state


def optimizer_bytes(
    model: keras.Model, layouts: Sequence[VariableLayout], per_device: bool = False
) -> tuple[int, int]:
    """The bytes of the state of a model's optimizer now, and after a growth.

    Args:
        model: the model, which need not have been trained yet.
        layouts: the growth's layouts of the bigger model's variables; none for none.
        per_device: bool. Whether those on one device are asked for.

    Returns:
        `(before, after)`; zeros for a model without optimizer.
    """
    live = optimizers.optimizer_of(model)
    if live is None:
        return 0, 0
    built = optimizers.built_on(live, model)
    total = bytes_of(built.variables, per_device)
    leaves = optimizers.leaves(built)
    return total, total + sum(_added(leaf, layouts, per_device) for leaf in leaves)


def _added(
    optimizer: keras.optimizers.Optimizer,
    layouts: Sequence[VariableLayout],
    per_device: bool,
) -> int:
    """The bytes by which the slots of one optimizer grow."""
    state, rules = optimizers.read_state(optimizer), slots.rules_of(optimizer, True)
    if not layouts:
        return 0
    places, added = state.positions(), 0
    for name, held in state.lists.items():
        rule = rules.get(name, slots.Slot())
        kept = {id(slot): slot for slot in held if slot is not None}
        added -= bytes_of(kept.values(), per_device)
        for item in layouts:
            place = places.get(id(item.sources[0]))
            slot = None if place is None else held[place]
            if slot is not None:
                added += _bytes(_grown(slot, rule, item), slot, per_device)
    return added


def _grown(slot: keras.Variable, rule: slots.Slot, item: VariableLayout) -> int:
    """The entries of a variable's slot after the growth."""
    own, target = tuple(item.sources[0].shape), tuple(item.target.shape)
    for axes_of in (rule.axes_of, tuple):
        if tuple(slot.shape) == axes_of(own):
            return math.prod(axes_of(target))
    return math.prod(slot.shape)  # a placeholder
