"""The effect of each kind of layer on named axes.

Keras's layers without weights are listed here; others are described by their rules.
"""

import numpy as np
from keras import layers

from keras_fusion.architecture import operations as effects
from keras_fusion.architecture import rearrangements as places
from keras_fusion.architecture.known_operations import KNOWN
from keras_fusion.architecture.layer_axes import activation_name, acts_by_feature
from keras_fusion.architecture.layer_rules import by_rule
from keras_fusion.architecture.named_axes import Axes, constant
from keras_fusion.architecture.operations import Effect
from keras_fusion.architecture.sites import MIXES, Site
from keras_fusion.architecture.unruled_layers import without_rule
from keras_fusion.models import rules
from keras_fusion.models.graph import Call


def effect_of(call: Call) -> Effect:
    """The effect of a call on the axes of its inputs."""
    operation = call.operation
    if isinstance(operation, str):
        return KNOWN.get(operation, _unknown)
    if type(operation) in _LAYERS:
        return _LAYERS[type(operation)]
    rule = rules.find(operation)
    return without_rule if rule is None else lambda site: by_rule(site, rule)


def _unknown(site: Site) -> list[Axes]:
    return site.kept(
        "it is not known whether it treats each feature by itself",
        "Write it with operations that are known, or in a layer class with a rule",
    )


def _passing(site: Site) -> list[Axes]:
    """Each entry by itself, as the first input has them."""
    return [site.inputs[0]] * len(site.outputs)


def _activation(site: Site) -> list[Axes]:
    axes, function = site.inputs[0], site.call.operation.activation
    if acts_by_feature(function):
        return [axes]
    name = activation_name(function)
    site.keep(axes[-1], f"its activation {name!r} mixes the features")
    return [(*axes[:-1], *constant(site.outputs[0].shape[-1:]))]


def _dropout(site: Site) -> list[Axes]:
    """A mask may be shared by all features; its shape follows them."""
    shape = site.option("noise_shape")
    if shape is not None:
        pairs = zip(shape, site.inputs[0], strict=True)
        grown = [
            size if size == 1 or site.names.is_kept(axis) else None
            for size, axis in pairs
        ]
        site.override({"noise_shape": tuple(grown)})
    return _passing(site)


def _rescaling(site: Site) -> list[Axes]:
    """A number for all, or one per feature, which stays."""
    numbers = (getattr(site.call.operation, name) for name in ("scale", "offset"))
    shapes = [constant(np.shape(number)) for number in numbers]
    for shape in shapes:
        effects.keep_beside(site, shape)
    return [effects.joined(site, [site.inputs[0], *shapes])]


def _masking(site: Site) -> list[Axes]:
    """What all features of one parent say, those of its copies say too."""
    axes = site.inputs[0]
    if not site.known.are_whole_copies:
        site.keep(axes[-1], "its mask tells whether all features have one value")
    return [axes]


def _positions(site: Site) -> list[Axes]:
    """Each feature by itself, over its positions."""
    (axes, *_), shape = site.inputs, site.outputs[0].shape
    place = 1 if site.option("data_format") == "channels_first" else len(shape) - 1
    own = 1 if place == 1 and len(shape) == len(axes) else len(axes) - 1
    own = 1 if site.option("data_format") == "channels_first" else own
    for i, axis in enumerate(axes):
        if i != own:
            site.keep(axis, "it joins the entries of this axis")
    result = list(constant(shape))
    result[place] = axes[own]
    return [tuple(result)]


def _dot(site: Site) -> list[Axes]:
    """One axis of each input is summed over."""
    axes = site.option("axes")
    pair = [axes, axes] if isinstance(axes, int) else list(axes)
    rest = []
    for operand, axis in zip(site.inputs, pair, strict=True):
        place = axis % len(operand)
        site.keep(operand[place], MIXES)
        rest.append(operand[:place] + operand[place + 1 :])
    result = (*rest[0], *rest[1][1:])
    return [result if len(result) > 1 else (*result, *constant((1,)))]


_POOLS = ("AveragePooling", "MaxPooling", "GlobalAveragePooling", "GlobalMaxPooling")
_POOLS += ("AdaptiveAveragePooling", "AdaptiveMaxPooling")
_POOLS += ("Cropping", "ZeroPadding", "UpSampling")

_LAYERS: dict[type, Effect] = {
    **dict.fromkeys(
        (
            layers.ActivityRegularization,
            layers.ELU,
            layers.GaussianDropout,
            layers.GaussianNoise,
            layers.Identity,
            layers.LeakyReLU,
            layers.ReLU,
            layers.SpatialDropout1D,
            layers.SpatialDropout2D,
            layers.SpatialDropout3D,
        ),
        _passing,
    ),
    **{
        getattr(layers, f"{name}{rank}D"): _positions
        for name in _POOLS
        for rank in (1, 2, 3)
    },
    **dict.fromkeys((layers.AlphaDropout, layers.Dropout), _dropout),
    **dict.fromkeys((layers.Softmax, layers.UnitNormalization), effects.along_axis),
    layers.Activation: _activation,
    layers.Dot: _dot,
    layers.Flatten: places.flatten,
    layers.Masking: _masking,
    layers.Permute: places.permute,
    **dict.fromkeys(
        (layers.CenterCrop, layers.RepeatVector, layers.Resizing), _positions
    ),
    layers.Rescaling: _rescaling,
    layers.Reshape: places.reshape,
}
