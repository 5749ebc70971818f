"""Optimizer slots as data: the meaning of each, by optimizer class.

`slot_values` carries them through a growth.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import keras
import numpy as np

from keras_fusion.errors import FusionError
from keras_fusion.models import host

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Slot:
    """The meaning of one slot of an optimizer.

    Args:
        degree: float. The power of the gradient that the slot scales with: 1 for a first
            moment, 2 for a second, 0 for a moment of the updates of an optimizer that
            normalizes the gradient's scale. `None` for an average of the weights, which
            is fused like the weights.
        positive: bool. Whether the entries measure the gradient's size, so that zeros
            would mean huge steps.
        decay: string. Name of the optimizer's attribute with the decay `b` of a moment
            that starts at zero and is corrected for that bias: divided by `1 - b**t`
            after t steps.
        drop_axis: int. The axis over which the slot is an average (Adafactor's
            factors), or `None`.
        start: string. Name of the optimizer's attribute with the slot's initial value,
            which does not scale.
        near_weights: bool. Whether the slot holds weights that run ahead of the
            model's; it is their distance that scales.
        kept: bool. Whether a reset keeps the slot, because it is not a memory of past
            gradients.
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
    dual: Callable[[Any, Mapping[str, np.ndarray], Any], np.ndarray] | None = None

    @property
    def power(self) -> float:
        """The power of the gradient that the slot scales with; 0 if it does not scale."""
        return self.degree or 0.0

    @property
    def of_weights(self) -> bool:
        """Whether the slot's value depends on the weights."""
        return self.degree is None or self.near_weights or self.dual is not None

    def axes_of(self, per_axis: Sequence[T]) -> tuple[T, ...]:
        """Selects the items of the slot's own axes from one item per axis of a variable."""
        if self.drop_axis is None:
            return tuple(per_axis)
        dropped = len(per_axis) + self.drop_axis
        return tuple(entry for i, entry in enumerate(per_axis) if i != dropped)


_COMMON = {
    "model_variables_moving_average": Slot(None, kept=True),
    "accumulated_gradients": Slot(1.0, kept=True),
}
_SLOTS: dict[str, dict[str, Slot]] = {}
# They divide each update by its own norm, which cancels any correction of its scale.
_NORMALIZED = {"Lamb"}


def register_optimizer(cls: type | str, slots: Mapping[str, Slot]) -> None:
    """Registers the slots of an optimizer class.

    Args:
        cls: the optimizer class, or its name. Subclasses are covered as well.
        slots: dict from the name of the attribute that holds the slot's list (without
            leading underscores) to a `Slot`.

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
    _SLOTS[cls if isinstance(cls, str) else cls.__name__] = dict(slots)


def known_optimizers() -> dict[str, dict[str, Slot]]:
    """The slots of all registered optimizers, by class name."""
    return dict(_SLOTS)


def _find(optimizer: keras.optimizers.Optimizer) -> str | None:
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
        "growth, since the meaning of its slots is unknown. Describe them with "
        "keras_fusion.register_optimizer, or pass optimizer_state='reset'. Known: "
        f"{sorted(_SLOTS)}."
    )


def rules_of(optimizer: keras.optimizers.Optimizer, reset: bool) -> dict[str, Slot]:
    """The slots to carry; in a reset of an unknown class those that all optimizers have."""
    return _COMMON if reset and _find(optimizer) is None else describe(optimizer)


def correction(optimizer: keras.optimizers.Optimizer) -> tuple[float, float] | None:
    """The decays `(beta_1, beta_2)` of an optimizer's bias correction.

    A moment without bias correction counts as a decay of 0. `None` where a reset that
    keeps the step count needs no correction of the learning rate.
    """
    name = _find(optimizer)
    if name is None or name in _NORMALIZED:
        return None
    betas = {1.0: 0.0, 2.0: 0.0}
    for slot in _SLOTS[name].values():
        if slot.decay is not None and slot.degree is not None:
            betas[slot.degree] = getattr(optimizer, slot.decay)
    return (betas[1.0], betas[2.0]) if any(betas.values()) else None


def check_rate_may_change(optimizer: keras.optimizers.Optimizer) -> None:
    """Checks that the weights do not depend on the learning rate.

    Raises:
        FusionError: naming the optimizer whose weights do.
    """
    name = _find(optimizer)
    if name and any(slot.dual for slot in _SLOTS[name].values()):
        raise FusionError(
            f"{name} recomputes the weights in each step, divided by the learning rate: "
            "another rate would rescale them. Leave `learning_rate_factor` at 1 and "
            "`rewarmup_steps` at 0."
        )


def _ftrl_linear(
    optimizer: Any, slots: Mapping[str, np.ndarray], value: np.ndarray
) -> np.ndarray:
    """The dual weights of given weights (apart from l1, -quadratic * w)."""
    rate = float(host.to_numpy(optimizer.learning_rate))
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
# Nadam's first moment is corrected by a product in its state, which starts anew.
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
# The momentums of matrices are not corrected, but their scale has no effect either.
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
