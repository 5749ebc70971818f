"""`Plan`: a growth that was laid out, from its parents to the bigger model's variables."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import keras
import numpy as np

from keras_fusion.architecture import block_wise, build
from keras_fusion.architecture.by_parent import ByParent
from keras_fusion.architecture.initializers import fitting
from keras_fusion.architecture.parents import Match, Parents, resolved
from keras_fusion.architecture.widths import Widths
from keras_fusion.layout import variables
from keras_fusion.layout.variables import VariableLayout
from keras_fusion.models import adapted, host, private, progress, tree
from keras_fusion.models.names import helpful
from keras_fusion.operators import earlier_weights
from keras_fusion.values import on_devices
from keras_fusion.values.fillers import Filler, FusionFiller, WidthFiller


@dataclasses.dataclass(frozen=True)
class Plan:
    """A growth that was laid out: every check has passed, no value is written yet.

    Args:
        parents: tuple of the K parents; for a self-fusion K times the same model.
        fused: the built bigger model, whose weights `fill` writes.
        layouts: tuple of one `VariableLayout` per variable of `fused`.
        filler: the `Filler` that gives the variables their values.
        exact: bool. Whether the grown function must equal the parents' mean but for
            rounding; if it does not, the growth is refused.
        copies: bool. Whether the parents are copies of one model.
        extends: bool. Whether outputs get more entries behind the old ones, which alone
            must stay; behind a softmax, their shares of each other.
        by_parent: tuple of the variables of `fused` beside `layouts` that hold values of
            each parent's.

    Example:

    >>> import keras, keras_fusion
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8)])
    >>> model.add(keras.layers.Dense(1))
    >>> plan = keras_fusion.HyperCloning(factor=2).plan(model, seed=0)
    >>> plan.exact, len(plan.layouts)
    (True, 4)
    >>> plan.fill().layers[0].units
    16
    """

    parents: tuple[keras.Model, ...]
    fused: keras.Model
    layouts: tuple[VariableLayout, ...]
    filler: Filler
    exact: bool
    copies: bool
    extends: bool = False
    by_parent: tuple[ByParent, ...] = ()

    @property
    def stages(self) -> "Plans":
        """The growths that follow each other: this one alone."""
        return Plans([self])

    def values(self, index: int, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """The grown value of one variable, the same whenever it is asked for.

        Args:
            index: int. The place of the variable in `layouts`.
            arrays: K arrays, the parents' values.

        Returns:
            Array of the grown shape, in the first parent's dtype.
        """
        arrays = [np.asarray(array) for array in arrays]
        # Of weights that are not finite the verification tells.
        with np.errstate(invalid="ignore"):
            value = self.filler.value(index, self.layouts[index], arrays)
        return value.astype(arrays[0].dtype, copy=False)

    def fill(self) -> keras.Model:
        """Writes the weights of the bigger model, variable by variable, and returns it."""
        for index, layout in self._steps():
            if not on_devices.fill(self.filler, index, layout):
                host.write(layout.target, self._read_value(index, layout))
        for own in self.by_parent:
            host.write(own.target, own.read())
        for _, layer in tree.walk(self.fused):
            # A Normalization computes with values made of its weights; other layers
            # would make their state anew of data that they do not have.
            if hasattr(layer, "finalize_state") and tree.own_variables(layer):
                layer.finalize_state()
        return self.fused

    def assumed(self) -> contextlib.AbstractContextManager:
        """A scope in which the bigger model reads as if it had been filled."""
        return host.assumed(self._filled())

    def _filled(self):
        """Yields each variable of the bigger model with its value."""
        for index, layout in self._steps():
            yield layout.target, self._read_value(index, layout)
        yield from ((own.target, own.read()) for own in self.by_parent)

    def _steps(self):
        what = f"filling {self.fused.name!r}"
        return progress.steps(self.layouts, what, lambda x: x.address)

    def _read_value(self, index: int, layout: VariableLayout) -> np.ndarray:
        # Once for copies of one model, whose arrays so stay one array.
        read = {id(v): host.read(v) for v in layout.sources}
        return self.values(index, [read[id(v)] for v in layout.sources])

    def weights_adapter(self) -> Callable[[list], list]:
        """Makes the function that grows any weights of the first parent.

        Returns:
            Function from `model.get_weights()` of the first parent, at any time, to
            `get_weights()` of the model that would have been grown from them. It holds
            on to none of the first parent's variables, so that their memory is freed.
        """
        return earlier_weights.adapter(self)

    def __repr__(self) -> str:
        """The plan in one line."""
        old, new = self.parents[0], self.fused
        return (
            f"<Plan {old.name!r}, {old.count_params():,} parameters, to {new.name!r}, "
            f"{new.count_params():,}; {type(self.filler).__name__}, "
            f"{'exact' if self.exact else 'not exact'}>"
        )


class Plans(list):
    """Plans of growths that follow each other, each from the model of the one before.

    Example:

    >>> import keras, keras_fusion
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8)])
    >>> model.add(keras.layers.Dense(1))
    >>> twice = keras_fusion.Chain([keras_fusion.HyperCloning()] * 2)
    >>> plans = twice.plan(model, seed=0)
    >>> len(plans), plans.exact, plans.fill().layers[0].units
    (2, True, 32)
    """

    @property
    def stages(self) -> "Plans":
        """The growths one by one."""
        return self

    @property
    def parents(self) -> tuple[keras.Model, ...]:
        """The parents of the first growth."""
        return self[0].parents

    @property
    def fused(self) -> keras.Model:
        """The model of the last growth."""
        return self[-1].fused

    @property
    def exact(self) -> bool:
        """Whether all growths must keep the function."""
        return all(plan.exact for plan in self)

    @property
    def copies(self) -> bool:
        """Whether the parents of the first growth are copies of one model."""
        return self[0].copies

    @property
    def layouts(self) -> tuple[VariableLayout, ...]:
        """The layouts of the last model's variables in those of the first parents."""
        return variables.composed([plan.layouts for plan in self])

    def fill(self) -> keras.Model:
        """Writes the weights of all bigger models in turn, and returns the last one."""
        for plan in self:
            plan.fill()
        return self.fused

    def __repr__(self) -> str:
        """The plans, one on each line."""
        return "\n".join(map(repr, self))

    def weights_adapter(self) -> Callable[[list], list]:
        """Makes the function that grows weights of the first parent by all growths."""
        adapters = [plan.weights_adapter() for plan in self]

        def adapt(weights):
            for adapter in adapters:
                weights = adapter(weights)
            return weights

        return adapt


