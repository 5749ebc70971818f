"""Weights that were taken before a growth, as `EarlyStopping` keeps them: grown later."""

import dataclasses
from collections.abc import Callable

import numpy as np

from keras_fusion.models import host


@dataclasses.dataclass(eq=False)
class _StandIn:
    """The rest of a variable whose memory is to be freed."""

    dtype: str
    shape: tuple


def adapter(plan) -> Callable[[list], list]:
    """Makes the function that grows any weights of the first parent.

    Args:
        plan: a `Plan`. Of the first parent's variables, and of the bigger model's that
            have a counterpart there, the function keeps none.

    Returns:
        Function from `model.get_weights()` of the first parent, at any time, to
        `get_weights()` of the model that would have been grown from them.
    """
    old = {id(v): i for i, v in enumerate(plan.parents[0].weights)}
    where = {
        id(layout.target): (index, old[id(layout.sources[0])])
        for index, layout in enumerate(plan.layouts)
        if id(layout.sources[0]) in old
    }
    by_parent = {id(x.target): _of_parents(x, old) for x in plan.by_parent}
    rest = _without_variables(plan)

    def laid_out(index, place):
        layout = rest.layouts[index]
        first = layout.sources[0]

        def value(weights):
            own = np.asarray(weights[place])
            arrays = [own if s is first else host.read(s) for s in layout.sources]
            return rest.values(index, arrays)

        return value

    def value_of(variable):
        if id(variable) in by_parent:
            return by_parent[id(variable)]
        if id(variable) in where:
            return laid_out(*where[id(variable)])
        # A block norm's blend has no counterpart; it stays what it is.
        return lambda weights: host.read(variable)

    values = [value_of(variable) for variable in plan.fused.weights]
    return lambda weights: [value(weights) for value in values]


def _of_parents(own, old):
    """The function from the first parent's weights to values of each parent's."""
    places = [old.get(id(source), source) for source in own.sources]
    made = own.value

    def value(weights):
        return made(
            [
                np.asarray(weights[place])
                if isinstance(place, int)
                else host.read(place)
                for place in places
            ]
        )

    return value


def _without_variables(plan):
    """The plan with stand-ins for the first parent's variables and the bigger model's."""
    standing = {}

    def stand_in(variable):
        rest = _StandIn(variable.dtype, tuple(variable.shape))
        return standing.setdefault(id(variable), rest)

    own = {id(layout.sources[0]) for layout in plan.layouts}
    layouts = [
        dataclasses.replace(
            layout,
            sources=tuple(stand_in(s) if id(s) in own else s for s in layout.sources),
            target=stand_in(layout.target),
        )
        for layout in plan.layouts
    ]
    return dataclasses.replace(
        plan, parents=(), fused=None, layouts=tuple(layouts), by_parent=()
    )
