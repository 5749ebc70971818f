"""Norm calibration, which brings joint norms as close to the parents' as gamma can.

A joint norm divides every parent's features by one statistic of all, which a parent with
large activations dominates. For each norm and parent the ratio of the two statistics,
averaged over a batch, is absorbed in the parent's gamma; for a layer norm the shift is
absorbed in beta. The remaining error is the variation from token to token.

The mean that a layer norm subtracts varies much from token to token. But where the
residual stream is read by layer norms only (a pre-norm network), the stream's mean has no
effect. There the weights that write to the stream are centred first, which does not
change the parent, and leaves only the deviations to compare.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_fusion.architecture.parents import Match
from keras_fusion.errors import FusionError
from keras_fusion.layout.variables import VariableLayout
from keras_fusion.models import host, probe, tree
from keras_fusion.models.observe import Observation, Pair, observe
from keras_fusion.models.rules import Norm
from keras_fusion.models.stock import is_block_norm

# By the indices of a layout and of a parent.
Corrections = Mapping[tuple[int, int], "Correction"]


@dataclasses.dataclass(frozen=True)
class Correction:
    """Maps a parent's value `v` to `factor * (v + offset) - offset + shift`.

    If `centered`, the mean over the last axis is subtracted first.
    """

    factor: np.ndarray | float = 1.0
    shift: np.ndarray | float = 0.0
    offset: float = 0.0
    centered: bool = False

    def __call__(self, value: np.ndarray) -> np.ndarray:
        """The corrected value, of the same shape."""
        value = _centered(value) if self.centered else value
        return self.factor * (value + self.offset) - self.offset + self.shift


def corrections(
    matches: Sequence[Match], layouts: Sequence[VariableLayout], inputs: Any
) -> Corrections:
    """Measures the corrections that the joint norms of distinct parents need.

    Args:
        matches: the corresponding layers of the parents and the bigger model.
        layouts: the layouts of the growth.
        inputs: a batch in the structure of the models' inputs.

    Returns:
        Dict from the indices of a layout and of a parent to the `Correction`.
    """
    joint = _joint_norms(matches)
    found: dict[int, Correction] = {}
    seen = []
    for k, parent in enumerate(matches[0].layers):
        norms = [match.layers[k] for match, _ in joint]
        centered = _centered_writers(parent, joint, k, inputs)
        with host.assumed(centered):
            seen.append(observe(parent, inputs, norms))
        found |= {id(v): Correction(centered=True) for v, _ in centered}
    for match, norm in joint:
        calls = [seen[k][id(layer)] for k, layer in enumerate(match.layers)]
        if all(calls):
            for key, correction in _norm_corrections(match, norm, calls).items():
                centered = key in found and found[key].centered
                found[key] = dataclasses.replace(correction, centered=centered)
    return _placed(found, layouts)


def for_new_capacity(
    matches: Sequence[Match],
    layouts: Sequence[VariableLayout],
    count: int,
    seen: Observation,
) -> Corrections:
    """The corrections of joint norms for new features that equal the features' mean.

    The new features count in the norms' mean of squares, which falls by the same factor
    for all tokens; gamma falls by its root. The effect of a norm's epsilon, where it
    could not be made smaller as well, is measured on a batch.

    Args:
        matches: the corresponding layers of the model and the bigger one.
        layouts: the layouts of the growth.
        count: int. Number of copies of the model in the bigger one.
        seen: the calls of the model's `joint_layers` on a batch.

    Returns:
        Dict from the indices of a layout and of a parent to the `Correction`.
    """
    found = {}
    for match, norm in _joint_norms(matches):
        layer = match.layers[0]
        for variable, larger in tree.shared_variables([layer, match.grown]):
            if variable.name == norm.scale and seen[id(layer)]:
                used = count * variable.shape[-1] / larger.shape[-1]
                x = _tokens(seen[id(layer)])
                own = _statistics(x, norm.centered, layer)[1]
                square = used * (own**2 - _epsilon(layer)) + _epsilon(match.grown)
                factor = float(np.mean(np.sqrt(square) / own))
                found[id(variable)] = Correction(factor, offset=norm.offset)
    return _placed(found, layouts)


def _placed(
    found: dict[int, Correction], layouts: Sequence[VariableLayout]
) -> Corrections:
    """Corrections by layout and parent, from those by the ids of variables."""
    return {
        (index, k): found[id(source)]
        for index, layout in enumerate(layouts)
        for k, source in enumerate(layout.sources)
        if id(source) in found
    }


def _tokens(calls: Sequence[Pair]) -> np.ndarray:
    """The inputs of all calls of a norm, of shape (tokens, features)."""
    rows = [x.reshape(-1, x.shape[-1]) for x, _ in calls if x is not None]
    return np.concatenate(rows).astype("float64")


def _epsilon(layer: keras.Layer) -> float:
    return getattr(layer, "epsilon", 1e-6)


def _centered_writers(
    parent: keras.Model,
    joint: Sequence[tuple[Match, Norm]],
    k: int,
    inputs: Any,
) -> list[probe.Value]:
    """Centred values of the weights whose outputs only layer norms read."""
    widths = {
        match.layers[k].variables[0].shape[-1] for match, norm in joint if norm.centered
    }
    own = [
        (variable, host.read(variable))
        for variable in parent.trainable_variables
        if len(variable.shape) and variable.shape[-1] in widths
    ]
    few = keras.tree.map_structure(lambda x: x[:2], inputs)
    expected = probe.outputs(parent, few)
    values = [(v, _centered(value)) for v, value in own if value.any()]

    def change() -> float:
        return probe.change(expected, probe.outputs(parent, few))

    return probe.keep_harmless(change, values, tolerance=1e-5)


def _centered(value: np.ndarray) -> np.ndarray:
    return value - value.mean(axis=-1, keepdims=True)


def is_joint(match: Match) -> bool:
    """Whether a layer is a norm that grew and has one statistic for all features."""
    return bool(_joint_norms([match]))


def joint_layers(matches: Sequence[Match]) -> list[keras.Layer]:
    """The layers of the first parent that become such norms."""
    return [match.layers[0] for match, _ in _joint_norms(matches)]


def _joint_norms(matches: Sequence[Match]) -> list[tuple[Match, Norm]]:
    """The layers that are such norms, with the description of each."""
    found = []
    for match in matches:
        norm = match.weights_rule.norm if match.weights_rule is not None else None
        if norm is not None and not is_block_norm(match.grown):
            old, new = match.layers[0].variables, match.grown.variables
            if [v.shape for v in old] != [v.shape for v in new]:
                found.append((match, norm))
    return found


def _norm_corrections(
    match: Match, norm: Norm, calls: Sequence[Sequence[Pair]]
) -> dict[int, Correction]:
    """The corrections of one norm, from the inputs of the parents' norms."""
    layers = match.layers
    # (parents) arrays of shape (tokens, features)
    inputs = [_tokens(own) for own in calls]
    if len({len(x) for x in inputs}) > 1:
        raise FusionError(
            f"The norm {layers[0].name!r} is called on different numbers of tokens in "
            "the parents, so it cannot be calibrated. Use norms='joint'."
        )
    mean, deviation = _statistics(
        np.concatenate(inputs, axis=1), norm.centered, layers[0]
    )
    found = {}
    for layer, x in zip(layers, inputs, strict=True):
        own_mean, own_deviation = _statistics(x, norm.centered, layer)
        target = (x - own_mean[:, None]) / own_deviation[:, None]
        given = (x - mean[:, None]) / deviation[:, None]
        factor, moved = _least_squares(given, target, with_shift=norm.centered)
        variables = {v.name: v for v in tree.own_variables(layer)}
        scale, shift = variables.get(norm.scale), variables.get(norm.shift)
        if scale is not None:
            found[id(scale)] = Correction(factor, offset=norm.offset)
        if scale is not None and shift is not None:
            gamma = host.read(scale) + norm.offset
            found[id(shift)] = Correction(shift=gamma * moved)
    return found


def _least_squares(
    given: np.ndarray, target: np.ndarray, with_shift: bool
) -> tuple[float, float]:
    """The factor and the shift that fit given values to a target."""
    if not with_shift:
        return float(np.sum(given * target) / np.sum(given * given)), 0.0
    slopes = np.mean((given - given.mean()) * (target - target.mean()))
    factor = float(slopes / np.var(given))
    return factor, float(target.mean() - factor * given.mean())


def _statistics(
    x: np.ndarray, centered: bool, layer: keras.Layer
) -> tuple[np.ndarray, np.ndarray]:
    """The mean and the deviation of each token, as a norm computes them."""
    mean = x.mean(axis=1) if centered else np.zeros(len(x))
    square = np.mean((x - mean[:, None]) ** 2, axis=1)
    return mean, np.sqrt(square + _epsilon(layer))