@helpful
def lay_out(
    model: keras.Model | Sequence[keras.Model],
    *,
    factor: float | None = None,
    into: keras.Model | Callable[[], keras.Model] | None = None,
    seed: int = 0,
) -> Plan:
    """Builds the bigger model of a growth in width, and lays the parents out in it.

    The start of an operator of your own: replace the plan's `filler` by one that gives
    the weights other values (`dataclasses.replace(plan, filler=..., exact=...)`). As it
    is the plan is a fusion with zeros beside the parents' blocks. No value is written.

    Args:
        model: built model, with `factor`; or a list of K models of one architecture.
        factor: number above 1. How many times as wide the one model becomes: as many
            copies as fit, side by side, and behind them new capacity.
        into: model, or function that builds one, see `fuse`.
        seed: int. Seed of the new capacity's initial values.

    Returns:
        A `Plan`.

    Raises:
        FusionError: for arguments or models that cannot be grown.

    Example:

    >>> import keras, keras_fusion
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8)])
    >>> model.add(keras.layers.Dense(1))
    >>> plan = keras_fusion.lay_out(model, factor=2)
    >>> plan.fused.layers[0].units, len(plan.parents)
    (16, 2)
    """
    models, capacity = resolved(model, factor)
    parents = Parents.of(models)
    draft = build_and_lay_out(parents, into, capacity=capacity, seed=seed)
    whole = not any(layout.has_new for layout in draft.layouts)
    return draft.plan(FusionFiller(), exact=parents.copies and whole)


