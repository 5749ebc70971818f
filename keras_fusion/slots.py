"""Optimizer slots as data: what each holds, and how it goes through a fusion.

After a self-fusion by K every hidden block receives the gradient g/K, off-diagonal
blocks too. "As if the network had always been wide" then means first moments / K and
second moments / K**2, repeated over all blocks; a readout, whose gradient is g, keeps
its own (`VariableLayout.gradient_scale` knows which is which).
"""

import dataclasses
from collections.abc import Callable, Mapping

import keras
import numpy as np

from keras_fusion import placement
from keras_fusion.copying import copy_array, copy_slot
from keras_fusion.errors import FusionError
from keras_fusion.layout import VariableLayout
from keras_fusion.operator import fuse_arrays, fuse_slot


@dataclasses.dataclass(frozen=True)
class Slot:
    """What one slot of an optimizer holds.

    Args:
        degree: float. By which power of the gradient the slot scales: 1 for a first
            moment, 2 for a second, 0 for a moment of the updates of an optimizer that
            divides the gradient's scale away. `None` for an average of the weights,
            which is fused as they are.
        positive: bool. Whether the entries measure the gradient's size, so that zeros
            would mean huge steps.
        decay: string. Name of the optimizer's attribute with the decay `b` of a moment
            that starts at zero and is corrected for that: divided by `1 - b**t` after
            t steps.
        drop_axis: int. The axis over which the slot is an average (Adafactor's
            factors), or `None`.
        start: string. Name of the optimizer's attribute with the slot's initial value,
            which does not scale.
        near_weights: bool. Whether the slot holds weights that run ahead of the
            model's: what scales is their distance.
        kept: bool. Whether a reset keeps the slot, since it is no memory of gradients
            that were applied before.
        dual: function `(optimizer, slots, value) -> array` for a slot that determines
            the weights and so must agree with them (Ftrl's `linears`).

    Example: the two moments of an optimizer such as Adam.

    >>> import keras_fusion
    >>> moments = {
    ...     "momentums": keras_fusion.Slot(1, decay="beta_1"),
    ...     "velocities": keras_fusion.Slot(2, positive=True, decay="beta_2"),
    ... }
    """

    degree: float | None = 1.0
    positive: bool = False
    decay: str | None = None
    drop_axis: int | None = None
    start: str | None = None
    near_weights: bool = False
    kept: bool = False
    dual: Callable | None = None

    @property
    def of_weights(self) -> bool:
        """Whether the slot's value depends on the weights."""
        return self.degree is None or self.near_weights or self.dual is not None


_COMMON = {
    "model_variables_moving_average": Slot(None, kept=True),
    "accumulated_gradients": Slot(1.0, kept=True),
}
_SLOTS: dict[str, dict[str, Slot]] = {}
# They divide each update by its own norm, and a correction of its scale with it.
_NORMALIZED = {"Lamb"}


def register_optimizer(cls: type | str, slots: Mapping[str, Slot]) -> None:
    """Tells keras_fusion what the slots of an optimizer class hold.

    Args:
        cls: the optimizer class, or its name. Holds for subclasses too.
        slots: dict from the name of the attribute that holds the slot's list (leading
            underscores left out) to a `Slot`.

    Returns:
        None.

    Example:

    >>> import keras, keras_fusion
    >>> class MyMomentum(keras.optimizers.SGD):
    ...     pass
    >>> keras_fusion.register_optimizer(
    ...     MyMomentum, {"momentums": keras_fusion.Slot(1)}
    ... )
    """
    _SLOTS[getattr(cls, "__name__", cls)] = dict(slots)


def known_optimizers() -> dict[str, dict[str, Slot]]:
    """The slots of all registered optimizers, by class name."""
    return dict(_SLOTS)


def _find(optimizer):
    names = (cls.__name__ for cls in type(optimizer).__mro__)
    return next((name for name in names if name in _SLOTS), None)


def describe(optimizer: keras.optimizers.Optimizer) -> dict[str, Slot]:
    """The slots of an optimizer, by attribute name.

    Raises:
        FusionError: if its class is not registered.
    """
    name = _find(optimizer)
    if name is not None:
        return _SLOTS[name] | _COMMON
    raise FusionError(
        f"The state of optimizer {type(optimizer).__name__} cannot be carried through a "
        "growth, since it is not known what its slots hold. Describe them with "
        "keras_fusion.register_optimizer, or pass optimizer_state='reset'. Known: "
        f"{sorted(_SLOTS)}."
    )


def correction(optimizer: keras.optimizers.Optimizer) -> tuple[float, float] | None:
    """The decays `(beta_1, beta_2)` that an optimizer corrects its moments for.

    A moment without correction counts as a decay of 0. `None` where a reset under a
    step count that goes on needs no correction of the learning rate.
    """
    name = _find(optimizer)
    if name is None or name in _NORMALIZED:
        return None
    betas = {1.0: 0.0, 2.0: 0.0}
    for slot in _SLOTS[name].values():
        if slot.decay is not None:
            betas[slot.degree] = getattr(optimizer, slot.decay)
    return (betas[1.0], betas[2.0]) if any(betas.values()) else None


def check_rate_may_change(optimizer: keras.optimizers.Optimizer) -> None:
    """Refuses to change a learning rate that the weights depend on.

    Raises:
        FusionError: naming the optimizer.
    """
    name = _find(optimizer)
    if name and any(slot.dual for slot in _SLOTS[name].values()):
        raise FusionError(
            f"{name} computes the weights anew in each step, divided by the learning "
            "rate: another rate would rescale them. Leave `learning_rate_factor` at 1 "
            "and `rewarmup_steps` at 0."
        )


