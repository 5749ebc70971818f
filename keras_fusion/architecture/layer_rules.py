"""The effect of layers that a rule describes on named axes."""

from collections.abc import Sequence

import keras
import numpy as np
from keras import layers

from keras_fusion.architecture import operations as effects
from keras_fusion.architecture import rearrangements as places
from keras_fusion.architecture.chosen import kind_of_key
from keras_fusion.architecture.layer_axes import (
    check_activations,
    keep_rows,
    make,
    make_width,
    own_size,
    read,
)
from keras_fusion.architecture.named_axes import Axes, Axis, Width, constant, total
from keras_fusion.architecture.sites import PROJECT, Site
from keras_fusion.architecture.unruled_layers import tried
from keras_fusion.architecture.wrapped_layers import readers, tie_states, wrapped
from keras_fusion.models import graph as graphs
from keras_fusion.models import tree
from keras_fusion.models.keras_rules import einsum_letters, grow_wrapped
from keras_fusion.models.rules import Rule

_CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D)


def is_reverse(call: graphs.Call) -> bool:
    """Whether the call is an embedding used backwards, as a readout."""
    # By its attribute: keras-hub had a class of its own before Keras took it over.
    return bool(call.kwargs.get("reverse")) and hasattr(call.operation, "tie_weights")


def sets_its_width(call: graphs.Call, rule: Rule) -> bool:
    """Whether a layer's config, and not its input, says how wide its output is."""
    if rule.output_width is not None:
        return call.config.get(rule.output_width) is not None
    return bool(rule.widths) and not call.features


def by_rule(site: Site, rule: Rule) -> list[Axes]:
    """The axes of the outputs of a layer that has a rule."""
    layer = site.call.operation
    if site.target is not None and rule.refuse and not layer.weights:
        return tried(site, rule.refuse)
    if rule.refuse:
        return site.kept(rule.refuse, *_ways_out(layer))
    if getattr(layer, "data_format", None) == "channels_first":
        return site.all_kept(
            f"Layer {site.call.name!r} has data_format='channels_first'; the widths must "
            "be the last axis. Use data_format='channels_last'."
        )
    if getattr(layer, "depth_multiplier", 1) != 1 and not rule.widths:
        return site.kept(
            f"it has depth_multiplier={layer.depth_multiplier}, so that its output is as "
            "many times as wide as its input"
        )
    if _is_grouped(layer):
        return _grouped(site, rule)
    if rule.merge == "concatenate":
        return places.concatenation(site)
    if rule.merge == "all":
        return [effects.joined(site, site.inputs)]
    if is_reverse(site.call):
        return _reverse(site, rule)
    if isinstance(layer, layers.EinsumDense):
        return _einsum(site)
    if isinstance(layer, (layers.MultiHeadAttention, layers.GroupQueryAttention)):
        return _attention(site, rule)
    if rule.grow is grow_wrapped:
        return wrapped(site)
    if sets_its_width(site.call, rule):
        return _projection(site, rule)
    return _as_wide(site, rule)


def _ways_out(layer):
    """A function may be given in its bigger form."""
    is_function = isinstance(layer, layers.Lambda)
    return ["Or pass the bigger model as `into`"] if is_function else []


# Layers that set the width of their output.


def _projection(site: Site, rule: Rule) -> list[Axes]:
    layer = site.call.operation
    # A dense layer computes each row by itself; the rows may then be the features of
    # copies (a mixer). Those of distinct parents would each get the other's kernel too.
    rows = isinstance(layer, layers.Dense) and site.known.copies
    if not rows:
        keep_rows(site)
    read(site, readers(layer))
    width = _new_width(site, rule)
    check_activations(site, width)
    if isinstance(layer, layers.RNN):
        tie_states(site, width)
    result = []
    for tensor in site.outputs:
        axes = constant(tensor.shape)
        if rows:
            axes = (*site.inputs[0][:-1], axes[-1])
        if tensor.is_float and tensor.shape[-1] == total(width):
            axes = (*axes[:-1], width)
            make(site, width)
            _check_common_weights(site, rule, width)
        else:
            site.keep(width, "its output is not as wide as its config says")
        result.append(axes)
    return result


def _grouped(site: Site, rule: Rule) -> list[Axes]:
    """A convolution in groups, each of which makes as many features as it reads."""
    axis = site.inputs[0][-1]
    if total(axis) == site.option("filters"):
        check_activations(site, axis)
        return _as_wide(site, rule)
    cause = f"it has groups={site.option('groups')}, and makes more or fewer features"
    result = _projection(site, rule)
    for axes in (*site.inputs, *result):
        site.keep(axes[-1], f"{cause} than it reads")
    return result


def _new_width(site: Site, rule: Rule) -> Axis:
    """The width that a layer sets, under the layer's name."""
    key = rule.output_width
    kind = "feed_forward" if key is None or rule.roles else kind_of_key(key)
    return make_width(site, "width", _sizes(site.layers, rule), key=key, kind=kind)