@dataclasses.dataclass(frozen=True)
class Draft:
    """A bigger model with the layouts of its variables, which lacks a filler.

    Args:
        parents: the `Parents`.
        matches: their layers with those of the bigger model.
        layouts: one `VariableLayout` per variable.
        stock: the reasons why norms that should be block-wise are not, by address.
        by_parent: see `Plan`.
    """

    parents: Parents
    matches: tuple[Match, ...]
    layouts: tuple[VariableLayout, ...]
    stock: Mapping[str, str]
    by_parent: tuple[ByParent, ...]

    @classmethod
    def of(
        cls,
        parents: Parents,
        fused: keras.Model,
        widths: Widths,
        *,
        initializers: Mapping[int, Any] = MappingProxyType({}),
        seed: int = 0,
        must_grow: bool = True,
    ) -> "Draft":
        """Lays the parents out in a bigger model, which adopts what they share.

        Args:
            parents: the `Parents`.
            fused: the bigger model.
            widths: the `Widths` of its layers.
            initializers: what `without_values` gave for it.
            seed: int. Seed of the new capacity's initial values.
            must_grow: bool. Whether equal widths are refused.
        """
        matches = parents.matched_with(fused)
        for match in matches:
            adapted.check_equal(match.address, match.layers)
        stock, by_parent = block_wise.exchange_norms(matches, widths)
        layouts = variables.lay_out(matches, widths, must_grow=must_grow)
        pairs = [(match.layers[0], match.grown) for match in matches]
        layouts = adopted(layouts, pairs, initializers, seed)
        return cls(parents, matches, layouts, stock, by_parent)

    def plan(self, filler: Filler, *, exact: bool) -> Plan:
        """The plan with a filler."""
        models, fused = self.parents.models, self.matches[0].grown
        if isinstance(filler, WidthFiller):
            filler = filler.obeying(self.layouts)
        copies = self.parents.copies
        return Plan(
            models,
            fused,
            self.layouts,
            filler,
            exact,
            copies,
            by_parent=self.by_parent,
        )


def build_and_lay_out(
    parents: Parents,
    into: keras.Model | Callable[[], keras.Model] | None = None,
    *,
    seed: int = 0,
    **options,
) -> Draft:
    """Builds the bigger model, without values, and lays the parents out in it.

    Args:
        parents: the `Parents`.
        into: see `fuse`.
        seed: int. Seed of the new capacity's initial values.
        **options: of `architecture.build.build`.
    """
    with private.without_values() as initializers:
        fused, widths = build.build(parents, into, **options)
    return Draft.of(parents, fused, widths, initializers=initializers, seed=seed)


def adopted(
    layouts: Sequence[VariableLayout],
    pairs: Iterable[tuple[keras.Layer, keras.Layer]],
    initializers: Mapping[int, Any],
    seed: int,
    trained_like: Iterable[tuple[keras.Layer, keras.Layer]] | None = None,
    fresh: frozenset[int] = frozenset(),
) -> tuple[VariableLayout, ...]:
    """Gives the bigger model what it has in common with the first parent.

    Args:
        layouts: the layouts of its variables.
        pairs: `(layer of the first parent, its counterpart)`, whose names are kept.
        initializers: what `without_values` gave for the bigger model.
        seed: int. Seed of the new capacity's initial values.
        trained_like: the same for layers that are frozen as the first parent's, and keep
            what it keeps beside its variables; by default the same.
        fresh: indices of layouts that get initial values although nothing in them is new.

    Returns:
        The layouts, with initial values for what is new.
    """
    pairs = list(pairs)
    copied = pairs if trained_like is None else list(trained_like)
    for old, new in copied:
        if old.trainable != new.trainable:
            new.trainable = old.trainable
        adapted.hand_on(old, new)
    for layout in layouts:
        if layout.sources[0].trainable != layout.target.trainable:
            layout.target.trainable = layout.sources[0].trainable
    private.keep_names(pairs)
    for layout in layouts:
        host.check_sharding(layout.sources[0], layout.target, layout.address)
    private.adopt_shardings([(x.sources[0], x.target) for x in layouts])
    laid_out = {id(layout.target) for layout in layouts}
    fused = pairs[0][1]
    private.give_values([v for v in fused.variables if id(v) not in laid_out])
    initializers = fitting(initializers, copied)
    return tuple(
        _with_initial(layout, initializers, [seed, index])
        if layout.has_new or index in fresh
        else layout
        for index, layout in enumerate(layouts)
    )


def _with_initial(layout, initializers, seed):
    target, initializer = layout.target, initializers.get(id(layout.target))
    if initializer is None:  # A model that was built elsewhere has values.
        value = np.array(host.read(target))
        return dataclasses.replace(layout, initial=lambda: value)
    initial = private.Initial(
        initializer, tuple(target.shape), target.dtype, tuple(seed)
    )
    return dataclasses.replace(layout, initial=initial)