def _ftrl_linear(optimizer, slots, value):
    """The dual weights that stand for the given weights (l1 aside, -quadratic * w)."""
    rate = float(keras.ops.convert_to_numpy(optimizer.learning_rate))
    l2 = optimizer.l2_regularization_strength + optimizer.beta / (2.0 * rate)
    power = -optimizer.learning_rate_power
    quadratic = np.power(slots["accumulators"], power) / rate + 2 * l2
    return -quadratic * value - optimizer.l1_regularization_strength * np.sign(value)


_FIRST, _SECOND = Slot(1.0), Slot(2.0, positive=True)
_CORRECTED_FIRST = Slot(1.0, decay="beta_1")
_CORRECTED_SECOND = Slot(2.0, positive=True, decay="beta_2")
_SUM_OF_SQUARES = Slot(2.0, positive=True, start="initial_accumulator_value")
_ADAM = {
    "momentums": _CORRECTED_FIRST,
    "velocities": _CORRECTED_SECOND,
    "velocity_hats": _CORRECTED_SECOND,
}
register_optimizer("SGD", {"momentums": _FIRST})
register_optimizer(
    "RMSprop",
    {"velocities": _SECOND, "momentums": Slot(0.0), "average_gradients": _FIRST},
)
for _name in ("Adam", "AdamW", "Lamb"):
    register_optimizer(_name, _ADAM)
# Nadam's first moment is corrected by a product that it keeps, and that starts afresh.
register_optimizer("Nadam", {"momentums": _FIRST, "velocities": _CORRECTED_SECOND})
register_optimizer("Adamax", {"m": _CORRECTED_FIRST, "u": Slot(1.0, positive=True)})
register_optimizer("Adagrad", {"accumulators": _SUM_OF_SQUARES})
register_optimizer(
    "Adadelta",
    {"accumulated_grads": _SECOND, "accumulated_delta_vars": Slot(0.0, positive=True)},
)
register_optimizer(
    "Ftrl", {"accumulators": _SUM_OF_SQUARES, "linears": Slot(dual=_ftrl_linear)}
)
register_optimizer("Lion", {"momentums": _FIRST})
# The momentums of matrices are not corrected, but their scale does not count either.
register_optimizer(
    "Muon",
    {
        "momentums": Slot(1.0, decay="adam_beta_1"),
        "adam_velocities": Slot(2.0, positive=True, decay="adam_beta_2"),
    },
)
register_optimizer(
    "Adafactor",
    {
        "r": Slot(2.0, positive=True, drop_axis=-1),
        "c": Slot(2.0, positive=True, drop_axis=-2),
        "v": _SECOND,
    },
)
register_optimizer(
    "ScheduleFreeAdamW",
    {"momentums": Slot(0.0, near_weights=True), "velocities": _CORRECTED_SECOND},
)


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
    layouts: list[VariableLayout],
    *,
    copies: bool,
    reset: bool,
) -> None:
    """Gives the fused model's optimizer the fused state of its parents'.

    Args:
        parents: K `State`.
        fresh: `State` of the optimizer to fill.
        layouts: the fusion's layouts, with targets that hold their fused values.
        copies: bool. Whether the parents are copies of one model.
        reset: bool. Whether to leave the memory of gradients as it starts. Averages of
            the weights, gradients that wait to be applied, and slots that determine the
            weights go on all the same.

    Raises:
        FusionError: naming a variable for which a parent has no state.
    """
    known = _find(fresh.optimizer) or not reset
    rules = describe(fresh.optimizer) if known else _COMMON
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
                optimizer=fresh.optimizer,
                weights=[read(s) for s in item.sources] if rule.of_weights else None,
                value=_numpy(item.target) if rule.of_weights else None,
                done=done,
                copies=copies,
            )
            placement.write(target, value)
            if dual:
                done[name] = value


def _numpy(variable):
    """The value, in a dtype that differences are exact enough in."""
    array = placement.read(variable)
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
        fused = _fused_distance(arrays, item)
    else:
        fused = _fused_moment(slot, arrays, item, copies)
    return fused if start is None else start + fused


def _fused_moment(slot, arrays, item, copies):
    """What remembers gradients, or updates."""
    axes, factor = _kept(item.axes, slot), item.gradient_scale**slot.degree
    if item.copied is None:
        return fuse_slot(
            arrays, axes, factor=factor, copies=copies, second_moment=slot.positive
        )
    return copy_slot(
        arrays[0],
        axes,
        _kept(item.copied, slot),
        factor=factor,
        degree=slot.degree,
        split_outputs=item.before_tied_readout,
    )


def _fused_distance(arrays, item):
    """How far an average of the weights is from them."""
    if item.copied is None:
        return fuse_arrays(arrays, item.axes, scales=item.scales)
    split = item.before_tied_readout
    distance = copy_array(arrays[0], item.axes, item.copied, split_outputs=split)
    return distance * (item.scales[0] * (item.copies if split else 1.0))


def _kept(per_axis: tuple, slot: Slot) -> tuple:
    """Of what there is one for each axis of a variable, what belongs to a slot's axes."""
    if slot.drop_axis is None:
        return per_axis
    dropped = len(per_axis) + slot.drop_axis
    return tuple(entry for i, entry in enumerate(per_axis) if i != dropped)
