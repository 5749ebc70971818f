"""The layout of a growth in depth: which old block each new one is a copy of."""

import dataclasses
import functools
from typing import Any

import keras
import numpy as np

from keras_fusion.architecture import depth
from keras_fusion.architecture.parents import check_parent
from keras_fusion.errors import FusionError, StructureError
from keras_fusion.layout.axes import Axis
from keras_fusion.layout.variables import VariableLayout
from keras_fusion.models import private, tree
from keras_fusion.models import probe as probes
from keras_fusion.models.names import helpful
from keras_fusion.operators import arguments
from keras_fusion.operators.base import GrowthOperator, register_operator
from keras_fusion.operators.plan import Plan, adopted
from keras_fusion.values.fillers import StackingFiller

ORDERS = ("stacked", "interleaved")
NEW_BLOCKS = ("copies", "random")


def lay_out(
    model: keras.Model,
    factor: int,
    *,
    seed: int,
    order: str = "stacked",
    identity: bool = False,
    new_blocks: str = "copies",
) -> Plan:
    """Lays out a growth in depth, changing nothing.

    Args:
        model: a built model.
        factor: int. How many times as deep it becomes.
        seed: int. Seed of the new blocks' own seeds.
        order: one of `ORDERS`.
        identity: bool. Whether new blocks start as identities.
        new_blocks: one of `NEW_BLOCKS`.

    Raises:
        FusionError: for a model in which no blocks can be found, or whose new blocks
            cannot be identities.
    """
    check_parent(0, model)
    with private.without_values() as initializers:
        deep, rows = depth.deeper(model, factor, order)
    layouts, new, seen = [], set(), set()
    for address, old, grown, is_new in rows:
        for source, target in _variables(address, old, grown):
            if id(target) in seen:
                continue
            seen.add(id(target))
            new |= {len(layouts)} if is_new else set()
            name = f"{address}.{target.name}"
            axes = tuple(Axis(size) for size in target.shape)
            layouts.append(VariableLayout(name, (source,), target, axes, (1.0,)))
    fresh = {id(layouts[i].target) for i in new}
    layouts = adopted(
        layouts,
        _kept(rows, fresh),
        initializers,
        seed,
        trained_like=[(old, grown) for _, old, grown, _ in rows],
        fresh=frozenset(i for i in new if _is_random(layouts[i], new_blocks)),
    )
    filler = StackingFiller(seed, frozenset(new))
    plan = Plan((model,), deep, layouts, filler, exact=identity, copies=True)
    return _with_identities(plan) if identity else plan


def _is_random(layout, new_blocks):
    """Whether a new block's variable starts from initial values: one that trains."""
    return new_blocks == "random" and layout.sources[0].trainable


def _kept(rows, fresh):
    """The layers with their counterparts that are not new."""
    return [
        (old, new)
        for _, old, new, is_new in rows
        if not is_new and not fresh & {id(v) for v in tree.own_variables(new)}
    ]


def _variables(address, old, new):
    """The corresponding own variables of a block and its origin."""
    own = {tree.stable_name(v): v for v in tree.own_variables(old)}
    for target in tree.own_variables(new):
        source = own.get(tree.stable_name(target))
        if source is None or tuple(source.shape) != tuple(target.shape):
            raise StructureError(
                f"The new block's {target.name!r} at {address!r} has no counterpart of "
                f"shape {tuple(target.shape)} in the block that it would copy, which has "
                f"{ {n: tuple(v.shape) for n, v in own.items()} }. Blocks of different "
                "kinds cannot be stacked with this factor and order."
            )
        yield source, target


def _with_identities(plan):
    """The plan, with zeros for what of the new blocks writes to the stream."""
    new = {
        id(plan.layouts[i].target): i
        for i in plan.filler.new
        if plan.layouts[i].target.trainable
    }
    candidates = [plan.layouts[i].target for i in sorted(new.values())]
    with plan.assumed():
        zeroed = depth.quiet(plan.parents[0], plan.fused, candidates)
    places = {new[id(variable)] for variable in zeroed}
    layouts = (
        dataclasses.replace(layout, initial=_zeros_of(layout))
        if i in places
        else layout
        for i, layout in enumerate(plan.layouts)
    )
    return dataclasses.replace(plan, layouts=tuple(layouts))


