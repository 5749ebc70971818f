"""Outputs that get more entries, of which the first ones must be the old ones."""

import numpy as np

from keras_fusion.models.observe import Watched
from keras_fusion.operators.correspondence import Change

_ROUNDING = 1e-3  # of a sum of probabilities


def old_part(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """The part of a tensor that is to be compared with what it was.

    Args:
        old: the tensor before.
        new: the tensor after, which may have more entries on its last axis.

    Returns:
        Its first entries. Of probabilities they are divided by their sum, and of their
        logarithms it is subtracted: what is left says how the old ones share.
    """
    if old.ndim != new.ndim or old.ndim == 0 or old.shape[:-1] != new.shape[:-1]:
        return new
    if new.shape[-1] <= old.shape[-1]:
        return new
    part = new[..., : old.shape[-1]]
    if _sum_to_one(old):
        return part / np.sum(part, axis=-1, keepdims=True)
    with np.errstate(all="ignore"):
        if _sum_to_one(np.exp(old)):
            return part - np.log(np.sum(np.exp(part), axis=-1, keepdims=True))
    return part


def is_behind_softmax(change: Change, before: Watched) -> bool:
    """Whether a change is that of probabilities, whose logits are compared as well."""
    if change.layer is None or change.place != "output":
        return False
    seen = before.calls.get(id(change.layer.parents[0]), [])[change.call]
    if seen.inner is None or seen.output is None:
        return False
    with np.errstate(all="ignore"):
        return _sum_to_one(seen.output) or _sum_to_one(np.exp(seen.output))


def _sum_to_one(values: np.ndarray) -> bool:
    if values.ndim < 2 or values.shape[-1] < 2 or not np.isfinite(values).all():
        return False
    sums = np.sum(values, axis=-1)
    return bool(np.min(values) >= 0 and np.max(np.abs(sums - 1)) < _ROUNDING)
