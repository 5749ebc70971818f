"""What a growth does to the penalties of weights, which are a part of the loss."""

import math
import warnings

import keras

from keras_fusion.models import host

# Relative; rounding and small noise on the weights are below.
_NOTABLE = 0.05


def warn_of_change(model: keras.Model, fused: keras.Model) -> None:
    """Warns if the regularizers penalize the grown model's weights otherwise than before.

    The grown weights have the same regularizers: copies of a weight are penalized once
    each, and the halves of a readout's weight by L2 with a quarter each.

    Args:
        model: the live model.
        fused: the grown model, whose values are in its variables.
    """
    before, after = of_weights(model), of_weights(fused)
    known = math.isfinite(before) and math.isfinite(after)
    if known and not math.isclose(before, after, rel_tol=_NOTABLE):
        warnings.warn(
            f"The regularizers of {model.name!r} penalize its weights by {before:.3g} "
            f"before the growth and by {after:.3g} after it: the outputs stay, the loss "
            "does not. The optimizer's weight_decay, in place of regularizers, acts on "
            "each weight as before.",
            stacklevel=2,
        )


def of_weights(model: keras.Model) -> float:
    """The sum of a model's weight penalties, in the loss's units."""
    return sum(
        float(host.to_numpy(variable.regularizer(variable)))
        for variable in model.trainable_variables
        if getattr(variable, "regularizer", None) is not None
    )
