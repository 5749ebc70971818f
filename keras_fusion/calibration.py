"""Norm calibration: the joint norm is brought as near to the parents' as gamma can.

A joint norm divides every parent's features by one statistic of all, and a parent of
large activations drowns the others. For each norm and parent the mean over a batch of
the ratio of both statistics is absorbed in the parent's gamma; for a layer norm the
mean of the shift is absorbed in beta. What is left is what differs token by token.
"""

import dataclasses

import keras
import numpy as np

from keras_fusion import registry, structure
from keras_fusion.architecture import skipped_attributes
from keras_fusion.errors import FusionError
from keras_fusion.layers import is_block_norm
from keras_fusion.observation import observe


@dataclasses.dataclass(frozen=True)
class Correction:
    """What a parent's value `v` becomes: `factor * (v + offset) - offset + shift`."""

    factor: float = 1.0
    shift: np.ndarray | float = 0.0
    offset: float = 0.0

    def __call__(self, value: np.ndarray) -> np.ndarray:
        """The corrected value, of the same shape."""
        return self.factor * (value + self.offset) - self.offset + self.shift


def corrections(parents: list[keras.Model], fused: keras.Model, inputs) -> dict:
    """Measures, on the parents, what their joint norms will need.

    Args:
        parents: K distinct built models.
        fused: the bigger model, for which norms grew.
        inputs: a batch in the structure of the models' inputs.

    Returns:
        Dict from the id of a parent's variable to its `Correction`.
    """
    places = [
        layers
        for _, layers in structure.lockstep([*parents, fused], skipped_attributes)
        if is_joint_norm(layers[0], layers[-1])
    ]
    seen = [
        observe(parent, inputs, [layers[k] for layers in places])
        for k, parent in enumerate(parents)
    ]
    found = {}
    for layers in places:
        calls = [seen[k][id(layer)] for k, layer in enumerate(layers[:-1])]
        if all(calls):
            found |= _norm_corrections(layers[:-1], calls)
    return found


def is_joint_norm(layer: keras.Layer, grown: keras.Layer) -> bool:
    """Whether a norm grew and has one statistic for all parents' features."""
    rule = registry.find_for_weights(layer)
    if rule is None or rule.norm is None or is_block_norm(grown):
        return False
    return [v.shape for v in layer.variables] != [v.shape for v in grown.variables]


def _norm_corrections(layers, calls):
    """Corrections of one norm, from the inputs that the parents' norms were given."""
    norm = registry.find_for_weights(layers[0]).norm
    centered = norm.statistic == "mean_variance"
    # (parents) arrays of shape (tokens, features)
    inputs = [
        np.concatenate([x.reshape(-1, x.shape[-1]) for x, _ in own]).astype("float64")
        for own in calls
    ]
    if len({len(x) for x in inputs}) > 1:
        raise FusionError(
            f"The norm {layers[0].name!r} is called on different numbers of tokens in "
            "the parents, so it cannot be calibrated. Use norms='joint'."
        )
    mean, deviation = _statistics(np.concatenate(inputs, axis=1), centered, layers[0])
    found = {}
    for layer, x in zip(layers, inputs, strict=True):
        own_mean, own_deviation = _statistics(x, centered, layer)
        factor = float(np.mean(deviation / own_deviation))
        variables = {v.name: v for v in structure.own_variables(layer)}
        scale, shift = variables.get(norm.scale), variables.get(norm.shift)
        if scale is not None:
            found[id(scale)] = Correction(factor, offset=norm.offset)
        if scale is not None and shift is not None:
            gamma = np.asarray(keras.ops.convert_to_numpy(scale)) + norm.offset
            moved = float(np.mean((mean - own_mean) / own_deviation))
            found[id(shift)] = Correction(shift=gamma * moved)
    return found


def _statistics(x, centered, layer):
    mean = x.mean(axis=1) if centered else np.zeros(len(x))
    square = np.mean((x - mean[:, None]) ** 2, axis=1)
    return mean, np.sqrt(square + getattr(layer, "epsilon", 1e-6))
