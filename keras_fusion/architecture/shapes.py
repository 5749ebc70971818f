"""Checks of a bigger model's shapes against what was expected, before anything changes."""

import keras

from keras_fusion.architecture import widths
from keras_fusion.architecture.parents import Parents
from keras_fusion.errors import FusionError
from keras_fusion.models import graph as graphs
from keras_fusion.models import host, samples
from keras_fusion.models.host import is_distributed


def check_grown(
    parents: Parents, model: keras.Model, found: widths.Widths, *, is_given: bool
) -> None:
    """Refuses a bigger model that has other shapes than it should.

    Args:
        parents: the `Parents`.
        model: the bigger model, built.
        found: what was found about its widths.
        is_given: bool. Whether the caller gave it; its widths may then be larger.

    Raises:
        FusionError: naming the layer, or the output.
    """
    if found.shapes and graphs.is_plain(model):
        _check_tensors(parents, model, found, is_given)
    elif graphs.is_graph_model(parents.first) and graphs.is_graph_model(model):
        _check_outputs(parents.first, parents.first.outputs, model.outputs)
    elif not is_distributed():
        _check_call(parents.first, model)


def _check_call(parent, model):
    """What models of a class make of one made-up batch has equal shapes."""
    try:
        inputs = samples.accepted(parent)
    except FusionError:
        return  # It takes no made-up batch; a real one is compared in training.
    with host.unchanging():
        before = parent(inputs, training=False)
        try:
            after = model(inputs, training=False)
        except Exception as error:
            raise FusionError(
                f"The bigger model {model.name!r} cannot be called as the model is "
                f"({type(error).__name__}: {error}). Its inputs must be the same."
            ) from error
    _check_outputs(parent, keras.tree.flatten(before), keras.tree.flatten(after))


def _check_tensors(parents, model, found, is_given):
    """Every tensor of the graph has the shape that its named axes tell."""
    made = widths.counterparts(parents.graph, model)
    reasons = found.reasons if is_given else ()
    for call in parents.graph.calls:
        other, shapes = made.get(call.key, (None, {}))
        for tensor in parents.graph.made_by(call):
            expected = found.shapes[tensor.key]
            shape = shapes.get(tensor.key[2])
            if shape is None or _fits(shape, expected, tensor.shape, is_given):
                continue
            raise FusionError(_text(call, tensor.shape, expected, shape, reasons))
    _check_outputs(parents.first, parents.first.outputs, model.outputs)


def _fits(shape, expected, old, is_given):
    """Whether a shape is the expected one; a given model may be larger where it grows."""
    return len(shape) == len(expected) and all(
        size == wanted or None in (size, wanted) or (is_given and wanted != before)
        for size, wanted, before in zip(shape, expected, old, strict=True)
    )


def _text(call, old, expected, shape, reasons):
    kept = expected == old
    must = f"but its shape must stay {old}" if kept else f"instead of {expected}"
    why = next(
        iter(reasons),
        "Its rule does not tell what it does to the widths: say in keras_fusion.register "
        "which key of the config sets the width of its output (`output_width`).",
    )
    return (
        f"{call.described} makes a tensor of shape {shape} in the bigger model, {must}. "
        f"{why}"
    )


def _check_outputs(parent, before, after):
    specs = [
        [(tuple(x.shape), keras.backend.standardize_dtype(x.dtype)) for x in outputs]
        for outputs in (before, after)
    ]
    if len(specs[0]) != len(specs[1]):
        raise FusionError(
            f"The model has {len(specs[0])} outputs, and the bigger one {len(specs[1])}. "
            "They must have the same."
        )
    for i, (old, new) in enumerate(zip(*specs, strict=True)):
        if old == new or (_is_backbone(parent) and _is_wider(old, new)):
            continue
        raise FusionError(
            f"Output {i} of the model would change from shape {old[0]} and dtype "
            f"{old[1]} to {new[0]} and {new[1]}. An output must keep its shape: leave "
            "out of `widths` the config key that sets its size, or name the key as "
            "`output_width` of the layer that makes it (keras_fusion.register)."
        )


def _is_backbone(model):
    """Whether a model is one of keras-hub's without a task, whose outputs are features."""
    return any(
        cls.__name__ == "Backbone" and cls.__module__.startswith("keras_hub.")
        for cls in type(model).__mro__
    )


def _is_wider(old, new):
    return old[0][:-1] == new[0][:-1] and old[1] == new[1]
