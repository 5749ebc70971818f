"""Learning-rate multipliers that keep the speed of learning across a growth.

After a growth by a factor k more weights change the function, and their gradients have
another scale. A weight group of N times as many entries with gradients s times as large
changes it N s times as fast under an optimizer that normalizes the gradient's scale
(Adam), and N s^2 times as fast under one that follows it (SGD). The multiplier is the
inverse of that. The result is the pattern of maximal-update parametrization: for Adam
1 for inputs, 1/k for hidden kernels and readouts; for SGD k, 1 and 1/k.
"""

from collections.abc import Sequence

import keras
import numpy as np

from keras_fusion.errors import FusionError
from keras_fusion.layout.axes import is_readout
from keras_fusion.layout.variables import VariableLayout
from keras_fusion.models import host

# The power of the gradient's scale that an optimizer's updates scale with.
_DEGREES = {
    "SGD": 1,
    "Adam": 0,
    "AdamW": 0,
    "Adamax": 0,
    "RMSprop": 0,
    "Adagrad": 0,
    "Lion": 0,
    # Its updates are also relative to the weight's size; see `_multiplier`.
    "Adafactor": 0,
}


def check(optimizer: keras.optimizers.Optimizer) -> None:
    """Checks that the scale of an optimizer's updates is known.

    Raises:
        FusionError: naming the optimizers for which it is.
    """
    degree(optimizer)


def degree(optimizer: keras.optimizers.Optimizer) -> int:
    """The power of the gradient that an optimizer's updates scale with, 1 or 0.

    Raises:
        FusionError: if it is not known.
    """
    name = _class_name(optimizer)
    if name is None:
        raise FusionError(
            "`learning_rate_multipliers='width'` and BracketRate need an optimizer whose "
            f"updates' scale is known: {sorted(_DEGREES)}. Received: "
            f"{type(optimizer).__name__}. Use a number as learning_rate_factor, or use "
            "rewarmup_steps, instead."
        )
    return _DEGREES[name]


def by_width(
    layouts: Sequence[VariableLayout], optimizer: keras.optimizers.Optimizer
) -> dict[int, float]:
    """The learning-rate multipliers of a grown model's variables.

    Args:
        layouts: the layouts of the growth, whose targets hold their values.
        optimizer: a known optimizer, without wrapper.

    Returns:
        Dict from the id of the grown model's variable to its multiplier.
    """
    power, is_relative = degree(optimizer), _class_name(optimizer) == "Adafactor"
    return {
        id(item.target): _multiplier(item, power, is_relative)
        for item in layouts
        if item.target.trainable and item.grown
    }


def _multiplier(item: VariableLayout, power: int, is_relative: bool) -> float:
    entries = _size(item.target) / np.mean([_size(source) for source in item.sources])
    slope = 1.0
    if not is_readout(item.axes):
        slope = 1.0 / (_width_ratio(item) * float(np.mean(item.scales)))
    speed = entries * slope ** (1 + power)
    if is_relative:
        # Adafactor's steps are in units of the weight's root mean square.
        speed *= _rms(item.target) / np.mean([_rms(source) for source in item.sources])
    return float(1.0 / speed)


def _width_ratio(item: VariableLayout) -> float:
    """The factor by which the model has become wider, by the axis that grew most."""
    return max(
        float(axis.size / np.mean([len(block) for block in axis.blocks]))
        for axis in item.axes
        if axis.blocks is not None
    )


def _size(variable: keras.Variable) -> int:
    return int(np.prod(variable.shape))


def _rms(variable: keras.Variable) -> float:
    value = host.read(variable).astype("float64")
    return max(float(np.sqrt(np.mean(value**2))), 1e-3)


def _class_name(optimizer: keras.optimizers.Optimizer) -> str | None:
    names = (cls.__name__ for cls in type(optimizer).__mro__)
    return next((name for name in names if name in _DEGREES), None)
