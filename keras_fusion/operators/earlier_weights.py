"""Weights that were taken before a growth, as `EarlyStopping` keeps them: grown later."""

import dataclasses
from collections.abc import Callable

import numpy as np

from keras_fusion.models import host


@dataclasses.dataclass(eq=False)
class _StandIn:
    """What is left of a variable when its memory is to be freed."""

    dtype: str


def adapter(plan) -> Callable[[list], list]:
    """Makes the function that grows any weights of the first parent.

    Args:
        plan: a `fusion.Plan`. Of the first parent's variables, and of the fused ones
            without new capacity, the function keeps none.

    Returns:
        Function from `model.get_weights()` of the first parent, at any time, to
        `get_weights()` of the model that would have been fused from them.
    """
    old = {id(v): i for i, v in enumerate(plan.parents[0].weights)}
    where = {
        id(item.target): (index, old[id(item.sources[0])])
        for index, item in enumerate(plan.layouts)
        if id(item.sources[0]) in old
    }
    # A block norm's blend has no counterpart; it stays what it is.
    places = [where.get(id(v), (v, None)) for v in plan.fused.weights]
    rest = _without_variables(plan)

    def grown(weights, index, place):
        if place is None:
            return host.read(index)
        item, own = rest.layouts[index], np.asarray(weights[place])
        first = item.sources[0]
        arrays = [own if s is first else host.read(s) for s in item.sources]
        return rest.values(index, arrays, item.initial())

    return lambda weights: [grown(weights, *place) for place in places]


def _without_variables(plan):
    """The plan with stand-ins for the first parent's variables and the fused ones."""
    standing = {}

    def stand_in(variable):
        return standing.setdefault(id(variable), _StandIn(variable.dtype))

    own = {id(item.sources[0]) for item in plan.layouts}
    layouts = [
        dataclasses.replace(
            item,
            sources=tuple(stand_in(s) if id(s) in own else s for s in item.sources),
            target=item.target if item.has_new else stand_in(item.target),
        )
        for item in plan.layouts
    ]
    corrections = {
        id(standing[key]) if key in standing else key: value
        for key, value in plan.corrections.items()
    }
    return dataclasses.replace(
        plan,
        parents=[],
        fused=None,
        layouts=layouts,
        corrections=corrections,
        derived=(),
    )
