"""Carries an optimizer's slots through a growth, variable by variable.

After a self-fusion by K every hidden block receives the gradient g/K, off-diagonal
blocks too. "As if the network had always been wide" then means first moments / K and
second moments / K**2, repeated over all blocks; a readout, whose gradient is g, keeps
its own (see `VariableLayout.gradient_scale`).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import keras
import numpy as np

from keras_fusion.errors import FusionError
from keras_fusion.layout.variables import VariableLayout
from keras_fusion.models import host, progress
from keras_fusion.values import on_devices
from keras_fusion.values.fillers import Filler
from keras_fusion.values.slots import Slot, rules_of


@dataclasses.dataclass(frozen=True)
class State:
    """The state of an optimizer.

    Args:
        optimizer: the optimizer, which wraps no others; `None` for a parent without one.
        step: int. Number of steps done.
        variables: list of the variables that it trains.
        lists: dict from the name of a slot to its list, aligned with `variables`.
    """

    optimizer: keras.optimizers.Optimizer | None = None
    step: int = 0
    variables: list[keras.Variable] = dataclasses.field(default_factory=list)
    lists: dict[str, list] = dataclasses.field(default_factory=dict)

    def positions(self) -> dict[int, int]:
        """Index of each trained variable, by its id."""
        return {id(v): i for i, v in enumerate(self.variables)}


def transfer(
    parents: Sequence[State],
    fresh: State,
    optimizer: keras.optimizers.Optimizer,
    layouts: Sequence[VariableLayout],
    filler: Filler,
    *,
    copies: bool,
    reset: bool,
) -> None:
    """Gives the optimizer of a grown model the state of its parents' optimizers.

    Args:
        parents: K `State`.
        fresh: `State` of the optimizer to fill.
        optimizer: that optimizer.
        layouts: the layouts of the growth, whose targets hold their grown values.
        filler: the growth's `Filler`.
        copies: bool. Whether the parents are copies of one model.
        reset: bool. Whether the memory of gradients starts anew. Averages of the weights,
            gradients that have not been applied yet, and slots that determine the weights
            are carried all the same.

    Raises:
        FusionError: naming a variable for which a parent has no state.
    """
    rules = rules_of(optimizer, reset)
    index, own = [parent.positions() for parent in parents], fresh.positions()
    # Slots that depend on others come last; the order is the same in all processes.
    names = sorted(
        set(fresh.lists) & set(rules), key=lambda n: (bool(rules[n].dual), n)
    )
    what = f"growing the state of {type(optimizer).__name__}"
    for _, item in progress.steps(layouts, what, lambda item: item.address):
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
            if not dual and _on_devices(
                parents, name, where, rule, item, target, filler, copies
            ):
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
                optimizer=optimizer,
                weights=[read(s) for s in item.sources] if rule.of_weights else (),
                value=_numpy(item.target) if rule.of_weights else None,
                done=done,
                copies=copies,
            )
            host.write(target, value)
            if dual:
                done[name] = value


def _on_devices(
    parents: Sequence[State],
    name: str,
    where: Sequence[int | None],
    rule: Slot,
    item: VariableLayout,
    target: keras.Variable,
    filler: Filler,
    copies: bool,
) -> bool:
    """Fills a slot where it lies, if that goes."""
    sources = []
    for parent, place in zip(parents, where, strict=True):
        if place is None or name not in parent.lists:
            return False
        sources.append(parent.lists[name][place])
    return on_devices.fill_slot(filler, rule, item, sources, target, copies)


def _numpy(variable: keras.Variable) -> np.ndarray:
    """A variable's value, in a dtype of sufficient precision for differences."""
    array = host.read(variable)
    return array.astype(np.promote_types(array.dtype, "float32"), copy=False)


def _reader() -> Callable[[keras.Variable], np.ndarray]:
    """Makes a function that reads each variable once: one variable gives one array."""
    known = {}

    def read(variable: keras.Variable) -> np.ndarray:
        if id(variable) not in known:
            known[id(variable)] = _numpy(variable)
        return known[id(variable)]

    return read


def _slot_of(
    parents: Sequence[State],
    k: int,
    name: str,
    position: int | None,
    rule: Slot,
    item: VariableLayout,
    read: Callable[[keras.Variable], np.ndarray],
) -> np.ndarray:
    """A parent's slot, rescaled to the bias correction at the first parent's step."""
    parent, weights = parents[k], item.sources[k]
    if position is None or name not in parent.lists:
        if rule.dual:
            return read(weights)  # unused
        if rule.kept:
            # Without the slot the weights are their own average, and no gradient waits.
            own = read(weights)
            return own if rule.degree is None else np.zeros_like(own)
        raise FusionError(
            f"{item.address!r} is trained in the live model but frozen in parent {k}, "
            "whose optimizer has no state for it. Pass optimizer_state='reset'."
        )
    array = read(parent.lists[name][position])
    if rule.decay is None or parent.step == parents[0].step:
        return array
    decay = getattr(parent.optimizer, rule.decay)
    return array * ((1 - decay ** parents[0].step) / (1 - decay**parent.step))


def fused_slot(
    slot: Slot,
    arrays: Sequence[np.ndarray],
    item: VariableLayout,
    filler: Filler,
    *,
    optimizer: keras.optimizers.Optimizer,
    weights: Sequence[np.ndarray],
    value: np.ndarray | None,
    done: Mapping[str, np.ndarray],
    copies: bool,
) -> np.ndarray:
    """The value of one slot of one variable after the growth.

    Args:
        slot: the meaning of the slot.
        arrays: K arrays, the parents' slots.
        item: the variable's layout.
        filler: the growth's `Filler`.
        optimizer: the grown model's optimizer, for its options.
        weights: K arrays, the parents' values of the variable; none if the slot does
            not depend on them.
        value: the variable's grown value; `None` if the slot does not depend on it.
        done: the variable's slots that have been carried before this one, by name.
        copies: bool. Whether the parents are copies of one model.

    Returns:
        Array of the grown slot's shape.
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