def _zeros_of(layout):
    return functools.partial(np.zeros, tuple(layout.target.shape), "float32")


@register_operator(
    "depth",
    exact="with identity=True",
    source="Du et al., Stacking Your Transformers (G_stack), NeurIPS 2024",
)
class DepthStacking(GrowthOperator):
    """Stacks copies of a model's layers on top of each other.

    G_stack: the layers 1 to L become 1 to L, 1 to L. The function changes (the copies
    read their originals' outputs), and recovers in training; with
    `identity=True` new blocks add nothing to the residual stream at first, and the
    function stays.

    Layers are found as repeated residual blocks in functional and `Sequential` models,
    nested ones as a whole; in other models, keras-hub's among them, by the config keys
    that count them (`register(..., depth=("num_layers",))`).

    With `new_blocks="random"`, new blocks start from their initializers instead of
    copies, except for what is not trained. The function changes; training recovers it.

    Each new block's optimizer state is a copy of its origin's, and the step count
    continues, so that nothing starts with second moments of zero; that choice is ours.
    The first moments of random blocks are zero.

    Args:
        factor: int of at least 2. How many times as deep the model becomes. The paper
            recommends 4, early in training. Defaults to 2.
        order: `"stacked"` puts the whole stack on top of itself (1, 2, 1, 2);
            `"interleaved"` puts each copy behind its origin (1, 1, 2, 2). Defaults to
            `"stacked"`.
        identity: bool. Whether the weights through which new blocks write to the stream
            start at zero. Defaults to `False`.
        new_blocks: `"copies"`, or `"random"` for initial values. Defaults to `"copies"`.
        probe: batch in the structure of the model's inputs, on which the growth is
            checked. By default a small random one is generated. Not part of the config.

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
    Pro, ACL 2024. Random blocks: Bu, Deep Progressive Training, ICML 2026.
    """

    @helpful
    def __init__(
        self,
        factor: int = 2,
        order: str = "stacked",
        identity: bool = False,
        probe: Any = None,
        new_blocks: str = "copies",
    ):
        arguments.check_whole_factor(factor, "DepthStacking", "")
        if order not in ORDERS:
            raise FusionError(
                f"`order` must be one of {ORDERS}. Received: order={order!r}."
            )
        if not isinstance(identity, bool):
            raise FusionError(
                f"`identity` must be True or False. Received: identity={identity!r}."
            )
        if new_blocks not in NEW_BLOCKS:
            raise FusionError(
                f"`new_blocks` must be one of {NEW_BLOCKS}. Received: "
                f"new_blocks={new_blocks!r}."
            )
        self.new_blocks = new_blocks
        self.factor = int(factor)
        self.order = order
        self.identity = identity
        self.probe = probe

    def plan(self, model: keras.Model, seed: int | None = None) -> Plan:
        """Lays out the growth of a model; changes nothing."""
        with probes.given(self.probe):
            return lay_out(
                model,
                self.factor,
                seed=arguments.chosen_seed(None, seed),
                order=self.order,
                identity=self.identity,
                new_blocks=self.new_blocks,
            )

    def __str__(self):
        """A short name of the operator, for the console."""
        how = "by identities" if self.identity else self.order
        random = ", random blocks" * (self.new_blocks == "random")
        return f"depth {how} x{self.factor}{random}"

    def get_config(self) -> dict:
        """The constructor's arguments; `new_blocks` only if it is not the default."""
        # A record of an earlier version lacks it, and is still this script's.
        random = {"new_blocks": "random"} if self.new_blocks == "random" else {}
        return {
            "factor": self.factor,
            "order": self.order,
            "identity": self.identity,
            **random,
        }
