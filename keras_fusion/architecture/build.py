"""From parents to the bigger model: its architecture, with untrained weights.

The bigger model comes from the parents' configs, with each width the sum of theirs,
so that it is an ordinary Keras model that saves and loads without keras_fusion.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras

from keras_fusion.architecture import widths
from keras_fusion.architecture.parents import Parents
from keras_fusion.architecture.shapes import check_grown
from keras_fusion.errors import FusionError
from keras_fusion.models import graph as graphs
from keras_fusion.models import probe, rules, tree
from keras_fusion.models.block_norms import stock_config
from keras_fusion.models.host import is_distributed
from keras_fusion.models.private import is_optional
from keras_fusion.models.stock import is_block_norm, stock_class


def build(
    parents: Parents,
    into: keras.Model | Callable[[], keras.Model] | None = None,
    *,
    block_norms: bool = False,
    capacity: float = 1.0,
    epsilon_divisor: float | None = None,
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

    Returns:
        The model, built, with fresh weights, and where the parents' features lie.

    Raises:
        FusionError: if a class has no config or no rule, with the way out.
    """
    target = None if into is None else _given(into, parents)
    found = widths.Widths()
    if parents.is_plain:
        found = _analysed(parents, capacity, target)
    found.block_norms, found.capacity = block_norms, capacity
    found.analysed = parents.is_plain
    found.epsilon_divisor = capacity if epsilon_divisor is None else epsilon_divisor
    model = _grow_model(parents.models, found) if target is None else target
    if not (model.built and model.weights):
        _build_weights(model, parents.first)
    if target is not None:
        parents.check_given(model)
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
    parents: Parents, capacity: float, target: keras.Model | None
) -> widths.Widths:
    """Where the parents' features lie, as far as the graph tells.

    In a model that was built elsewhere (`into`) the shapes tell it too. Copies of one
    model are then compared with the result; of distinct parents the mean is not known.
    """
    try:
        return widths.analyse(parents, capacity, target)
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
    return _from_config(operation, _config(operation) | changes)


def _grown_config(layers, rule, found):
    first = layers[0]
    configs = [_config(layer) for layer in layers]
    fixed = id(first) in found.fixed
    _check_keys(first, rule, configs[0])
    if rule.refuse and rule.widths:
        raise FusionError(
            f"{type(first).__name__} {first.name!r} cannot grow: {rule.refuse}."
        )
    if rule.grow is not None:
        config = rule.grow(configs, fixed)
        twice = rule.grow(configs * 2, fixed)
        larger = _enlarged(config, twice, found.capacity, first.name)
        return {**larger, **found.overrides.get(id(first), {})}
    config: dict[str, Any] = dict(configs[0])
    changes = found.overrides.get(id(first), {})
    for key in rule.widths:
        if not (fixed and key == rule.output_width) and key not in changes:
            own = [c[key] for c in configs]
            total = {key: _sum(own)}
            config |= _enlarged(total, {key: _sum(own * 2)}, found.capacity, first.name)
    if not any(is_block_norm(layer) for layer in layers):  # It becomes one, too.
        config |= _scaled_epsilons(first, config, rule, found)
    if fixed and rule.widths and rule.output_width is None and not rule.nested:
        raise FusionError(
            f"{rule.cls} {first.name!r} makes an output of the model, whose size must "
            "stay. Say which key sets that size: keras_fusion.register(..., "
            "output_width=...)."
        )
    for key in rule.nested:
        config[key] = _grown_serialized([getattr(x, key) for x in layers], found)
    for key in rule.shared:
        config[key] = getattr(first, key)
    config |= changes
    return {k: v for k, v in config.items() if k not in rule.unset}


def _check_keys(layer, rule, config):
    missing = [k for k in (*rule.widths, *rule.nested) if k not in config]
    if missing:
        raise FusionError(
            f"The rule of {type(layer).__name__} names {missing}, which its config "
            f"does not have; it has {sorted(config)}. Correct the `widths` or `nested` "
            "of keras_fusion.register, or extend get_config()."
        )


def _config(layer):
    try:
        config = stock_config(layer) if is_block_norm(layer) else layer.get_config()
    except NotImplementedError as error:
        cls = type(layer).__name__
        raise FusionError(
            f"{cls} {layer.name!r} has no config, so a bigger one cannot be made of "
            "it. Give the class a get_config(), or pass the bigger model (or a "
            "function that builds it) as `into`."
        ) from error
    # Plain lists: one that Keras tracks would keep the old layer's weights alive.
    plain = {k: list(v) for k, v in config.items() if isinstance(v, list)}
    return config | plain


def _enlarged(value: Any, twice: Any, capacity: float, name: str, key=None) -> Any:
    """A config with what doubles for twice the parents made larger by a factor."""
    if value == twice or capacity == 1.0:
        return value
    if isinstance(value, dict):
        return {k: _enlarged(v, twice[k], capacity, name, k) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        pairs = zip(value, twice, strict=True)
        return tuple(_enlarged(v, t, capacity, name, key) for v, t in pairs)
    size = value * capacity
    if abs(size - round(size)) > 1e-6:
        raise FusionError(
            f"The factor makes {key}={value} of {name!r} to {size:g}, which is not whole. "
            "Choose a factor that fits the heads and widths."
        )
    return round(size)


def _scaled_epsilons(layer, config, rule, found):
    composite = bool(rule.widths) and not rule.roles
    has_norm = not found.block_norms and (rule.norm or composite)
    divisor = _epsilon_divisor(layer, found)
    if divisor == 1.0 or not has_norm:
        return {}
    keys = (k for k, v in config.items() if "eps" in k and isinstance(v, float))
    return {k: config[k] / divisor for k in keys}


def _epsilon_divisor(layer, found):
    """What the epsilon of a norm is divided by: 1 unless it reduces over what grew."""
    axes = getattr(layer, "axis", -1)
    if set(axes if isinstance(axes, (list, tuple)) else [axes]).isdisjoint(
        {-1, _rank(layer) - 1}
    ):
        return 1.0
    grew = id(layer) in found.entries or id(layer) in found.outputs
    return found.epsilon_divisor if grew or not found.analysed else 1.0


def _rank(layer):
    shape = (layer.get_build_config() or {}).get("input_shape") or ()
    return len(shape) if isinstance(shape, (list, tuple)) else 0


def _sum(values):
    if any(v is None for v in values):
        return values[0]
    if isinstance(values[0], (list, tuple)):
        return tuple(_sum(column) for column in zip(*values, strict=True))
    return sum(values)


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
