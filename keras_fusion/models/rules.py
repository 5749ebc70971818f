"""The one place for knowledge of layers: which config keys and axes are widths."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import keras

from keras_fusion.errors import FusionError, UnregisteredLayerError


@dataclasses.dataclass(frozen=True)
class Norm:
    """What a norm over the last axis computes, for `register`.

    Args:
        statistic: `"mean_variance"` (a layer norm) or `"mean_square"` (an RMS norm).
        scale: name of the variable that multiplies.
        shift: name of the variable that is added, or `None`.
        offset: float. What is added to `scale` before it multiplies: 1 for a norm that
            computes with `1 + scale` (Gemma's). Defaults to 0.

    Example:

    >>> import keras, keras_fusion
    >>> class MyRMSNorm(keras.layers.Layer):
    ...     def build(self, input_shape):
    ...         self.gain = self.add_weight(shape=input_shape[-1:], name="gain")
    >>> _ = keras_fusion.register(
    ...     MyRMSNorm,
    ...     roles={"gain": ("out",)},
    ...     scalable=("gain",),
    ...     norm=keras_fusion.Norm("mean_square", scale="gain"),
    ... )
    """

    statistic: str
    scale: str = "gamma"
    shift: str | None = None
    offset: float = 0.0

    @property
    def centered(self) -> bool:
        """Whether the norm subtracts the mean."""
        return self.statistic == "mean_variance"


@dataclasses.dataclass(frozen=True)
class Rule:
    """What fusion needs to know of a layer class. See `register` for the fields."""

    cls: type | str
    widths: tuple[str, ...] | Callable = ()
    roles: Mapping | Callable | None = None
    output_width: str | Callable | None = None
    depth: tuple[str, ...] | Callable = ()
    nested: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    unset: tuple[str, ...] = ()
    equal: Mapping[str, Callable] = dataclasses.field(default_factory=dict)
    scalable: tuple[str, ...] | Callable = ()
    norm: Norm | Callable | None = None
    tied_readout: str | None = None
    last_norm: str | Callable | None = None
    input_multipliers: Callable | None = None
    readout_multiplier: Callable | None = None
    merge: str | None = None
    grow: Callable | None = None
    refuse: str | None = None

    def of(self, layer: keras.Layer) -> "Rule":
        """The rule as it is for one layer: what is a function of it, evaluated."""
        changes = {
            name: getattr(self, name)(layer)
            for name in (
                "widths",
                "output_width",
                "scalable",
                "norm",
                "last_norm",
                "depth",
            )
            if callable(getattr(self, name))
        }
        return dataclasses.replace(self, **changes) if changes else self

    def variable_roles(self, layer: keras.Layer) -> Mapping:
        """Roles of the axes of the layer's own variables, by variable name."""
        roles = self.roles(layer) if callable(self.roles) else self.roles
        return roles or {}

    def offset(self, name: str) -> float:
        """What is added to a variable before it multiplies."""
        return self.norm.offset if self.norm and name == self.norm.scale else 0.0


_RULES: dict[type | str, Rule] = {}


def register(
    cls: type | str,
    *,
    widths: tuple[str, ...] | Callable[[Any], tuple] = (),
    roles: Mapping[str, tuple] | Callable[[Any], Mapping] | None = None,
    output_width: str | Callable[[Any], str] | None = None,
    depth: tuple[str, ...] | Callable[[Any], tuple] = (),
    nested: tuple[str, ...] = (),
    shared: tuple[str, ...] = (),
    unset: tuple[str, ...] = (),
    equal: Mapping[str, Callable[[dict], Any]] | None = None,
    scalable: tuple[str, ...] | Callable[[Any], tuple] = (),
    norm: Norm | Callable[[Any], Norm | None] | None = None,
    tied_readout: str | None = None,
    last_norm: str | Callable[[Any], str | None] | None = None,
    input_multipliers: Callable[[Any], Mapping[str, float]] | None = None,
    readout_multiplier: Callable[[Any], float] | None = None,
    merge: str | None = None,
    grow: Callable | None = None,
    refuse: str | None = None,
) -> type | str:
    """Tells keras_fusion how a layer or model class grows.

    A rule holds for the class and its subclasses. Registering a class again replaces
    its rule. A composite (a block, a whole model) usually needs only `widths`, since
    its weights belong to sub-layers that have rules of their own. What may be a
    function takes the layer and returns what else would be given.

    Args:
        cls: the class, a subclass of `keras.Layer` (so also any `keras.Model`); or
            `"package>ClassName"` for a class that its package does not export;
            `"package>*"` tells of the weights of a package's layers without rule, where
            the composite that holds them has one.
        widths: keys of `cls.get_config()` that are widths. In the fused layer each is
            the sum of the parents' values.
        roles: dict from the name of a variable of the layer's own to one role per
            axis: `"in"` (contracted with the input), `"out"` (indexes the output) or
            `None` (not a width); `("out", n)` for an axis that is n tensors one after
            the other, each of which grows. Or a function from the layer to such a dict.
        output_width: the key among `widths` that sets the size of the output's last
            axis. It does not grow where the model's own outputs or inputs fix that
            size. Leave it out where the output is as wide as the input.
        depth: keys of the config that count blocks. Parents may differ in them if their
            blocks are pre-norm and residual: the shallower continues as an identity.
        nested: config keys that hold a layer or model, grown in its turn (the
            `backbone` of a keras-hub task). The layer has an attribute of that name.
        shared: config keys whose object is handed on as it is (a tokenizer).
        unset: config keys to drop, so that the grown layer is built anew.
        equal: dict from a name to a function of the config; its value must be the
            same in all parents (`{"head size": lambda c: c["dim"] // c["heads"]}`).
        scalable: names of variables, e.g. a norm's `("gamma", "beta")`, that scale
            the layer's output when they are multiplied by a number. A tied readout in
            front of which the layer stands is averaged by them.
        norm: a `Norm`, for a layer that divides by a statistic of its last axis.
        tied_readout: for a layer whose `call` multiplies by the transpose of an
            embedding, unseen from outside: the attribute path of the last norm before
            (`"decoder.final_norm"`).
        last_norm: for a backbone: the attribute path of the norm that makes its last
            hidden states, for a task outside of it whose readout is tied.
        input_multipliers: function from the layer to a dict: for the attribute path of
            an embedding the number, dependent on a width, that its output is
            multiplied with.
        readout_multiplier: function from the layer to a number that its `call`
            multiplies a tied readout with and that depends on a width.
        merge: `"all"` if the output is as wide as each of several inputs (`Add`),
            `"concatenate"` if they lie side by side in it.
        grow: function `(configs, fixed) -> config` for a class whose widths do not
            simply add up. `fixed` tells that the output must keep its size.
        refuse: reason why the class cannot be grown where its input is.

    Returns:
        `cls`, so that `register` can be used on the fly.

    Raises:
        FusionError: if `cls` is not a layer class, or `output_width` or a role is not
            one of those described.

    Example:

    >>> import keras, keras_fusion
    >>> @keras.saving.register_keras_serializable("example")
    ... class Block(keras.layers.Layer):
    ...     def __init__(self, units, **kwargs):
    ...         super().__init__(**kwargs)
    ...         self.units = units
    ...         self.dense = keras.layers.Dense(units)
    ...
    ...     def build(self, input_shape):
    ...         self.dense.build(input_shape)
    ...
    ...     def call(self, x):
    ...         return self.dense(x)
    ...
    ...     def get_config(self):
    ...         return super().get_config() | {"units": self.units}
    >>> _ = keras_fusion.register(Block, widths=("units",), output_width="units")
    >>> fused = keras_fusion.testing.run_rule_test(Block(8), input_shape=(2, 4))
    """
    _check_registration(cls, widths, roles, output_width)
    _RULES[cls] = Rule(
        cls=cls,
        widths=widths if callable(widths) else tuple(widths),
        roles=roles,
        output_width=output_width,
        depth=depth if callable(depth) else tuple(depth),
        nested=tuple(nested),
        shared=tuple(shared),
        unset=tuple(unset),
        equal=dict(equal or {}),
        scalable=scalable if callable(scalable) else tuple(scalable),
        norm=norm,
        tied_readout=tied_readout,
        last_norm=last_norm,
        input_multipliers=input_multipliers,
        readout_multiplier=readout_multiplier,
        merge=merge,
        grow=grow,
        refuse=refuse,
    )
    return cls


def _check_registration(cls, widths, roles, output_width):
    named = isinstance(cls, str) and ">" in cls
    if not named and not (isinstance(cls, type) and issubclass(cls, keras.Layer)):
        raise FusionError(
            "`cls` must be a subclass of keras.Layer, or its name as "
            f"'package>ClassName'. Received: cls={cls!r}."
        )
    if isinstance(widths, str):
        raise FusionError(
            f"`widths` must be a tuple of config keys. Received: widths={widths!r}; "
            f"write widths=({widths!r},)."
        )
    dynamic = callable(widths) or callable(output_width)
    if not dynamic and output_width is not None and output_width not in widths:
        raise FusionError(
            f"`output_width` must be one of `widths`. Received: output_width="
            f"{output_width!r}, widths={tuple(widths)!r}."
        )
    for name, axes in roles.items() if isinstance(roles, Mapping) else ():
        if isinstance(axes, str) or not all(map(_is_role, axes)):
            raise FusionError(
                f"`roles[{name!r}]` must be a tuple with 'in', 'out' or None for each "
                f"axis. Received: {axes!r}."
            )


def _is_role(role):
    name = role[0] if isinstance(role, tuple) else role
    return name in ("in", "out", None)


def find(layer: keras.Layer) -> Rule | None:
    """The rule of a layer: that of the nearest class among its bases, or `None`."""
    for cls in type(layer).__mro__:
        for key in (cls, f"{cls.__module__.split('.')[0]}>{cls.__name__}"):
            if key in _RULES:
                return _RULES[key].of(layer)
    return None


def find_for_weights(layer: keras.Layer) -> Rule | None:
    """The rule that describes a layer's own weights: its own, or its package's."""
    rule = find(layer)
    if rule is None or (rule.roles is None and rule.norm is None):
        package = type(layer).__module__.split(".")[0]
        common = _RULES.get(f"{package}>*")
        rule = common.of(layer) if common is not None else rule
    return rule


def registered() -> dict[type | str, Rule]:
    """All rules by class, for the tests that every rule must pass.

    Returns:
        Dict from a class, or its name as `"package>ClassName"`, to its `Rule`.

    Example:

    >>> import keras, keras_fusion
    >>> keras_fusion.registered()[keras.layers.Dense].widths
    ('units',)
    """
    return dict(_RULES)


def unregistered(layer: keras.Layer, address: str, names) -> UnregisteredLayerError:
    """The error for a layer that has weights and no rule for them.

    Args:
        layer: the layer.
        address: string. Where it is held.
        names: list of the names of its own variables; empty for a composite, whose
            weights belong to its sub-layers.
    """
    cls = type(layer).__name__
    known = ", ".join(sorted(getattr(c, "__name__", c) for c in _RULES))
    call = f"keras_fusion.register({cls}, widths={_width_keys(layer)}"
    if names:
        what = f"has weights {names} that no rule describes"
        roles = ", ".join(f"{name!r}: ('in', 'out')" for name in names)
        call += f", roles={{{roles}}}"
        advice = "with the class's width keys and one role per axis of each weight"
    else:
        what = (
            "holds layers with weights, but no rule says which config keys are widths"
        )
        advice = "with those keys of its config that are widths"
    return UnregisteredLayerError(
        f"Layer {layer.name!r} at {address!r}, of class {cls}, {what}. Register it, e.g. "
        f"{call}), {advice}; or pass the bigger model as `into`. Registered: {known}."
    )


def _width_keys(layer):
    """The config's integers, as a first guess at its widths."""
    try:
        config = layer.get_config()
    except NotImplementedError:
        return ("units",)
    whole = (k for k, v in config.items() if type(v) is int and k != "seed")
    return tuple(whole) or ("units",)