def _sizes(siblings: Sequence[keras.Layer], rule: Rule) -> list[int]:
    if rule.output_width is None:
        builds = (layer.get_build_config() or {} for layer in siblings)
        shapes = [build["input_shape"] for build in builds]
        pairs = zip(siblings, shapes, strict=True)
        return [layer.compute_output_shape(shape)[-1] for layer, shape in pairs]
    return [_last(layer.get_config()[rule.output_width]) for layer in siblings]


def _last(size):
    return size[-1] if isinstance(size, (list, tuple)) else size


def _reverse(site: Site, rule: Rule) -> list[Axes]:
    """An embedding used backwards: it reads as many features as it makes."""
    keep_rows(site)
    width, (axes, *_) = _new_width(site, rule), site.inputs
    site.same(axes[-1], width)
    read(site)
    return [constant(tensor.shape) for tensor in site.outputs]


def _einsum(site: Site) -> list[Axes]:
    """Letters are axes; the first one that only kernel and output have is the width."""
    layer = site.call.operation
    inputs, kernel, output = einsum_letters(layer.equation)
    axes, shape = site.inputs[0], site.outputs[0].shape
    ahead = layer.equation.startswith("...")
    own = dict(zip(inputs, axes[-len(inputs) :] if ahead else axes, strict=False))
    places = range(len(shape))
    made = dict(zip(output, places[-len(output) :] if ahead else places, strict=False))
    for axis in axes[: -len(inputs)] if ahead else ():
        site.keep(axis, "the features are on another axis than its last", PROJECT)
    for letter, axis in own.items():
        if letter in output and (letter in kernel or not site.known.copies):
            site.keep(axis, "it has a kernel of its own for each entry of an axis")
        elif letter not in output and len(axis) > 1 and letter != inputs[-1]:
            site.keep(axis, "it reads features that do not lie side by side", PROJECT)
    summed = [letter for letter in inputs if letter not in output]
    if len(summed) == 1 and summed == [inputs[-1]]:
        read(site)
    else:
        for letter in summed:
            if len(own[letter]) > 1:
                site.keep(own[letter], "it sums over several axes at once", PROJECT)
    result = list(constant(shape))
    for letter, axis in own.items():
        if letter in made and not site.names.is_kept(axis):
            result[made[letter]] = axis
    new = [letter for letter in output if letter not in inputs]
    if new:
        alone = len(new) == 1 and not set(inputs) & set(kernel) & set(output)
        width = _einsum_width(site, made[new[0]], alone)
        result[made[new[0]]] = width
        if not site.known.copies and new[0] not in (layer.bias_axes or new[0]):
            site.keep(width, "its bias is one for all entries of the axis that grows")
    own_shape = _shape(layer)
    sizes = [site.names.size(axis) for axis in result][-len(own_shape) :]
    pairs = zip(own_shape, sizes, strict=True)
    site.override({"output_shape": tuple(n if old else old for old, n in pairs)})
    return [tuple(result)]


def _einsum_width(site: Site, place: int, is_alone: bool) -> Axis:
    rank = len(site.outputs[0].shape)
    sizes = [_shape(layer)[place - rank] for layer in site.layers]
    kind = "feed_forward" if place == rank - 1 else "heads"
    width = make_width(site, "width", sizes, key="output_shape", kind=kind)
    if place == rank - 1:
        check_activations(site, width)
        if is_alone:
            make(site, width)
    return width


def _shape(layer):
    shape = layer.get_config()["output_shape"]
    return shape if isinstance(shape, (list, tuple)) else (shape,)


def _attention(site: Site, rule: Rule) -> list[Axes]:
    """Heads side by side; the scores have one axis for them."""
    keep_rows(site)
    read(site)
    width = site.inputs[0][-1]
    if sets_its_width(site.call, rule):
        width = _new_width(site, rule)
    result = []
    for tensor in site.outputs:
        axes = list(constant(tensor.shape))
        if tensor.key[2] == 0:
            axes[-1] = width
            make(site, width)
        else:
            axes[1] = _heads(site, rule)
        result.append(tuple(axes))
    return result


def _heads(site: Site, rule: Rule) -> Axis:
    sizes = [layer.get_config()[rule.widths[0]] for layer in site.layers]
    return make_width(
        site,
        "heads",
        sizes,
        f"{site.call.described} returns its attention scores, and with it grows the "
        "number of heads, which is an axis of theirs.",
        key=rule.widths[0],
        kind="heads",
    )


# Layers whose output is as wide as their input.


