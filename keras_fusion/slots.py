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

from keras_fusion.errors import FusionError
from keras_fusion.layout import VariableLayout
from keras_fusion.operator import Axis, fuse_arrays, fuse_slot


@dataclasses.dataclass(frozen=True)
class Slot:
    """What one slot of an optimizer holds.

    Args:
        degree: float. By which power of the gradient the slot scales: 1 for a first
            moment, 2 for a second, 0 for a moment of the updates of an optimizer that
            divides the gradient's scale away. `None` for an average of the weights.
        positive: bool. Whether the entries measure the gradient's size, so that zeros
            would mean huge steps.
        drop_axis: int. The axis over which the slot is an average (Adafactor's
            factors), or `None`.
        start: string. Name of the optimizer's attribute with the slot's initial value,
            which does not scale.
        dual: function `(optimizer, slots, value) -> array` for a slot that determines
            the weights and so must agree with them (Ftrl's `linears`).
    """

    degree: float | None = 1.0
    positive: bool = False
    drop_axis: int | None = None
    start: str | None = None
    dual: Callable | None = None


_FIRST = Slot(1.0)
_SECOND = Slot(2.0, positive=True)
_COMMON = {
    "model_variables_moving_average": Slot(None),
    "accumulated_gradients": _FIRST,
}
_SLOTS: dict[str, dict[str, Slot]] = {}


def register_optimizer(cls: type | str, slots: Mapping[str, Slot]) -> None:
    """Tells keras_fusion what the slots of an optimizer class hold.

    Args:
        cls: the optimizer class, or its name. Holds for subclasses too.
        slots: dict from the name of the attribute that holds the slot's list (leading
            underscores left out) to a `Slot`.
    """
    _SLOTS[getattr(cls, "__name__", cls)] = dict(slots)


def known_optimizers() -> dict[str, dict[str, Slot]]:
    """The slots of all registered optimizers, by class name."""
    return dict(_SLOTS)


def describe(optimizer: keras.optimizers.Optimizer) -> dict[str, Slot]:
    """The slots of an optimizer, by attribute name.

    Raises:
        FusionError: if its class is not registered.
    """
    for cls in type(optimizer).__mro__:
        if cls.__name__ in _SLOTS:
            return _SLOTS[cls.__name__] | _COMMON
    raise FusionError(
        f"The state of optimizer {type(optimizer).__name__} cannot be carried through a "
        "growth, since it is not known what its slots hold. Describe them with "
        "keras_fusion.register_optimizer, or pass optimizer_state='reset'. Known: "
        f"{sorted(_SLOTS)}."
    )


def _ftrl_linear(optimizer, slots, value):
    """The dual weights that stand for the given weights (l1 aside, -quadratic * w)."""
    rate = float(keras.ops.convert_to_numpy(optimizer.learning_rate))
    l2 = optimizer.l2_regularization_strength + optimizer.beta / (2.0 * rate)
    power = -optimizer.learning_rate_power
    quadratic = np.power(slots["accumulators"], power) / rate + 2 * l2
    return -quadratic * value - optimizer.l1_regularization_strength * np.sign(value)


_START = "initial_accumulator_value"
_ADAM = {"momentums": _FIRST, "velocities": _SECOND, "velocity_hats": _SECOND}
register_optimizer("SGD", {"momentums": _FIRST})
register_optimizer(
    "RMSprop",
    {"velocities": _SECOND, "momentums": Slot(0.0), "average_gradients": _FIRST},
)
for _name in ("Adam", "AdamW", "Nadam", "Lamb"):
    register_optimizer(_name, _ADAM)
register_optimizer("Adamax", {"m": _FIRST, "u": Slot(1.0, positive=True)})
register_optimizer("Adagrad", {"accumulators": Slot(2.0, positive=True, start=_START)})
register_optimizer(
    "Adadelta",
    {"accumulated_grads": _SECOND, "accumulated_delta_vars": Slot(0.0, positive=True)},
)
register_optimizer(
    "Ftrl",
    {
        "accumulators": Slot(2.0, positive=True, start=_START),
        "linears": Slot(dual=_ftrl_linear),
    },
)
register_optimizer("Lion", {"momentums": _FIRST})
register_optimizer("Muon", {"momentums": _FIRST, "adam_velocities": _SECOND})
register_optimizer(
    "Adafactor",
    {
        "r": Slot(2.0, positive=True, drop_axis=-1),
        "c": Slot(2.0, positive=True, drop_axis=-2),
        "v": _SECOND,
    },
)
register_optimizer(
    "ScheduleFreeAdamW", {"momentums": Slot(None), "velocities": _SECOND}
)


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
        weights: K arrays, the parents' values of the variable.
        value: the variable's fused value.
        done: the variable's slots that were fused before this one, by name.
        copies: bool. Whether the parents are copies of one model.

    Returns:
        Array of the fused slot's shape.
    """
    if slot.dual is not None:
        return slot.dual(optimizer, done, value)
    if slot.degree is None:
        # An average of the weights keeps its distance from them, block by block.
        distances = [a - w for a, w in zip(arrays, weights, strict=True)]
        return value + fuse_arrays(distances, item.axes, scales=item.scales)
    start = getattr(optimizer, slot.start) if slot.start else 0.0
    fused = fuse_slot(
        [np.asarray(a) - start for a in arrays],
        _slot_axes(item.axes, slot),
        factor=item.gradient_scale**slot.degree,
        copies=copies,
        second_moment=slot.positive,
    )
    return fused + start


def _slot_axes(axes: tuple[Axis, ...], slot: Slot) -> tuple[Axis, ...]:
    if slot.drop_axis is None:
        return axes
    dropped = len(axes) + slot.drop_axis
    return tuple(axis for i, axis in enumerate(axes) if i != dropped)
