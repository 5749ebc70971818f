"""Several growths as one: the layouts and the weights go through all of them."""

import dataclasses
from collections.abc import Callable

import keras

from keras_fusion.errors import FusionError
from keras_fusion.layout.axes import Axis
from keras_fusion.operators.base import GrowthOperator, register_operator
from keras_fusion.operators.plan import Plan


@dataclasses.dataclass
class ChainPlan(Plan):
    """Growths that follow each other; the outer fields are those of the whole.

    Args:
        growths: list of plans, each of whose first parent is the one before's model.
    """

    growths: list = dataclasses.field(default_factory=list)

    @property
    def stages(self) -> list[Plan]:
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


def join(growths: list[Plan]) -> Plan:
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


@register_operator(
    "both", exact="if all its operators are", source="composition of the above"
)
class Chain(GrowthOperator):
    """Grows by several operators after each other, at one moment of training.

    The optimizer's state goes through all of them. `Chain([width, depth])` grows in both.

    Args:
        operators: list of operators, the first to act first.

    Raises:
        FusionError: for an empty list.

    Example:

    >>> import keras, keras_fusion
    >>> inputs = keras.Input((4,))
    >>> x = keras.layers.Dense(8)(inputs)
    >>> x = x + keras.layers.Dense(8, activation="relu")(x)
    >>> model = keras.Model(inputs, keras.layers.Dense(1)(x))
    >>> wide, deep = keras_fusion.HyperCloning(), keras_fusion.DepthStacking()
    >>> grown = keras_fusion.Chain([wide, deep]).plan(model).fill()
    >>> [layer.units for layer in grown.layers if hasattr(layer, "units")]
    [16, 16, 16, 1]
    """

    def __init__(self, operators: list):
        if not operators:
            raise FusionError(
                f"`operators` is empty: operators={operators!r}. Give at least one."
            )
        self.operators = list(operators)

    def parents(self, model: keras.Model) -> list[keras.Model]:
        """The models that go into the first growth."""
        return self.operators[0].parents(model)

    def plan(self, model: keras.Model) -> Plan:
        """Lays out the growths of a model; changes nothing."""
        stages = []
        for operator in self.operators:
            if stages:
                model = stages[-1].fill()  # What the next operator looks at.
            stages.append(operator.plan(model))
        return join(stages)

    def __str__(self):
        """What the operator does, for the console."""
        return ", then ".join(map(str, self.operators))

    def get_config(self) -> dict:
        """The operators, serialized."""
        serialize = keras.saving.serialize_keras_object
        return {"operators": [serialize(operator) for operator in self.operators]}

    @classmethod
    def from_config(cls, config):
        """Rebuilds the operators from `get_config`."""
        deserialize = keras.saving.deserialize_keras_object
        return cls([deserialize(operator) for operator in config["operators"]])