def _as_wide(site: Site, rule: Rule) -> list[Axes]:
    keep_rows(site)
    read(site)
    source = _source(site)
    if source is None:
        return [constant(tensor.shape) for tensor in site.outputs]
    axis = source[-1]
    operation = site.call.operation
    over_rows = _normalizes_rows(site, rule, len(source))
    # One statistic of each row, over the features of copies, is that of one of them.
    is_common = over_rows and (
        site.names.count == 1 if rule.norm is not None else site.known.are_whole_copies
    )
    # One mean and one variance of all features.
    is_scalar = isinstance(operation, layers.Normalization) and not site.option("axis")
    if isinstance(operation, layers.GroupNormalization) or _is_grouped(operation):
        _group(site, axis)
    elif is_common or is_scalar:
        pass  # The features share the weights.
    elif "axis" in site.call.config and not _is_last(site, len(source)):
        site.keep(axis, f"its axis is {site.option('axis')}, not the last one alone")
    elif rule.norm is not None and not site.names.is_grown(axis):
        site.keep(axis, "its statistic is over features that grow and others that stay")
    if isinstance(operation, layers.Normalization) and np.ndim(site.option("mean")):
        site.keep(axis, "it holds the mean and variance of the parents' features")
    if rule.roles is not None and operation.weights and not over_rows:
        _weigh(site, axis)
        _check_common_weights(site, rule, axis)
        if key := _key_of_features(site, rule, total(axis)):
            # It grows as its input does, or not at all.
            site.override({key: site.names.size(axis)})
    result = []
    for tensor in site.outputs:
        axes = constant(tensor.shape)
        if tensor.is_float and axes and tensor.shape[-1] == total(axis):
            axes = (*axes[:-1], axis)
        result.append(axes)
    make(site, axis)
    return result


def _key_of_features(site: Site, rule: Rule, features: int | None) -> str | None:
    """The key that says how many features a layer scales; `None` where none does.

    It is the only width of a layer that has nothing but a vector of them. Another width
    may be as large by chance.
    """
    if len(rule.widths) != 1 or rule.output_width is not None:
        return None
    [key] = rule.widths
    shapes = {tuple(variable.shape) for variable in site.call.operation.weights}
    return key if site.option(key) == features and shapes == {(features,)} else None


def _normalizes_rows(site: Site, rule: Rule, rank: int) -> bool:
    """Whether a layer is a norm with weights for axes that are not that of the features."""
    axes = site.option("axis")
    listed = axes if isinstance(axes, (list, tuple)) else [axes]
    is_norm = rule.norm is not None or isinstance(
        site.call.operation, layers.BatchNormalization
    )
    return is_norm and {-1, rank - 1}.isdisjoint(listed)


def _source(site: Site) -> Axes | None:
    """The axes of the first input that is as wide as the output."""
    shape = site.outputs[0].shape
    for tensor, axes in zip(site.call.inputs, site.inputs, strict=True):
        if tensor.is_float and axes and shape and total(axes[-1]) == shape[-1]:
            return axes
    return None


def _is_last(site: Site, rank: int) -> bool:
    axis = site.option("axis")
    axes = axis if isinstance(axis, (list, tuple)) else [axis]
    return [a % rank for a in axes if a is not None] == [rank - 1]


def _is_grouped(layer: keras.Layer) -> bool:
    """Whether a layer is a convolution of several groups of features."""
    return isinstance(layer, _CONVOLUTIONS) and layer.groups > 1


def _group(site: Site, axis: Axis) -> None:
    """Groups keep their size, so that each is of one parent."""
    layer, names = site.call.operation, site.names
    if site.option("axis") not in (None, -1, len(site.inputs[0]) - 1):
        site.keep(axis, "its axis is not the last one")
    sizes = {
        size // sibling.groups
        for k, sibling in enumerate(site.layers)
        for size in [own_size(site, axis, k)]
    }
    size = total(axis) // layer.groups
    if len(sizes) > 1 or any(part.size % size for part in axis):
        site.keep(axis, "its groups would hold features of several parents or layers")
    elif names.size(axis) % size:
        site.keep(axis, "the factor cuts one of its groups")
    filters = {"filters": names.size(axis)} if _is_grouped(layer) else {}
    site.override({"groups": names.size(axis) // size} | filters)


def _check_common_weights(site: Site, rule: Rule, axis: Axis) -> None:
    """Distinct parents have no one weight for all of their features."""
    layer = site.call.operation
    roles = rule.variable_roles(layer)
    for variable in tree.own_variables(layer) if not site.known.copies else ():
        own = roles.get(tree.stable_name(variable), ("out",))
        if variable.trainable and not any(own):
            cause = f"its weight {variable.name!r} is one for all features"
            site.keep(axis, f"{cause}, and the parents' differ")


def _weigh(site: Site, axis: Axis) -> None:
    """Distinct parents have weights of their own for features that stay."""
    names, known = site.names, site.known
    if known.copies or names.is_kept(axis):
        return
    for part in axis:
        if not names.stays(part):
            continue
        if part.name is None and part.origin is not None and site.target is None:
            count, size = names.count, part.size
            names.new(part.origin, Width(site.call.name, (size,) * count, size * count))
            known.repeated.add(part.origin)
            names.changed = True
        else:
            site.keep(axis, "the parents' weights of features that stay differ")
