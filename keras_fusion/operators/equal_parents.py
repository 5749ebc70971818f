"""A warning of parents that nothing would tell apart in training."""

import warnings

import numpy as np

from keras_fusion.models import host
from keras_fusion.operators.plan import Plan
from keras_fusion.values.fillers import FusionFiller


def warn_of_equal(plan: Plan) -> None:
    """Warns of copies that nothing would tell apart."""
    first, *others = plan.parents
    filler = plan.filler
    is_apart = isinstance(filler, FusionFiller) and filler.off_diagonal == "zeros"
    if is_apart and others and all(_are_equal(first, other) for other in others):
        what = "paired" if plan.copies else "random"
        warnings.warn(
            f"The parents of {first.name!r} have equal weights, and with "
            "`off_diagonal='zeros'` they get equal gradients: in training they would "
            f"stay equal. Use off_diagonal='{what}', or parents that differ.",
            stacklevel=2,
        )


def _are_equal(one, other):
    """Whether two models have equal weights; reads no more than it must."""
    if one is other:
        return True
    pairs = zip(one.trainable_variables, other.trainable_variables, strict=True)
    return all(
        a.shape == b.shape and np.array_equal(host.read(a), host.read(b))
        for a, b in pairs
    )
