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

import contextlib
import dataclasses

import keras
import numpy as np

from keras_fusion.errors import FusionError
from keras_fusion.models import host, probe, rules, tree
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


def corrections(parents: list[keras.Model], fused: keras.Model, inputs) -> dict:
    """Measures, on the parents, what their joint norms will need.

    Args:
        parents: K distinct built models.
        fused: the bigger model, for which norms grew.
        inputs: a batch in the structure of the models' inputs.

    Returns:
        Dict from the id of a parent's variable to its `Correction`.
    """
    places = _joint_norms([*parents, fused])
    found, seen = {}, []
    for k, parent in enumerate(parents):
        norms = [layers[k] for layers in places]
        with _centered_writers(parent, norms, inputs) as writers:
            seen.append(observe(parent, inputs, norms))
        found |= {id(v): Correction(centered=True) for v in writers}
    for layers in places:
        calls = [seen[k][id(layer)] for k, layer in enumerate(layers[:-1])]
        if all(calls):
            for key, correction in _norm_corrections(layers[:-1], calls).items():
                centered = key in found and found[key].centered
                found[key] = dataclasses.replace(correction, centered=centered)
    return found


def for_new_capacity(model: keras.Model, fused: keras.Model, count: int) -> dict:
    """What the joint norms need when features are added that deviate from nothing.

    The new features take part in the norms' mean of squares, which falls by the same
    factor for all tokens; gamma falls by its root. What a norm adds to it, where it could
    not be made smaller as well, is measured on a batch.

    Args:
        model: the model that is grown.
        fused: the model with copies of it and new capacity.
        count: int. How many copies.

    Returns:
        Dict from the id of a variable of `model` to its `Correction`.
    """
    places = _joint_norms([model, fused])
    seen = observe(model, probe.accepted(model), [layer for layer, _ in places])
    found = {}
    for layer, grown in places:
        norm = rules.find_for_weights(layer).norm
        variables = zip(layer.variables, grown.variables, strict=True)
        for variable, larger in variables:
            if variable.name == norm.scale and seen[id(layer)]:
                used = count * variable.shape[-1] / larger.shape[-1]
                x = _tokens(seen[id(layer)])
                own = _statistics(x, norm.centered, layer)[1]
                square = used * (own**2 - _epsilon(layer)) + _epsilon(grown)
                factor = float(np.mean(np.sqrt(square) / own))
                found[id(variable)] = Correction(factor, offset=norm.offset)
    return found


def _joint_norms(models):
    """The corresponding norms of the parents and the bigger model that became joint."""
    return [
        layers
        for _, layers in tree.lockstep(models)
        if is_joint_norm(layers[0], layers[-1])
    ]


def _tokens(calls):
    """The inputs of all calls of a norm, of shape (tokens, features)."""
    rows = [x.reshape(-1, x.shape[-1]) for x, _ in calls]
    return np.concatenate(rows).astype("float64")


def _epsilon(layer):
    return getattr(layer, "epsilon", 1e-6)


@contextlib.contextmanager
def _centered_writers(parent, norms, inputs):
    """Centres, for the while, the weights that write to what only layer norms read."""
    known = [rules.find_for_weights(norm) for norm in norms]
    widths = {
        norm.variables[0].shape[-1]
        for norm, rule in zip(norms, known, strict=True)
        if rule.norm.centered
    }
    own = [
        (variable, np.array(host.read(variable)))
        for variable in parent.trainable_variables
        if len(variable.shape) and variable.shape[-1] in widths
    ]
    few = keras.tree.map_structure(lambda x: x[:2], inputs)
    expected = probe.outputs(parent, few)
    values = [(v, _centered(value)) for v, value in own if value.any()]

    def change():
        return probe.change(expected, probe.outputs(parent, few))

    try:
        yield probe.keep_harmless(change, values, tolerance=1e-5)
    finally:
        for variable, value in own:
            host.write(variable, value)


def _centered(value):
    return value - value.mean(axis=-1, keepdims=True)


def is_joint_norm(layer: keras.Layer, grown: keras.Layer) -> bool:
    """Whether a norm grew and has one statistic for all parents' features."""
    rule = rules.find_for_weights(layer)
    if rule is None or rule.norm is None or is_block_norm(grown):
        return False
    return [v.shape for v in layer.variables] != [v.shape for v in grown.variables]


def _norm_corrections(layers, calls):
    """Corrections of one norm, from the inputs that the parents' norms were given."""
    norm = rules.find_for_weights(layers[0]).norm
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
