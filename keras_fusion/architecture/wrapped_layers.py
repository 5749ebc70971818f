"""The effect of recurrent layers, and of layers around a layer, on named axes."""

from typing import Any

import keras
from keras import layers

from keras_fusion.architecture.layer_axes import (
    check_activations,
    keep_rows,
    make,
    make_width,
    read,
)
from keras_fusion.architecture.named_axes import Axes, Axis, constant, total
from keras_fusion.architecture.sites import Site
from keras_fusion.models import tree
from keras_fusion.models.keras_rules import inner_width


def wrapped(site: Site) -> list[Axes]:
    """A layer around a layer, or two of one width (`Bidirectional`)."""
    layer: Any = site.call.operation
    inner = [_inner(sibling) for sibling in site.layers]
    key = inner_width(inner[0].get_config())
    if key is None:
        return site.kept(
            f"it holds a {type(inner[0]).__name__}, and no rule tells its width"
        )
    keep_rows(site)
    read(site, readers(layer))
    width = make_width(
        site, "width", [each.get_config()[key] for each in inner], key=key
    )
    check_activations(site, width, inner[0])
    tie_states(site, width)
    both = getattr(layer, "merge_mode", None) == "concat"
    axis = width * 2 if both else width
    result = []
    for place, tensor in enumerate(site.outputs):
        own = axis if place == 0 else width  # States follow, one by one.
        is_width = tensor.is_float and tensor.shape[-1] == total(own)
        axes = constant(tensor.shape)
        if not is_width:
            site.keep(width, "its output is not as wide as its config says")
        result.append((*axes[:-1], own) if is_width else axes)
    make(site, axis)
    return result


def tie_states(site: Site, width: Axis) -> None:
    """The states that are given are as wide as the layer."""
    for axes in site.inputs[1:]:
        if axes:
            site.same(axes[-1], width)


def readers(layer: Any) -> list[keras.Layer]:
    """The layers in a recurrent layer or a wrapper that read its input as it is."""
    if isinstance(layer, layers.Bidirectional):
        return [*readers(layer.forward_layer), *readers(layer.backward_layer)]
    if isinstance(layer, layers.RNN):
        return [layer.cell]
    if isinstance(layer, layers.TimeDistributed) and not tree.children(layer.layer):
        return [layer.layer]
    return []


def _inner(layer):
    """What a wrapper holds."""
    held = (getattr(layer, name, None) for name in ("forward_layer", "layer", "cell"))
    return next(inner for inner in held if inner is not None)
