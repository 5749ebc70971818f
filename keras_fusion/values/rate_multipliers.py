"""Learning-rate multipliers that keep the speed of learning over a growth.

After a growth by a factor k more weights move the function, and each has another
gradient. A weight group of N times as many entries whose gradients are s times as large
moves it N s times as fast under an optimizer that divides the gradient's scale away
(Adam), and N s^2 times as fast under one that follows it (SGD). The multiplier is one
over that. It comes out as the pattern of maximal-update parametrization: for Adam
1 for inputs, 1/k for hidden kernels and readouts; for SGD k, 1 and 1/k.
"""

import keras
import numpy as np

from keras_fusion.errors import FusionError
from keras_fusion.layout.axes import is_readout
from keras_fusion.layout.variables import VariableLayout
from keras_fusion.models import host

# The power of the gradient's scale that an optimizer's updates have.
_DEGREES = {
    "SGD": 1,
    "Adam": 0,
    "AdamW": 0,
    "Adamax": 0,
    "RMSprop": 0,
    "Adagrad": 0,
    "Lion": 0,
    # Relative to the weight's own size, too; see `_multiplier`.
    "Adafactor": 0,
}


def check(optimizer: keras.optimizers.Optimizer) -> None:
    """Checks that it is known how an optimizer's updates scale.

    Raises:
        FusionError: naming those for which it is.
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
            f"{type(optimizer).__name__}. Use a number as learning_rate_factor, or "
            "rewarmup_steps, instead."
        )
    return _DEGREES[name]


def by_width(
    layouts: list[VariableLayout], optimizer: keras.optimizers.Optimizer
) -> dict[int, float]:
    """A multiplier for each variable of a grown model.

    Args:
        layouts: the layouts of the growth, whose targets hold their values.
        optimizer: a known optimizer without wrapper.

    Returns:
        Dict from the id of the grown model's variable to its multiplier.
    """
    power, is_relative = degree(optimizer), _class_name(optimizer) == "Adafactor"
    return {
        id(item.target): _multiplier(item, power, is_relative)
        for item in layouts
        if item.target.trainable and item.grown
    }


def _multiplier(item, power, is_relative):
    entries = _size(item.target) / np.mean([_size(source) for source in item.sources])
    slope = 1.0
    if not is_readout(item.axes):
        slope = 1.0 / (_width_ratio(item) * float(np.mean(item.scales)))
    speed = entries * slope ** (1 + power)
    if is_relative:
        # Adafactor's steps are in units of the weight's root mean square.
        speed *= _rms(item.target) / np.mean([_rms(source) for source in item.sources])
    return float(1.0 / speed)


def _width_ratio(item):
    """How many times as wide the model has become, by the axis that grew most."""
    return max(
        axis.size / np.mean([len(block) for block in axis.blocks])
        for axis in item.axes
        if axis.grown
    )


def _size(variable):
    return int(np.prod(variable.shape))


def _rms(variable):
    value = host.read(variable).astype("float64")
    return max(float(np.sqrt(np.mean(value**2))), 1e-3)


def _class_name(optimizer):
    names = (cls.__name__ for cls in type(optimizer).__mro__)
    return next((name for name in names if name in _DEGREES), None)
