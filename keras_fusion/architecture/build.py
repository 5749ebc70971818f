"""From parents to the bigger model: its architecture, with untrained weights.

The bigger model comes from the parents' configs, with each width the sum of theirs,
so that it is an ordinary Keras model that saves and loads without keras_fusion.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras

from keras_fusion.architecture import widths
from keras_fusion.architecture.chosen import Chosen
from keras_fusion.architecture.grown_configs import config_of, grown_config
from keras_fusion.architecture.parents import Parents
from keras_fusion.architecture.shapes import check_grown
from keras_fusion.errors import FusionError
from keras_fusion.models import graph as graphs
from keras_fusion.models import probe, rules, tree
from keras_fusion.models.host import is_distributed
from keras_fusion.models.private import is_optional
from keras_fusion.models.stock import stock_class


def build(
    parents: Parents,
    into: keras.Model | Callable[[], keras.Model] | None = None,
    *,
    block_norms: bool = False,
    capacity: float = 1.0,
    epsilon_divisor: float | None = None,
    chosen: Chosen | None = None,
) -> tuple[keras.Model, widths.Widths]:
    """Builds the model that the parents will be fused into.

    Args:
        parents: the `Parents`.
        into: a built model to fuse into, or a function without arguments that builds
            one; for models that have no config.
        block_norms: bool. Whether norms over what grew get one statistic a parent.
        capacity: float of at least 1. How much larger than the sum of the parents each
            width is to be.
        epsilon_divisor: float. What the epsilons of joint norms are divided by. Defaults
            to `capacity`, since new capacity that starts at zero lowers what they are
            added to.
        chosen: which widths grow; by default all.

    Returns:
        The model, built, with fresh weights, and where the parents' features lie.

    Raises:
        FusionError: if a class has no config or no rule, with the way out.
    """
    target = None if into is None else _given(into, parents)
    found, chosen = widths.Widths(), chosen or Chosen()
    if parents.is_plain:
        found = _analysed(parents, capacity, target, chosen)
    found.chosen = chosen
    found.block_norms, found.capacity = block_norms, capacity
    found.analysed = parents.is_plain
    found.epsilon_divisor = capacity if epsilon_divisor is None else epsilon_divisor
    model = _grow_model(parents.models, found) if target is None else target
    chosen.check_hits(found.reasons)
    if not (model.built and model.weights):
        _build_weights(model, parents.first)
    if target is not None:
        parents.check_given(model)
    elif not chosen.is_all:
        _check_larger(parents.first, model, found)
    check_grown(parents, model, found, is_given=target is not None)
    return model, found


def _given(into, parents):
    """The bigger model that the caller gives."""
    model = into if isinstance(into, keras.Model) else into()
    if not isinstance(model, keras.Model):
        raise FusionError(
            "`into` must be a keras.Model or a function that returns one. "
            f"Received: into={into!r}, which gave {type(model).__name__}."
        )
    if any(model is parent for parent in parents.models):
        raise FusionError(
            "`into` is one of the parents. The fused model must be a new one; pass a "
            "function that builds it."
        )
    return model


def _check_larger(parent, model, found):
    """Refuses a choice of widths of which none can grow."""
    if [v.shape for v in model.variables] == [v.shape for v in parent.variables]:
        raise FusionError(
            "None of the widths chosen can grow. "
            + (found.reasons[0] if found.reasons else "All must stay.")
        )


def _grow_model(models, found):
    """The grown counterpart of whole models; Keras's own errors become ours."""
    try:
        return _grow(models, found)
    except FusionError:
        raise
    except Exception as error:
        raise FusionError(
            f"The bigger {type(models[0]).__name__} {models[0].name!r} could not be built: "
            f"{error} Some layer holds a width that its config does not tell. Register "
            "its class with that key among `widths`, or pass the bigger model as `into`."
        ) from error


def _analysed(
    parents: Parents,
    capacity: float,
    target: keras.Model | None,
    chosen: Chosen,
) -> widths.Widths:
    """Where the parents' features lie, as far as the graph tells.

    In a model that was built elsewhere (`into`) the shapes tell it too. Copies of one
    model are then compared with the result; of distinct parents the mean is not known.
    """
    try:
        return widths.analyse(parents, capacity, target, chosen)
    except Exception as error:
        if target is None and isinstance(error, FusionError):
            raise
        if target is None:
            raise FusionError(
                f"The widths of {parents.first.name!r} cannot be told "
                f"({type(error).__name__}: {error}). Build the bigger model yourself and "
                "pass it as `into`."
            ) from error
        if parents.copies:
            return widths.Widths()
        text = str(error).partition(" Build the bigger")[0].partition(" or pass the")[0]
        raise FusionError(
            f"{text} Nor do distinct parents in the model passed as `into` tell where "
            "their features lie behind it, so that their mean could not be checked. "
            "Write that layer as one whose features stay apart."
        ) from error


