"""Growth in depth, and in several ways after each other, as operators for `GrowModel`."""

import keras

from keras_fusion import chain, fusion, stacking
from keras_fusion.errors import FusionError
from keras_fusion.growth_operators import GrowthOperator, register_operator


@register_operator(
    "depth",
    exact="with identity=True",
    source="Du et al., Stacking Your Transformers (G_stack), NeurIPS 2024",
)
class DepthStacking(GrowthOperator):
    """Stacks copies of a model's layers on top of each other.

    G_stack: the layers 1 to L become 1 to L, 1 to L. The function changes (the copies
    process what their originals gave out), and recovers in training; with
    `identity=True` new blocks add nothing to the residual stream at first, and the
    function stays.

    Layers are found as repeated residual blocks in functional and `Sequential` models,
    nested ones as a whole; in other models, keras-hub's among them, by the config keys
    that count them (`register(..., depth=("num_layers",))`).

    Each new block's optimizer state is a copy of its origin's, and the step count goes on,
    so that nothing starts with second moments of zero; that choice is ours.

    Args:
        factor: int of at least 2. How many times as deep the model becomes. The paper
            recommends 4, early in training. Defaults to 2.
        order: `"stacked"` puts the whole stack on top of itself (1, 2, 1, 2);
            `"interleaved"` puts each copy behind its origin (1, 1, 2, 2). Defaults to
            `"stacked"`.
        identity: bool. Whether the weights through which new blocks write to the stream
            start at zero, their other weights as copies. Defaults to `False`.

    Raises:
        FusionError: for a factor that is not whole, or an unknown order; in training, for a
            model without blocks to repeat, and with `identity` for one whose new blocks
            cannot be identities (norms after the residual sum).

    Example:

    >>> import keras, keras_fusion
    >>> inputs = keras.Input((4,))
    >>> x = keras.layers.Dense(8)(inputs)
    >>> for _ in range(2):
    ...     x = x + keras.layers.Dense(8, activation="relu")(x)
    >>> model = keras.Model(inputs, keras.layers.Dense(1)(x))
    >>> deep = keras_fusion.DepthStacking(factor=2).plan(model).fill()
    >>> sum(isinstance(layer, keras.layers.Dense) for layer in deep.layers)
    6

    Source: Du et al., Stacking Your Transformers: A Closer Look at Model Growth for
    Efficient LLM Pre-Training, NeurIPS 2024; before it Gong et al., Efficient Training of
    BERT by Progressively Stacking, ICML 2019. Copies with zeroed outputs: Wu et al., LLaMA
    Pro, ACL 2024.
    """

    def __init__(self, factor: int = 2, order: str = "stacked", identity: bool = False):
        if not isinstance(factor, int) or factor < 2:
            raise FusionError(
                "`factor` of DepthStacking must be an integer of at least 2. Received: "
                f"factor={factor!r}."
            )
        if order not in stacking.ORDERS:
            raise FusionError(
                f"`order` must be one of {stacking.ORDERS}. Received: order={order!r}."
            )
        self.factor = factor
        self.order = order
        self.identity = identity

    def plan(self, model: keras.Model) -> fusion.Plan:
        """Lays out the growth of a model; changes nothing."""
        return stacking.make_plan(
            model, self.factor, order=self.order, identity=self.identity
        )

    def __str__(self):
        """What the operator does, for the console."""
        return (
            f"depth {'by identities' if self.identity else self.order} x{self.factor}"
        )

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {
            "factor": self.factor,
            "order": self.order,
            "identity": self.identity,
        }


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

    def plan(self, model: keras.Model) -> fusion.Plan:
        """Lays out the growths of a model; changes nothing."""
        stages = []
        for operator in self.operators:
            if stages:
                model = stages[-1].fill()  # What the next operator looks at.
            stages.append(operator.plan(model))
        return chain.join(stages)

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
