"""The growth operators that studies name."""

import inspect
from collections.abc import Sequence
from typing import Any

import keras

import keras_fusion
from experiments.harness.study import Growth


def operator_of(
    growth: Growth, seed: int, partners: Sequence[keras.Model], **options: Any
) -> Any:
    """The operator of a growth.

    Args:
        growth: `Growth`.
        seed: int. Of what the operator draws.
        partners: the other parents, if there are any.
        **options: further options of the operator.
    """
    cls = keras_fusion.known_operators()[growth.operator].cls
    options = growth.options | options
    if "seed" in inspect.signature(cls).parameters:
        options["seed"] = seed
    if partners:
        options["partners"] = list(partners)
        options.setdefault("norms", "joint")  # As when the first studies ran.
    return cls(**options)
