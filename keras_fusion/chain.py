"""Several growths as one: the layouts and the weights go through all of them."""

import dataclasses
from collections.abc import Callable

import keras

from keras_fusion import fusion
from keras_fusion.axes import Axis


@dataclasses.dataclass
class ChainPlan(fusion.Plan):
    """Growths that follow each other; the outer fields are those of the whole.

    Args:
        growths: list of plans, each of whose first parent is the one before's model.
    """

    growths: list = dataclasses.field(default_factory=list)

    @property
    def stages(self) -> list[fusion.Plan]:
        """The growths one by one."""
        return [stage for growth in self.growths for stage in growth.stages]

    def fill(self) -> keras.Model:
        """Gives the last model its weights; the others have theirs."""
        return self.growths[-1].fill()

    def weights_adapter(self) -> Callable[[list], list]:
        """Makes the function that grows weights of the first parent by all growths."""
        adapters = [growth.weights_adapter() for growth in self.growths]

        def adapt(weights):
            for adapter in adapters:
                weights = adapter(weights)
            return weights

        return adapt


def join(growths: list[fusion.Plan]) -> fusion.Plan:
    """One plan of several, all filled but the last.

    Args:
        growths: list of plans, each of whose first parent is the one before's model.
    """
    if len(growths) == 1:
        return growths[0]
    first, last = growths[0], growths[-1]
    layouts = first.layouts
    for growth in growths[1:]:
        known = {id(item.target): item for item in layouts}
        layouts = [_after(known[id(i.sources[0])], i) for i in growth.layouts]
    exact = all(growth.settings.is_exact for growth in growths)
    settings = dataclasses.replace(first.settings, promised=exact)
    return ChainPlan(first.parents, last.fused, layouts, settings, growths=growths)


def _after(first, second):
    """The layout of a variable that comes from its sources by two growths."""
    axes = tuple(map(_axis_after, first.axes, second.axes))
    scales = tuple(a * b for b in second.scales for a in first.scales)
    return dataclasses.replace(
        second,
        sources=first.sources * len(second.sources),
        axes=axes,
        scales=scales,
        before_tied_readout=first.before_tied_readout or second.before_tied_readout,
        copied=first.copied if second.copied is None else second.copied,
    )


def _axis_after(first, second):
    if not (first.grown or second.grown):
        return second
    outer = second.blocks if second.grown else (second.positions(0),)
    inner = first.blocks if first.grown else (first.positions(0),)
    blocks = tuple(own[block] for own in outer for block in inner)
    return Axis(second.size, second.role or first.role, blocks)
