"""Grown values made on the devices that will hold them, without the host.

Each device computes its own part of a variable from the parts of the old one that it
needs, which others send it; the noise is a function of the place. The result is the
host's, bit for bit. What is not known here (distinct parents, corrections of matrices,
fillers of one's own) is left to the host, and so are small variables.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from keras_fusion.layout.axes import Axis, CopiedAxis, has_off_diagonal, is_readout
from keras_fusion.layout.variables import VariableLayout
from keras_fusion.models import host, shards
from keras_fusion.models.part_exchange import Exchange
from keras_fusion.models.private import deferral
from keras_fusion.values import copies, noise
from keras_fusion.values.device_programs import Call, Rule
from keras_fusion.values.device_statistics import deviation, mean
from keras_fusion.values.fillers import (
    CopiesFiller,
    FusionFiller,
    StackingFiller,
    WidthFiller,
)
from keras_fusion.values.slots import Slot

Made = Callable[[], Any]  # makes a variable's value
_DTYPES = ("float32", "bfloat16", "float16")


def fill(filler: Any, index: int, layout: VariableLayout) -> bool:
    """Gives one variable of the bigger model its value.

    Args:
        filler: the growth's `Filler`.
        index: int. The index of the layout in the plan.
        layout: `VariableLayout`.

    Returns:
        Whether it could be done here; if not, nothing has been done.
    """
    return _assign(layout.target, planned(filler, index, layout))


def planned(filler: Any, index: int, layout: VariableLayout) -> Made | None:
    """How devices make one variable of the bigger model; `None` if only the host can."""
    rule = _rule(layout, layout.sources, layout.target, layout.axes)
    if rule is None or any(i == index for i, _ in getattr(filler, "corrections", ())):
        return None
    if type(filler) is FusionFiller:
        return _fusion(filler, index, layout, rule)
    if type(filler) is CopiesFiller:
        return _copies(filler, index, layout, rule)
    if type(filler) is StackingFiller:
        return _stacking(layout, rule)
    return None


def fill_slot(
    filler: Any,
    slot: Slot,
    layout: VariableLayout,
    sources: Sequence[keras.Variable],
    target: keras.Variable,
    is_copies: bool,
) -> bool:
    """Gives one slot of an optimizer its value after the growth.

    Args:
        filler: the growth's `Filler`.
        slot: the meaning of the slot.
        layout: the layout of the slot's variable.
        sources: the parents' slots.
        target: the slot to fill.
        is_copies: bool. Whether the parents are copies of one model.

    Returns:
        Whether it could be done here; if not, nothing has been done.
    """
    made = planned_slot(filler, slot, layout, sources, target, is_copies)
    return _assign(target, made)


def _assign(target: keras.Variable, made: Made | None) -> bool:
    """Gives a variable the value that devices make; whether they can."""
    if made is None:
        return False
    target.assign(made())
    return True


def planned_slot(
    filler: Any,
    slot: Slot,
    layout: VariableLayout,
    sources: Sequence[keras.Variable],
    target: keras.Variable,
    is_copies: bool,
) -> Made | None:
    """How devices make one slot, see `fill_slot`; `None` if only the host can."""
    if slot.of_weights or slot.start or not is_copies:
        return None
    axes = slot.axes_of(layout.axes)
    rule = _rule(layout, sources, target, axes)
    if rule is None:
        return None
    rule = dataclasses.replace(rule, is_slot=True)
    factor = layout.gradient_scale**slot.power
    if type(filler) is FusionFiller:
        return _fused_slot(rule, axes, sources[0], factor, slot.positive)
    if type(filler) is CopiesFiller:
        split = layout.before_tied_readout
        return _copied_slot(rule, axes, sources[0], factor, slot.power, split)
    if type(filler) is StackingFiller:
        if layout.initial is None or slot.positive:
            return Call(rule, sources[0], {})
        zeros = deferral.Initial(
            keras.initializers.Zeros(), rule.new.shape, rule.dtype, (0,)
        )
        return lambda: zeros.on(rule.new.sharding)
    return None


def _rule(
    layout: VariableLayout,
    sources: Sequence[keras.Variable],
    target: keras.Variable,
    axes: Sequence[Axis],
) -> Rule | None:
    """The rule of a variable without noise and new capacity; `None` if there is none."""
    if not shards.are_used() or shards.is_small(target) or layout.is_state:
        return None
    first = sources[0]
    own = {first.dtype, target.dtype}
    if any(s is not first for s in sources) or len(own) > 1 or not own <= {*_DTYPES}:
        return None
    if len(set(layout.scales)) > 1 or host.is_assumed(first):
        return None
    if target.dtype != "float32" and (layout.scales[0] != 1.0 or layout.offset):
        return None  # NumPy would round on the way.
    if any(axis.grown and not axis.is_disjoint for axis in axes):
        return None
    old = shards.split_of(first)
    new = old and shards.split_to_be(target, old)
    if old is None or new is None or new.mesh != old.mesh:
        return None
    if any(own and own != to for own, to in zip(old.names, new.names, strict=True)):
        return None  # `Exchange` sends along the axes of one split.
    places = list(map(_positions, axes))
    roles = tuple(
        "" if own is None else axis.role or "other"
        for own, axis in zip(places, axes, strict=True)
    )
    exchanges = tuple(Exchange.of(old, new, i, own) for i, own in enumerate(places))
    return Rule(old, new, target.dtype, roles, exchanges)


# What the fillers do, see there.


def _fusion(
    filler: FusionFiller, index: int, layout: VariableLayout, rule: Rule
) -> Call | None:
    axes, count, source = layout.axes, len(layout.sources), layout.sources[0]
    roles = filler.fresh_roles.get(index, ("out",))
    new = _new_capacity(filler, index, layout, roles, rule)
    if new is None:
        return None
    scale = layout.scales[0]
    shift = layout.offset if scale != 1.0 else 0.0
    share = 1.0 / count if is_readout(axes) else 1.0
    rule = dataclasses.replace(rule, count=count, fresh=new.axes)
    rule = dataclasses.replace(rule, draws=_draws(filler, index, axes, count))
    values = {
        "sources": [_positions(axis) for axis in axes],
        "owners": [_owners(axis) for axis in axes],
        "shift": shift,
        "scale": scale,
        "shift_back": shift,
        "share": share,
        "fresh": new.values,
    }
    if rule.draws:
        own = deviation(rule.old, rule.entries, source, shift, scale, shift)
        values["deviation"] = own.times(filler.noise_scale * share)
        values["key"] = noise.key_of([filler.seed, index])
    return Call(rule, source, values)


def _draws(filler: FusionFiller, index: int, axes: Sequence[Axis], count: int) -> str:
    """Which noise a fusion draws; none is the empty string."""
    if index in filler.noiseless or count < 2:
        return ""
    if filler.off_diagonal == "paired" and is_readout(axes):
        return "paired"
    is_drawn = filler.off_diagonal != "zeros" and has_off_diagonal(axes)
    return filler.off_diagonal if is_drawn else ""


def _copies(
    filler: CopiesFiller, index: int, layout: VariableLayout, rule: Rule
) -> Call | None:
    axes, source, offset = layout.axes, layout.sources[0], layout.offset
    new = _new_capacity(filler, index, layout, filler.fresh_roles.get(index, ()), rule)
    if new is None:
        return None
    rng, scale = np.random.default_rng([filler.seed, index]), filler.scale_of(layout)
    factors = copies.influence(
        axes, split_outputs=layout.before_tied_readout, spread=filler.spread, rng=rng
    )
    values = {
        "sources": [_positions(axis) for axis in axes],
        "factors": factors,
        "shift": offset,
        "scale": scale,
        "shift_back": offset,
        "fresh": new.values,
    }
    rule = dataclasses.replace(rule, fresh=new.axes)
    dimension = copies.first_input(axes)
    if index not in filler.noiseless and filler.noise_scale and dimension is not None:
        rule = dataclasses.replace(rule, draws="cancelling", columns=dimension)
        copied = copies.sources_of(axes)[dimension]
        own = deviation(rule.old, rule.entries, source, offset, scale, 0.0)
        values |= {
            "key": noise.key_of(rng),
            "deviation": own.times(filler.noise_scale, copies.mean_influence(factors)),
            "members": copies.members(copied),
            "equal": copies.shares(copied),
        }
    return Call(rule, source, values)


def _stacking(layout: VariableLayout, rule: Rule) -> Made | None:
    if layout.initial is None:
        return Call(rule, layout.sources[0], {})
    drawn = _drawn(layout, rule)
    return None if drawn is None else lambda: drawn


def _fused_slot(
    rule: Rule,
    axes: Sequence[Axis],
    source: keras.Variable,
    factor: float,
    is_positive: bool,
) -> Call:
    values: dict[str, Any] = {
        "sources": [_positions(axis) for axis in axes],
        "owners": [_owners(axis) for axis in axes],
        "scale": factor,
    }
    if is_positive and any(axis.unused().size for axis in axes):
        values["empty"] = mean(rule.old, rule.entries, source).times(factor)
    return Call(dataclasses.replace(rule, count=1), source, values)


def _copied_slot(
    rule: Rule,
    axes: Sequence[Axis],
    source: keras.Variable,
    factor: float,
    degree: float,
    split_outputs: bool,
) -> Call | None:
    if any(axis.unused().size for axis in axes):
        return None  # Each new entry gets the mean of its row or column.
    values = {
        "sources": [_positions(axis) for axis in axes],
        "factors": copies.gradient_shares(axes, source.shape, degree, split_outputs),
        "share": factor,
    }
    return Call(rule, source, values)


def _positions(axis: Axis) -> np.ndarray | None:
    """The place of each entry in the old variable; `None` where the axis did not grow."""
    if isinstance(axis, CopiedAxis):
        return axis.sources
    if axis.blocks is None:
        return None
    found = np.full(axis.size, -1)
    for block in axis.blocks:
        found[block] = np.arange(len(block))
    return found


def _owners(axis: Axis) -> np.ndarray | None:
    """The parent of each entry; -1 for new ones."""
    if axis.blocks is None:
        return None
    found = np.full(axis.size, -1)
    for parent, block in enumerate(axis.blocks):
        found[block] = parent
    return found


@dataclasses.dataclass(frozen=True)
class _New:
    """The initial values of new capacity, and the axes along which it gets them."""

    axes: tuple[int, ...] = ()
    values: Any = None


def _new_capacity(
    filler: WidthFiller,
    index: int,
    layout: VariableLayout,
    roles: Sequence[str],
    rule: Rule,
) -> _New | None:
    """What new capacity starts from; `None` if only the host knows."""
    if not layout.has_new:
        return _New()
    if index in filler.mean_outputs and "out" not in roles:
        return None
    axes = enumerate(layout.axes)
    found = tuple(i for i, x in axes if x.role in roles and x.unused().size)
    values = _drawn(layout, rule) if found and filler.size == 1.0 else None
    return None if found and values is None else _New(found, values)


def _drawn(layout: VariableLayout, rule: Rule) -> Any:
    """Initial values, drawn on the devices; `None` if only the host can draw them."""
    initial = layout.initial
    if isinstance(initial, deferral.Initial) and initial.is_known:
        return initial.on(rule.new.sharding)
    return None
