"""How an optimizer's slots go through a fusion, variable by variable.

After a self-fusion by K every hidden block receives the gradient g/K, off-diagonal
blocks too. "As if the network had always been wide" then means first moments / K and
second moments / K**2, repeated over all blocks; a readout, whose gradient is g, keeps
its own (`VariableLayout.gradient_scale` knows which is which).
"""

import dataclasses
from collections.abc import Mapping, Sequence

import keras
import numpy as np

from keras_fusion.errors import FusionError
from keras_fusion.layout.variables import VariableLayout
from keras_fusion.models import host
from keras_fusion.values.fillers import Filler
from keras_fusion.values.slots import Slot, rules_of


@dataclasses.dataclass(frozen=True)
class State:
    """What an optimizer remembers.

    Args:
        optimizer: the optimizer, none that wraps others; or `None` for a parent
            without one.
        step: int. Steps it has done.
        variables: list of the variables it trains.
        lists: dict from name to a slot's list, aligned with `variables`.
    """

    optimizer: keras.optimizers.Optimizer | None = None
    step: int = 0
    variables: list = dataclasses.field(default_factory=list)
    lists: dict[str, list] = dataclasses.field(default_factory=dict)

    def positions(self) -> dict[int, int]:
        """Index of each trained variable, by its id."""
        return {id(v): i for i, v in enumerate(self.variables)}


def transfer(
    parents: list[State],
    fresh: State,
    layouts: Sequence[VariableLayout],
    filler: Filler,
    *,
    copies: bool,
    reset: bool,
) -> None:
    """Gives the fused model's optimizer the fused state of its parents'.

    Args:
        parents: K `State`.
        fresh: `State` of the optimizer to fill.
        layouts: the fusion's layouts, with targets that hold their fused values.
        filler: its `Filler`.
        copies: bool. Whether the parents are copies of one model.
        reset: bool. Whether to leave the memory of gradients as it starts. Averages of
            the weights, gradients that wait to be applied, and slots that determine the
            weights go on all the same.

    Raises:
        FusionError: naming a variable for which a parent has no state.
    """
    rules = rules_of(fresh.optimizer, reset)
    index, own = [parent.positions() for parent in parents], fresh.positions()
    # What depends on other slots comes last; the same order in all processes.
    names = sorted(
        set(fresh.lists) & set(rules), key=lambda n: (bool(rules[n].dual), n)
    )
    for item in layouts:
        where = [p.get(id(s)) for p, s in zip(index, item.sources, strict=True)]
        if where[0] is None:
            continue  # not trained
        dual = any(rules[name].dual for name in names)
        done = {}
        for name in names:
            target, rule = fresh.lists[name][own[id(item.target)]], rules[name]
            if target is None or tuple(target.shape) == () != tuple(item.target.shape):
                continue  # a placeholder
            if reset and not (rule.kept or rule.dual):
                if dual:
                    done[name] = _numpy(target)
                continue
            read = _reader()
            value = fused_slot(
                rule,
                [
                    _slot_of(parents, k, name, where[k], rule, item, read)
                    for k in range(len(parents))
                ],
                item,
                filler,
                optimizer=fresh.optimizer,
                weights=[read(s) for s in item.sources] if rule.of_weights else None,
                value=_numpy(item.target) if rule.of_weights else None,
                done=done,
                copies=copies,
            )
            host.write(target, value)
            if dual:
                done[name] = value


def _numpy(variable):
    """The value, in a dtype that differences are exact enough in."""
    array = host.read(variable)
    return array.astype(np.promote_types(array.dtype, "float32"), copy=False)


def _reader():
    """A function that reads each variable once, so that what is one stays one."""
    known = {}

    def read(variable):
        if id(variable) not in known:
            known[id(variable)] = _numpy(variable)
        return known[id(variable)]

    return read


def _slot_of(parents, k, name, position, rule, item, read):
    """A parent's slot, with the bias correction of the first parent's step count."""
    parent, weights = parents[k], item.sources[k]
    if position is None or name not in parent.lists:
        if rule.dual:
            return read(weights)  # not looked at
        if rule.kept:
            # It has none: its weights are their own average, no gradient waits.
            own = read(weights)
            return own if rule.degree is None else np.zeros_like(own)
        raise FusionError(
            f"{item.address!r} is trained in the live model but not in parent {k} (it "
            "is frozen there), which so has no state for it. Pass "
            "optimizer_state='reset'."
        )
    array = read(parent.lists[name][position])
    if rule.decay is None or parent.step == parents[0].step:
        return array
    decay = getattr(parent.optimizer, rule.decay)
    return array * ((1 - decay ** parents[0].step) / (1 - decay**parent.step))


def fused_slot(
    slot: Slot,
    arrays: list[np.ndarray],
    item: VariableLayout,
    filler: Filler,
    *,
    optimizer: keras.optimizers.Optimizer,
    weights: list[np.ndarray],
    value: np.ndarray,
    done: Mapping[str, np.ndarray],
    copies: bool,
) -> np.ndarray:
    """The value of one slot of one variable after the fusion.

    Args:
        slot: what the slot holds.
        arrays: K arrays, the parents' slots.
        item: the variable's layout.
        filler: the growth's `Filler`.
        optimizer: the grown model's optimizer, for its options.
        weights: K arrays, the parents' values of the variable; `None` if the slot does
            not depend on them.
        value: the variable's fused value, or `None` likewise.
        done: the variable's slots that were fused before this one, by name.
        copies: bool. Whether the parents are copies of one model.

    Returns:
        Array of the fused slot's shape.
    """
    if slot.dual is not None:
        return slot.dual(optimizer, done, value)
    start = getattr(optimizer, slot.start) if slot.start else None
    if slot.of_weights:
        # An average of the weights keeps its distance from them, block by block.
        arrays = [a - w for a, w in zip(arrays, weights, strict=True)]
        start = value
    elif start is not None:
        arrays = [a - start for a in arrays]
    if slot.degree is None:
        fused = filler.distance(item, arrays)
    else:
        fused = filler.moment(slot, item, arrays, copies)
    return fused if start is None else start + fused