def _grow(layers, found):
    """The grown counterpart of corresponding layers or models, built once."""
    if id(layers[0]) not in found.made:
        found.made[id(layers[0])] = _grown(layers, found)
    return found.made[id(layers[0])]


def _grown(layers, found):
    first = layers[0]
    if not isinstance(first, keras.Layer):  # an operation such as `x + y`
        return _as_it_is(first, found)
    if graphs.is_plain(first):
        return _grow_graph(layers, found)
    rule = rules.find(first)
    if rule is None:
        return _copy_weightless(first, found)
    return _from_config(first, _grown_config(layers, rule, found))


def regrown(model: keras.Model, found: widths.Widths) -> keras.Model:
    """A new model of a model's widths, with what `found` says changed."""
    grown = _grow([model], found)
    if not (grown.built and grown.weights):
        _build_weights(grown, model)
    return grown


def _grow_graph(models, found):
    first = models[0]
    siblings = widths.siblings_of(models)
    inputs = _grown_inputs(first, found)
    if isinstance(first, keras.Sequential):
        grown = [_grow(siblings[id(layer)], found) for layer in first.layers]
        return keras.Sequential(inputs + grown, name=first.name)
    # Cloned from an uncompiled twin: clone_model would compile the clone as well.
    twin = keras.Model(first.input, first.output, name=first.name)
    grown = keras.models.clone_model(
        twin,
        input_tensors=keras.tree.pack_sequence_as(first.input, inputs),
        clone_function=lambda op: _grow(siblings.get(id(op), (op,)), found),
        call_function=_caller(found),
    )
    if type(first) is graphs.functional_class():
        return grown
    return type(first)(grown.input, grown.output, name=first.name)


def _caller(found):
    """The function that calls the grown operations.

    A concatenation gets some inputs once for each parent.
    """
    counts = {}
    for (key, place), count in found.repeated.items():
        counts.setdefault(key, {})[place] = count

    def call(operation, *args, **kwargs):
        own = next((k for k in counts if found.made.get(k) is operation), None)
        if own is not None:
            inputs = [
                x for i, x in enumerate(args[0]) for _ in range(counts[own].get(i, 1))
            ]
            args = (inputs, *args[1:])
        return operation(*args, **kwargs)

    return call


def _grown_inputs(model, found):
    """New inputs; those of a nested model may be wider."""
    placed = found.inputs.get(id(model), [None] * len(model.inputs))
    return [
        keras.Input(
            batch_shape=(*t.shape[:-1], p.size) if p else t.shape,
            dtype=t.dtype,
            name=t.name,
            sparse=t.sparse,
            ragged=t.ragged,
            optional=is_optional(t),
        )
        for t, p in zip(model.inputs, placed, strict=True)
    ]


def _copy_weightless(layer, found):
    if layer.weights:
        raise rules.unregistered(layer, layer.name, tree.own_variables(layer))
    return _as_it_is(layer, found)


def _as_it_is(operation, found):
    """A layer or operation without weights, of which only constants may change."""
    changes = found.overrides.get(id(operation), {})
    return _from_config(operation, config_of(operation) | changes)


def _grown_config(layers, rule, found):
    config = grown_config(layers, rule, found)
    for key in rule.nested:
        config[key] = _grown_serialized([getattr(x, key) for x in layers], found)
    return config


def _grown_serialized(models, found):
    """A nested model's serialized form, grown, for the outer class to build anew."""
    rule, found = rules.find(models[0]), dataclasses.replace(found, analysed=False)
    if rule is None or graphs.is_plain(models[0]):
        serialized = _serialized(_grow(models, found))
    else:  # Without building it twice.
        serialized = _serialized(models[0])
        serialized["config"] = _grown_config(models, rule, found)
    dropped = ("build_config", "compile_config")
    return {k: v for k, v in serialized.items() if k not in dropped}


def _serialized(model: keras.Model) -> dict[str, Any]:
    return dict(keras.saving.serialize_keras_object(model))  # pyright: ignore


def _from_config(layer, config):
    try:
        return stock_class(layer).from_config(config)
    except Exception as error:
        raise FusionError(
            f"{type(layer).__name__} {layer.name!r} could not be built with the grown "
            f"config {config}: {error} Correct its rule, or pass the bigger model as "
            "`into`."
        ) from error


def _build_weights(model, like):
    """Creates the weights of a subclassed model, by a call on inputs like its parent's."""
    try:
        inputs = probe.batch(like)
        if is_distributed():  # Without values to compute with.
            inputs = keras.tree.map_structure(
                lambda x: keras.KerasTensor(x.shape, str(x.dtype)), inputs
            )
        model(inputs)
    except Exception as error:
        raise FusionError(
            f"The bigger {type(model).__name__} could not be built by a call on inputs "
            f"like its parent's: {error} Call it once on a batch and pass it as `into`."
        ) from error
