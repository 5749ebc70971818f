"""Several operators, one after the other, as one."""

import contextlib
from typing import Any

import keras
import numpy as np

from keras_fusion.errors import FusionError
from keras_fusion.models import probe as probes
from keras_fusion.models.names import helpful
from keras_fusion.operators import arguments
from keras_fusion.operators.base import (
    GrowthOperator,
    check_operator,
    register_operator,
)
from keras_fusion.operators.plan import Plans


@register_operator(
    "both", exact="if all its operators are", source="composition of the above"
)
class Chain(GrowthOperator):
    """Grows by several operators after each other, at one moment of training.

    The optimizer's state goes through all of them. `Chain([width, depth])` grows in both.

    Args:
        operators: list of operators, the first to act first.
        probe: batch in the structure of the model's inputs, on which the growth is
            checked. By default a small random one is generated. Not part of the config.

    Raises:
        FusionError: for an empty list, or for what is no operator.

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

    @helpful
    def __init__(self, operators: list, probe: Any = None):
        if not isinstance(operators, (list, tuple)) or not operators:
            raise FusionError(
                "`operators` must be a list of at least one operator. Received: "
                f"operators={operators!r}."
            )
        for i, operator in enumerate(operators):
            check_operator(operator, f"operators[{i}]")
        self.operators = list(operators)
        self.probe = probe

    def parents(self, model: keras.Model) -> list[keras.Model]:
        """The models that go into the first growth."""
        return self.operators[0].parents(model)

    def check_built(self, model: keras.Model) -> None:
        """What each of the operators checks."""
        for operator in self.operators:
            getattr(operator, "check_built", lambda model: None)(model)

    def plan(self, model: keras.Model, seed: int | None = None) -> Plans:
        """Lays out the growths of a model; changes nothing.

        The next operator sees the model of the growth before as it will be filled.
        """
        seed, plans = arguments.chosen_seed(None, seed), Plans()
        with contextlib.ExitStack() as assumed:
            assumed.enter_context(probes.given(self.probe))
            for number, operator in enumerate(self.operators):
                own = np.random.SeedSequence([seed, number]).generate_state(1)[0]
                plans.extend(operator.plan(model, int(own)).stages)
                model = plans.fused
                if operator is not self.operators[-1]:
                    assumed.enter_context(plans[-1].assumed())
        return plans

    def __str__(self):
        """A short name of the operator, for the console."""
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
