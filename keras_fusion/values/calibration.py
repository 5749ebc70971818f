"""Norm calibration: the joint norm is brought as near to the parents' as gamma can.

A joint norm divides every parent's features by one statistic of all, and a parent of
large activations drowns the others. For each norm and parent the ratio of both
statistics over a batch is absorbed in the parent's gamma; for a layer norm the shift is
absorbed in beta. What is left is what differs token by token.

The mean that a layer norm subtracts differs much from token to token. But where all that
reads the residual stream are layer norms (a pre-norm network), none of them sees the
stream's mean. There the weights that write to the stream are centred first, which does
not change the parent, and leaves one deviation to compare.
"""

import dataclasses
from collections.abc import Sequence

import keras
import numpy as np

from keras_fusion.architecture.parents import Match
from keras_fusion.errors import FusionError
from keras_fusion.layout.variables import VariableLayout
from keras_fusion.models import host, probe, tree
from keras_fusion.models.block_norms import is_block_norm
from keras_fusion.models.observe import observe


@dataclasses.dataclass(frozen=True)
class Correction:
    """What a parent's value `v` becomes: `factor * (v + offset) - offset + shift`.

    If `centered`, the mean over the last axis is taken off first.
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
    matches: Sequence[Match], layouts: Sequence[VariableLayout], inputs
) -> dict[tuple[int, int], Correction]:
    """Measures, on distinct parents, the corrections that their joint norms need.

    Args:
        matches: the corresponding layers of the parents and the bigger model.
        layouts: the layouts of the growth.
        inputs: a batch in the structure of the models' inputs.

    Returns:
        Dict from the indices of a layout and of a parent to the `Correction`.
    """
    joint = [match for match in matches if is_joint(match)]
    found, seen = {}, []
    for k, parent in enumerate(matches[0].layers):
        norms = [match.layers[k] for match in joint]
        centered = _centered_writers(parent, joint, k, inputs)
        with host.assumed(centered):
            seen.append(observe(parent, inputs, norms))
        found |= {id(v): Correction(centered=True) for v, _ in centered}
    for match in joint:
        calls = [seen[k][id(layer)] for k, layer in enumerate(match.layers)]
        if all(calls):
            for key, correction in _norm_corrections(match, calls).items():
                centered = key in found and found[key].centered
                found[key] = dataclasses.replace(correction, centered=centered)
    return _placed(found, layouts)


def for_new_capacity(
    matches: Sequence[Match], layouts: Sequence[VariableLayout], count: int
) -> dict[tuple[int, int], Correction]:
    """Corrections of joint norms for added features that deviate from nothing.

    The new features take part in the norms' mean of squares, which falls by the same
    factor for all tokens; gamma falls by its root. What a norm adds to it, where it could
    not be made smaller as well, is measured on a batch.

    Args:
        matches: the corresponding layers of the model that is grown and the bigger one.
        layouts: the layouts of the growth.
        count: int. How many copies of the model the bigger one holds.

    Returns:
        Dict from the indices of a layout and of a parent to the `Correction`.
    """
    joint = [match for match in matches if is_joint(match)]
    model = matches[0].layers[0]
    seen = observe(model, probe.accepted(model), [match.layers[0] for match in joint])
    found = {}
    for match in joint:
        layer, norm = match.layers[0], match.weights_rule.norm
        variables = zip(layer.variables, match.grown.variables, strict=True)
        for variable, larger in variables:
            if variable.name == norm.scale and seen[id(layer)]:
                used = count * variable.shape[-1] / larger.shape[-1]
                x = _tokens(seen[id(layer)])
                own = _statistics(x, norm.centered, layer)[1]
                square = used * (own**2 - _epsilon(layer)) + _epsilon(match.grown)
                factor = float(np.mean(np.sqrt(square) / own))
                found[id(variable)] = Correction(factor, offset=norm.offset)
    return _placed(found, layouts)


def _placed(found, layouts):
    """Corrections by layout and parent, of those by the ids of variables."""
    return {
        (index, k): found[id(source)]
        for index, layout in enumerate(layouts)
        for k, source in enumerate(layout.sources)
        if id(source) in found
    }


def _tokens(calls):
    """The inputs of all calls of a norm, of shape (tokens, features)."""
    rows = [x.reshape(-1, x.shape[-1]) for x, _ in calls]
    return np.concatenate(rows).astype("float64")


def _epsilon(layer):
    return getattr(layer, "epsilon", 1e-6)


def _centered_writers(parent, joint, k, inputs):
    """Centred values of the weights that write to what only layer norms read."""
    widths = {
        match.layers[k].variables[0].shape[-1]
        for match in joint
        if match.weights_rule.norm.centered
    }
    own = [
        (variable, host.read(variable))
        for variable in parent.trainable_variables
        if len(variable.shape) and variable.shape[-1] in widths
    ]
    few = keras.tree.map_structure(lambda x: x[:2], inputs)
    expected = probe.outputs(parent, few)
    values = [(v, _centered(value)) for v, value in own if value.any()]

    def change():
        return probe.change(expected, probe.outputs(parent, few))

    return probe.keep_harmless(change, values, tolerance=1e-5)


def _centered(value):
    return value - value.mean(axis=-1, keepdims=True)


def is_joint(match: Match) -> bool:
    """Whether a layer is a norm that grew and has one statistic for all features."""
    rule, layer = match.weights_rule, match.layers[0]
    if rule is None or rule.norm is None or is_block_norm(match.grown):
        return False
    return [v.shape for v in layer.variables] != [
        v.shape for v in match.grown.variables
    ]


def _norm_corrections(match, calls):
    """Corrections of one norm, from the inputs that the parents' norms were given."""
    layers, norm = match.layers, match.weights_rule.norm
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


def _least_squares(given, target, with_shift):
    """The factor and shift that bring what is given nearest to the target."""
    if not with_shift:
        return float(np.sum(given * target) / np.sum(given * given)), 0.0
    slopes = np.mean((given - given.mean()) * (target - target.mean()))
    factor = float(slopes / np.var(given))
    return factor, float(target.mean() - factor * given.mean())


def _statistics(x, centered, layer):
    mean = x.mean(axis=1) if centered else np.zeros(len(x))
    square = np.mean((x - mean[:, None]) ** 2, axis=1)
    return mean, np.sqrt(square + _epsilon(layer))
