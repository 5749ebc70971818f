"""The effect of layers without a rule on named axes: what a trial or a model tells."""

import keras
import numpy as np

from keras_fusion.architecture.layer_axes import keep_rows, make_width, own_size, read
from keras_fusion.architecture.named_axes import Axes, Axis, constant
from keras_fusion.architecture.sites import Site
from keras_fusion.models import host, probe, rules, tree


def without_rule(site: Site) -> list[Axes]:
    """The axes of the outputs of a layer that has no rule."""
    layer, names = site.call.operation, site.names
    kept = all(names.is_kept(axis) for axes in site.inputs for axis in axes)
    if layer.weights and site.target is None:
        if not kept:
            raise rules.unregistered(layer, site.call.name, tree.own_variables(layer))
        return [constant(tensor.shape) for tensor in site.outputs]
    if layer.weights and site.target is not None:
        return _as_given(site, site.target[1])
    if kept:
        return [constant(tensor.shape) for tensor in site.outputs]
    return tried(site, "no rule says that it treats each feature by itself")


def _as_given(site: Site, shapes: dict[int, tuple]) -> list[Axes]:
    """The axes of what a layer makes in a bigger model that was given."""
    keep_rows(site)
    read(site)
    result = []
    for tensor in site.outputs:
        axes = constant(tensor.shape)
        size = tensor.shape[-1] if tensor.shape else None
        if tensor.is_float and shapes[tensor.key[2]][-1:] != (size,):
            sizes = [layer.output.shape[-1] for layer in site.layers]
            axes = (*axes[:-1], make_width(site, f"output {tensor.key[2]}", sizes))
        result.append(axes)
    return result


def tried(site: Site, cause: str) -> list[Axes]:
    """The axes of what a layer without weights makes, if a trial finds it harmless.

    Without a bigger model the layer itself is tried on the features of all parents.
    """
    name = type(site.call.operation).__name__
    advice = f"If it does, register its class: keras_fusion.register({name})"
    if site.target:
        cause = "in `into` it does not do to all features what it does to each parent's"
        advice = "Make it treat each feature by itself"
    if len(site.inputs) != 1 or len(site.outputs) != 1:
        return site.kept(cause, advice)
    keep_rows(site)
    (axes,), (output,) = site.inputs, site.outputs
    grown = site.target[0].operation if site.target else site.call.operation
    is_own = site.target or not type(grown).__module__.startswith("keras.")
    alone = is_own and output.shape and len(axes[-1]) == 1
    if not (alone and _is_harmless(site, axes[-1], grown)):
        return site.kept(cause, advice)
    return [(*constant(output.shape[:-1]), axes[-1])]


def _is_harmless(site: Site, axis: Axis, grown: keras.Layer) -> bool:
    """Whether a layer does to joined features what its siblings do to their own."""
    rng = np.random.default_rng(0)
    shape = [2 if size is None else size for size in site.call.inputs[0].shape[:-1]]
    sizes = [own_size(site, axis, k) for k in range(site.names.count)]
    parts = [rng.normal(size=(*shape, size)).astype("float32") for size in sizes]
    tensors = map(keras.ops.convert_to_tensor, (*parts, np.concatenate(parts, -1)))
    layers = (*site.layers, grown)
    try:
        with host.unchanging():  # A layer may hold a metric.
            *made, joint = [
                host.host(layer(tensor))
                for layer, tensor in zip(layers, tensors, strict=True)
            ]
        is_random = _draws(site.layers[0], parts[0], made[0])
    except Exception:  # Whatever a foreign layer raises: it cannot be called so.
        return False
    expected = np.concatenate(made, -1)
    # What a layer draws at random for more features cannot be compared.
    same = expected.shape == joint.shape and (
        is_random or np.allclose(expected, joint, atol=1e-5)
    )
    return same and [part.shape[-1] for part in parts] == [m.shape[-1] for m in made]


def _draws(layer: keras.Layer, part: np.ndarray, made: np.ndarray) -> bool:
    """Whether a layer makes something else with other seeds."""
    with host.assumed(probe.other_seeds(layer)), host.unchanging():
        again = host.host(layer(keras.ops.convert_to_tensor(part)))
    return not np.allclose(again, made, atol=1e-5)
