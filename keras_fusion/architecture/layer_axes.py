"""What a layer reads and makes: its axes of features, equal at all its calls."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_fusion.architecture.named_axes import Axis, Width, total
from keras_fusion.architecture.sites import PROJECT, Site
from keras_fusion.models import host, tree


def keep_rows(site: Site) -> None:
    """Keeps all axes but the last one, and those of what holds no features."""
    for tensor, axes in zip(site.call.inputs, site.inputs, strict=True):
        for axis in axes[:-1] if tensor.is_float else axes:
            site.keep(axis, "the features are on another axis than its last", PROJECT)


def make_width(
    site: Site,
    which: str,
    sizes: Sequence[int],
    must_grow: str | None = None,
    key: str | None = None,
    kind: str = "feed_forward",
) -> Axis:
    """The axis of the width that a layer sets, under the layer's name.

    Args:
        site: the layer's call.
        which: which of its widths it is.
        sizes: its size in each parent.
        must_grow: why it cannot stay, if it cannot.
        key: the key of its config that sets it.
        kind: what it is for, as long as it is not a residual stream.
    """
    keys = (site.call.name,) if key is None else (site.call.name, key)
    asked = site.known.chosen.size(*keys)
    grown = round(sum(sizes) * site.known.capacity) if asked is None else asked
    # What is inside of a composite lies side by side.
    can_be_cut = which == "width" and not tree.children(site.layers[0])
    width = Width(
        site.call.name, tuple(sizes), grown, must_grow, can_be_cut, keys, kind
    )
    axis = site.names.new((which, id(site.layers[0])), width)
    if isinstance(site.layers[0], keras.layers.Embedding):
        site.mark_stream(axis)
    return axis


def check_activations(site: Site, width: Axis, inner: Any = None) -> None:
    """Keeps the width of a layer, or of one in it, whose activations mix the features."""
    for name in ("activation", "recurrent_activation"):
        function = getattr(inner or site.call.operation, name, None)
        if not acts_by_feature(function):
            site.names.keep(
                width,
                f"The activation {activation_name(function)!r} of layer "
                f"{site.call.name!r} mixes the features of one parent with those of "
                "another. Use one that treats each feature by itself.",
            )


def activation_name(function: Any) -> str:
    """The name of an activation."""
    return getattr(function, "__name__", str(function))


def acts_by_feature(function: Any) -> bool:
    """Whether an activation treats each feature by itself (a softmax does not)."""
    if not callable(function):
        return True
    features = np.linspace(-2.0, 2.0, 12, dtype="float32").reshape(2, 6)
    try:
        joint = host.host(function(keras.ops.convert_to_tensor(features)))
        parts = [
            host.host(function(keras.ops.convert_to_tensor(part)))
            for part in np.split(features, 2, axis=-1)
        ]
    except Exception:  # A gate halves its features, and three cannot be halved.
        return False
    joined = np.concatenate(parts, axis=-1)
    return joined.shape == joint.shape and np.allclose(joint, joined, atol=1e-5)


def read(site: Site, inner: Sequence[keras.Layer] = ()) -> None:
    """Notes the axis of the features that a layer reads.

    Args:
        site: the layer's call.
        inner: the layers in it that read its input as it is. What is inside of other
            composites reads the parents side by side.
    """
    features = [
        axes
        for tensor, axes in zip(site.call.inputs, site.inputs, strict=True)
        if tensor.is_float
    ]
    if tree.children(site.call.operation):
        for axes in features[1:] if inner else features:
            if len(axes[-1]) > 1:
                site.keep(
                    axes[-1], "it reads features that do not lie side by side", PROJECT
                )
    if features and len(features[0]):
        for layer in (site.layers[0], *inner):
            _note(site, site.known.entries, features[0][-1], layer)


def make(site: Site, axis: Axis) -> None:
    """Notes the axis of the features that a layer makes."""
    _note(site, site.known.outputs, axis, site.layers[0])


def _note(site: Site, noted: dict[int, Axis], axis: Axis, layer: keras.Layer) -> None:
    """The axis at a layer, which is the same at all its calls."""
    known = noted.setdefault(id(layer), axis)
    reason = (
        f"{site.call.described} is called on features that grow and on others that stay "
        "or are laid out otherwise. Use a layer for each."
    )
    site.names.same(known, axis, reason, "nature")


def own_size(site: Site, axis: Axis, k: int) -> int:
    """The length of an axis in one of the parents."""
    placement = site.names.placement(axis)
    return total(axis) or 0 if placement is None else len(placement.blocks[k])
