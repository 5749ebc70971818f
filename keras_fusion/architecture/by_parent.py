"""Values that the bigger model computes of the parents', beside those laid out in it.

Where all features share a variable, the bigger model's is the mean of the parents', and
another variable holds what each of them adds.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from keras_fusion.models import host
from keras_fusion.models.stock import is_block_norm


@dataclasses.dataclass(frozen=True)
class ByParent:
    """A variable of the bigger model with values of each parent's.

    Args:
        target: the `keras.Variable`.
        sources: the parents' variables that its value depends on.
        value: function from their values, a list of arrays, to its own. It holds on to
            no variable.
    """

    target: keras.Variable
    sources: tuple[keras.Variable, ...]
    value: Callable[[Sequence[np.ndarray]], np.ndarray]

    def read(self) -> np.ndarray:
        """The value, of what the sources read as."""
        return self.value([host.read(source) for source in self.sources])


def same(target: keras.Variable, source: keras.Variable) -> ByParent:
    """The values that a parent has for its own parents."""
    return ByParent(target, (source,), lambda values: values[0])


def differences(
    target: keras.Variable,
    layers: Sequence[Any],
    shared: Callable[[Any], Sequence[keras.Variable]],
) -> ByParent:
    """What is added to the means of shared variables, in a row for each parent.

    To what is new, behind the parents', nothing is added.

    Args:
        target: the variable, whose rows hold the shared variables one after another.
        layers: the parents' layers; where one has several parents itself, it has
            `differences` of its own.
        shared: function from a layer to the variables that all of its features share.
    """
    held = [(list(shared(x)), is_block_norm(x)) for x in layers]
    sources = []
    for layer, (variables, has_own) in zip(layers, held, strict=True):
        sources += [*variables, layer.differences] if has_own else variables
    counts = [(len(variables), has_own) for variables, has_own in held]
    shape = tuple(target.shape)

    def value(values: Sequence[np.ndarray]) -> np.ndarray:
        dtype = values[0].dtype
        precise = np.promote_types(dtype, "float32")
        rest, means, rows = iter(values), [], []
        for count, has_own in counts:
            shared = np.concatenate([np.ravel(next(rest)) for _ in range(count)])
            means.append(shared.astype(precise))
            own = next(rest).reshape(-1, shared.size) if has_own else 0
            rows.append(np.atleast_2d(means[-1] + own))
        # The shared variable holds the mean as its dtype rounds it.
        mean = np.mean(means, axis=0).astype(dtype).astype(precise)
        own = np.concatenate(rows) - mean
        return np.pad(own, [(0, shape[0] - len(own)), (0, 0)]).reshape(shape)

    return ByParent(target, tuple(sources), value)


def shares(
    target: keras.Variable, layers: Sequence[Any], *, together: bool, takes_new: bool
) -> ByParent:
    """How often each group's share goes into the whole, see `ParentWise.shares`.

    Args:
        target: the variable, of shape `(groups, blocks)`.
        layers: the parents' layers.
        together: bool. Whether they are copies, which decide together as one of them
            did alone.
        takes_new: bool. Whether features of no parent are the first group's; else they
            are in no group.
    """
    has_own = [is_block_norm(layer) for layer in layers]
    sources = tuple(x.shares for x in layers if is_block_norm(x))
    blocks = target.shape[1]

    def value(values: Sequence[np.ndarray]) -> np.ndarray:
        rest = iter(values)
        parts = [np.asarray(next(rest)) if own else np.ones((1, 1)) for own in has_own]
        found = np.hstack(parts) if together else len(parts) * _diagonal(parts)
        new = np.zeros((len(found), blocks - found.shape[1]), found.dtype)
        new[0] = found[0].max() if takes_new else 0.0
        return np.hstack([found, new])

    return ByParent(target, sources, value)


def _diagonal(parts: Sequence[np.ndarray]) -> np.ndarray:
    """A matrix of matrices on its diagonal, and zeros."""
    ends = np.cumsum([part.shape for part in parts], axis=0)
    whole = np.zeros(ends[-1], parts[0].dtype)
    for part, (row, column) in zip(parts, ends, strict=True):
        whole[row - part.shape[0] : row, column - part.shape[1] : column] = part
    return whole
