"""The configs of bigger layers: each width is the sum of the parents'."""

import types
from collections.abc import Sequence
from typing import Any

import keras

from keras_fusion.architecture.chosen import kind_of_key
from keras_fusion.architecture.widths import Widths
from keras_fusion.errors import FusionError
from keras_fusion.models import tree
from keras_fusion.models.block_norms import stock_config
from keras_fusion.models.rules import Rule
from keras_fusion.models.stock import is_block_norm


def grown_config(
    layers: Sequence[keras.Layer], rule: Rule, found: Widths
) -> dict[str, Any]:
    """The config of the bigger counterpart of corresponding layers.

    Raises:
        FusionError: naming the layer, for a width that cannot be as large.
    """
    first = layers[0]
    configs = [config_of(layer) for layer in layers]
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
            config |= _larger(first, rule, key, [c[key] for c in configs], found)
    _check_equal(first, rule, configs[0], config, found)
    becomes_block_norm = rule.norm and any(map(is_block_norm, layers))
    if not becomes_block_norm:
        config |= _scaled_epsilons(first, config, rule, found)
    if fixed and rule.widths and rule.output_width is None and not rule.nested:
        raise FusionError(
            f"{rule.cls} {first.name!r} makes an output of the model, whose size must "
            "stay. Say which key sets that size: keras_fusion.register(..., "
            "output_width=...)."
        )
    for key in rule.shared:
        config[key] = getattr(first, key)
    config |= changes
    return {k: v for k, v in config.items() if k not in rule.unset}


def _larger(layer, rule, key, own, found):
    """The entry of a config that sets a width, if it was chosen."""
    chosen = found.chosen
    # Where variables have roles the graph has decided.
    if not rule.roles and not chosen.takes_key(layer.name, key):
        return {}
    if (size := chosen.size(layer.name, key)) is not None:
        return {key: size}
    return _enlarged({key: _sum(own)}, {key: _sum(own * 2)}, found.capacity, layer.name)


def _check_equal(layer, rule, before, after, found):
    """Checks that widths that grow beside others that stay keep, say, the head size."""
    changed = [name for name, f in rule.equal.items() if f(before) != f(after)]
    for name in changed[:1]:
        value = rule.equal[name]
        found.chosen.refuse_change(layer.name, name, value(before), value(after))
        if id(layer) in found.fixed:
            raise FusionError(
                f"{type(layer).__name__} {layer.name!r} cannot grow: its output keeps "
                "its width, which the model's own outputs or inputs fix, and what grows "
                f"beside it would change the {name}. Grow the feed-forward widths alone "
                "(only='feed_forward'), or give the model a Dense layer after it."
            )


def _check_keys(layer, rule, config):
    missing = [k for k in (*rule.widths, *rule.nested) if k not in config]
    if missing:
        raise FusionError(
            f"The rule of {type(layer).__name__} names {missing}, which its config "
            f"does not have; it has {sorted(config)}. Correct the `widths` or `nested` "
            "of keras_fusion.register, or extend get_config()."
        )


def config_of(layer: Any) -> dict[str, Any]:
    """The config of a layer or operation, a norm's as that of its stock class.

    Functions of the user's own are in it as they are, since Keras finds by their names
    only those that are registered.

    Raises:
        FusionError: if its class has none.
    """
    try:
        config = stock_config(layer) if is_block_norm(layer) else layer.get_config()
    except NotImplementedError as error:
        cls = type(layer).__name__
        raise FusionError(
            f"{cls} {layer.name!r} has no config, so a bigger one cannot be made of "
            "it. Give the class a get_config(), or pass the bigger model (or a "
            "function that builds it) as `into`."
        ) from error
    except Exception as error:
        raise FusionError(
            f"{type(layer).__name__} {layer.name!r} has no config that Keras can write "
            f"({error}), so a bigger one cannot be made of it. Use what Keras can save, "
            "or pass the bigger model (or a function that builds it) as `into`."
        ) from error
    # Plain lists: one that Keras tracks would keep the old layer's weights alive.
    plain = {k: list(v) for k, v in config.items() if isinstance(v, list)}
    return config | plain | own_functions(layer, config)


def own_functions(layer: Any, config: dict[str, Any]) -> dict[str, Any]:
    """The activations and other functions of a layer that are not Keras's."""
    written = [key for key, value in config.items() if isinstance(value, (dict, str))]
    found = {key: getattr(layer, key, None) for key in written}
    return {
        key: value
        for key, value in found.items()
        if isinstance(value, (types.FunctionType, types.MethodType))
        and value.__module__.partition(".")[0] not in ("keras", "keras_hub")
        and getattr(value, "__self__", None) is not layer
    }


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
    if composite and not found.chosen.is_all:
        streams = (key for key in rule.widths if kind_of_key(key) == "residual")
        composite = any(found.chosen.takes_key(layer.name, key) for key in streams)
    # Norms that are block-wise stay so, with a block for what is new.
    block_wise = found.block_norms or any(is_block_norm(x) for _, x in tree.walk(layer))
    has_norm = not block_wise and (rule.norm or composite)
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
