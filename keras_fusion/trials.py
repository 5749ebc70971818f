"""Finding by trying which of a model's values its function does not depend on.

Names of variables differ from family to family; what a change of them does to the
outputs does not.
"""

import re
from collections.abc import Callable

import numpy as np

from keras_fusion import placement


def keep_harmless(
    change: Callable[[], float], values: list[tuple], *, tolerance: float = 1e-6
) -> list:
    """Gives variables new values, and takes back those that change the function.

    Variables of one name but for its numbers (those of equal blocks) are tried together
    first, and one by one only if that fails.

    Args:
        change: function without arguments that measures how far the outputs have
            changed, relative to their largest value.
        values: list of `(variable, array)`, tried in this order.
        tolerance: float. The largest change that passes.

    Returns:
        List of the variables that have kept their new value.
    """
    kept = []

    def passes(some):
        before = [np.array(placement.read(v)) for v, _ in some]
        for variable, value in some:
            placement.write(variable, value)
        if change() <= tolerance:
            kept.extend(variable for variable, _ in some)
            return True
        for (variable, _), value in zip(some, before, strict=True):
            placement.write(variable, value)
        return False

    for group in _alike(values):
        if not passes(group) and len(group) > 1:
            for item in group:
                passes([item])
    return kept


def _alike(values):
    groups = {}
    for variable, value in values:
        name = re.sub(r"\d+", "#", variable.path)
        groups.setdefault(name, []).append((variable, value))
    return groups.values()
