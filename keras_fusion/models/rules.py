"""The registry of layer classes: which of their config keys and axes are widths."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import keras

from keras_fusion.errors import FusionError, UnregisteredLayerError
from keras_fusion.models.names import helpful
from keras_fusion.models.stock import stock_class

# Of one axis: `"in"`, `"out"` or `None`; `("out", n)` for n tensors one after another, or
# with their sizes in place of n.
Role = str | tuple[str, int | tuple[int, ...]] | None
Roles = Mapping[str, tuple[Role, ...]]
_Class = TypeVar("_Class", bound=type | str)


@dataclasses.dataclass(frozen=True)
class Norm:
    """Description of a norm over the last axis, for `register`.

    Args:
        statistic: `"mean_variance"` (a layer norm) or `"mean_square"` (an RMS norm).
        scale: string. Name of the variable that multiplies.
        shift: string. Name of the variable that is added, or `None`.
        offset: float. Constant that is added to `scale` before it multiplies: 1 for a
            norm that computes with `1 + scale` (Gemma's). Defaults to 0.

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Fixed:
    """The fields of a rule that are the same for all layers of a class."""

    cls: type | str
    roles: Roles | Callable[[Any], Roles] | None = None
    inner: Mapping[str, Roles] | Callable[[Any], Mapping[str, Roles]] | None = None
    nested: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    unset: tuple[str, ...] = ()
    equal: Mapping[str, Callable[[dict], Any]] = dataclasses.field(default_factory=dict)
    tied_readout: str | None = None
    input_multipliers: Callable[[Any], Mapping[str, float]] | None = None
    readout_multiplier: Callable[[Any], float] | None = None
    merge: str | None = None
    grow: Callable[[Sequence[dict], bool], dict] | None = None
    refuse: str | None = None
    approximate: str | None = None

    def variable_roles(self, layer: keras.Layer) -> Roles:
        """Roles of the axes of the layer's own variables, by variable name."""
        roles = self.roles(layer) if callable(self.roles) else self.roles
        return roles or {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule(_Fixed):
    """The rule of one layer: how fusion treats it. See `register` for the fields."""

    widths: tuple[str, ...] = ()
    output_width: str | None = None
    depth: tuple[str, ...] = ()
    scalable: tuple[str, ...] = ()
    norm: Norm | None = None
    last_norm: str | None = None

    def offset(self, name: str) -> float:
        """The constant that is added to a variable before it multiplies."""
        return self.norm.offset if self.norm and name == self.norm.scale else 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassRule(_Fixed):
    """The rule of a layer class, some of whose fields may be functions of a layer."""

    widths: tuple[str, ...] | Callable[[Any], tuple[str, ...]] = ()
    output_width: str | Callable[[Any], str | None] | None = None
    depth: tuple[str, ...] | Callable[[Any], tuple[str, ...]] = ()
    scalable: tuple[str, ...] | Callable[[Any], tuple[str, ...]] = ()
    norm: Norm | Callable[[Any], Norm | None] | None = None
    last_norm: str | Callable[[Any], str | None] | None = None

    def of(self, layer: keras.Layer) -> Rule:
        """The rule of one layer of the class."""
        if not self._functions:
            return self._constant
        values = {name: getattr(self, name)(layer) for name in self._functions}
        return dataclasses.replace(self._constant, **values)

    @functools.cached_property
    def _functions(self) -> tuple[str, ...]:
        """Names of the fields that are functions of a layer."""
        own = {f.name for f in dataclasses.fields(self)}
        own -= {f.name for f in dataclasses.fields(_Fixed)}
        return tuple(name for name in own if callable(getattr(self, name)))

    @functools.cached_property
    def _constant(self) -> Rule:
        """The rule without the fields that are functions of a layer."""
        names = {f.name for f in dataclasses.fields(self)} - set(self._functions)
        return Rule(**{name: getattr(self, name) for name in names})


_RULES: dict[type | str, ClassRule] = {}


@helpful
def register(
    cls: _Class,
    *,
    widths: tuple[str, ...] | Callable[[Any], tuple[str, ...]] = (),
    roles: Roles | Callable[[Any], Roles] | None = None,
    inner: Mapping[str, Roles] | Callable[[Any], Mapping[str, Roles]] | None = None,
    output_width: str | Callable[[Any], str | None] | None = None,
    depth: tuple[str, ...] | Callable[[Any], tuple[str, ...]] = (),
    nested: tuple[str, ...] = (),
    shared: tuple[str, ...] = (),
    unset: tuple[str, ...] = (),
    equal: Mapping[str, Callable[[dict], Any]] | None = None,
    scalable: tuple[str, ...] | Callable[[Any], tuple[str, ...]] = (),
    norm: Norm | Callable[[Any], Norm | None] | None = None,
    tied_readout: str | None = None,
    last_norm: str | Callable[[Any], str | None] | None = None,
    input_multipliers: Callable[[Any], Mapping[str, float]] | None = None,
    readout_multiplier: Callable[[Any], float] | None = None,
    merge: str | None = None,
    grow: Callable[[Sequence[dict], bool], dict] | None = None,
    refuse: str | None = None,
    approximate: str | None = None,
) -> _Class:
    """Registers how a layer or model class grows.

    A rule holds for the class and its subclasses. Registering a class again replaces
    its rule. A composite (a block, a whole model) usually needs only `widths`, since
    its weights belong to sub-layers that have rules of their own. An argument that may be
    a function gets the layer and returns the value for that layer.

    Args:
        cls: the class, a subclass of `keras.Layer` (so also any `keras.Model`); or
            `"package>ClassName"` for a class that its package does not export;
            `"package>*"` describes the weights of a package's layers without a rule,
            where the composite that holds them has one.
        widths: keys of `cls.get_config()` that are widths. In the fused layer each is
            the sum of the parents' values.
        roles: dict from the name of a variable of the layer's own to one role per
            axis: `"in"` (contracted with the input), `"out"` (indexes the output),
            `"each"` (indexes the input, feature by feature) or `None` (not a width);
            `("out", n)` for an axis of n concatenated tensors, each of which grows, or
            `("out", sizes)` with the layer's own sizes of them, where these differ;
            `("in", 1)` for one that is contracted with the layer's own state, and not
            with its input. Or a function from the layer to such a dict.
        inner: dict from the path of attributes of a layer that it holds to `roles` for
            it, in place of those that its own rule gives. Or a function, as for `roles`.
        output_width: the key among `widths` that sets the size of the output's last
            axis. It does not grow where the model's own outputs or inputs fix that
            size. Leave it out where the output is as wide as the input.
        depth: keys of the config that count blocks. Parents may differ in them if their
            blocks are pre-norm and residual: the shallower one continues as an identity.
        nested: config keys that hold a layer or model, which is grown as well (the
            `backbone` of a keras-hub task). The layer has an attribute of that name.
        shared: config keys whose object is passed on unchanged (a tokenizer).
        unset: config keys to drop, so that the grown layer is built anew.
        equal: dict from a name to a function of the config; its value must be the
            same in all parents (`{"head size": lambda c: c["dim"] // c["heads"]}`).
        scalable: names of variables, e.g. a norm's `("gamma", "beta")`, that scale
            the layer's output when they are multiplied by a number. They carry the
            factor of the mean where the layer comes before a tied readout.
        norm: a `Norm`, for a layer that divides by a statistic of its last axis.
        tied_readout: for a layer whose `call` multiplies by the transpose of an
            embedding, which its graph does not show: the attribute path of the last
            norm before the readout (`"decoder.final_norm"`).
        last_norm: for a backbone: the attribute path of the norm that makes its last
            hidden states, for a task around it whose readout is tied.
        input_multipliers: function from the layer to a dict from the attribute path of
            an embedding to the number, dependent on a width, that its output is
            multiplied by.
        readout_multiplier: function from the layer to a number, dependent on a width,
            by which its `call` multiplies the input of a tied readout.
        merge: `"all"` if the output is as wide as each of several inputs (`Add`),
            `"concatenate"` if they are concatenated in it.
        grow: function `(configs, fixed) -> config` for a class whose widths do not
            simply add up. `fixed` says that the output must keep its size.
        refuse: string. The reason why the class cannot be grown where its input grows.
        approximate: string. The reason why distinct parents of the class can be fused
            approximately only, whatever becomes of their norms.

    Returns:
        `cls`, so that `register` can be applied to a class in place.

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
    _RULES[cls] = ClassRule(
        cls=cls,
        widths=widths if callable(widths) else tuple(widths),
        roles=roles,
        inner=inner,
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
        approximate=approximate,
    )
    return cls


def _check_registration(cls: Any, widths: Any, roles: Any, output_width: Any) -> None:
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
    fixed = None if callable(widths) else tuple(widths)
    named_width = None if callable(output_width) else output_width
    if fixed is not None and named_width is not None and named_width not in fixed:
        raise FusionError(
            f"`output_width` must be one of `widths`. Received: output_width="
            f"{named_width!r}, widths={fixed!r}."
        )
    for name, axes in roles.items() if isinstance(roles, Mapping) else ():
        if isinstance(axes, str) or not all(map(_is_role, axes)):
            raise FusionError(
                f"`roles[{name!r}]` must be a tuple with 'in', 'out', 'each' or None "
                f"for each axis. Received: {axes!r}."
            )


def _is_role(role: Any) -> bool:
    name = role[0] if isinstance(role, tuple) else role
    return name in ("in", "out", "each", None)


def find(layer: keras.Layer) -> Rule | None:
    """The rule of a layer, from the nearest registered class; `None` without one."""
    for cls in type(layer).__mro__:
        for key in (cls, f"{cls.__module__.split('.')[0]}>{cls.__name__}"):
            if key in _RULES:
                return _RULES[key].of(layer)
    return None


def find_for_weights(layer: keras.Layer) -> Rule | None:
    """The rule that describes a layer's own weights: the layer's, or its package's."""
    rule = find(layer)
    if rule is None or (rule.roles is None and rule.norm is None):
        package = stock_class(layer).__module__.split(".")[0]
        common = _RULES.get(f"{package}>*")
        rule = common.of(layer) if common is not None else rule
    return rule


def registered() -> dict[type | str, ClassRule]:
    """All rules by class, for tests that every rule must pass.

    Returns:
        Dict from a class, or its name as `"package>ClassName"`, to its rule, which has
        the arguments of `register` as attributes.

    Example:

    >>> import keras, keras_fusion
    >>> keras_fusion.registered()[keras.layers.Dense].widths
    ('units',)
    """
    return dict(_RULES)


def unregistered(
    layer: keras.Layer, address: str, variables: Sequence[keras.Variable]
) -> UnregisteredLayerError:
    """Makes the error for a layer that has weights and no rule for them.

    Args:
        layer: the layer.
        address: string. The layer's address.
        variables: its own variables; empty for a composite, whose weights belong to its
            sub-layers.
    """
    cls = type(layer).__name__
    keys = _width_keys(layer)
    call = f"keras_fusion.register({cls}, widths={keys}"
    if variables:
        names = [variable.name for variable in variables]
        what = f"has weights {names} that no rule describes"
        call += f", roles={example_roles(variables, getattr(layer, 'units', None))}"
        advice = "with the class's width keys and one role per axis of each weight"
    else:
        what = (
            "holds layers with weights, but no rule says which config keys are widths"
        )
        advice = (
            "with the keys of its config that are widths; or pass the bigger model as "
            "`into`"
        )
    return UnregisteredLayerError(
        f"Layer {layer.name!r} at {address!r}, of class {cls}, {what}. Register it, e.g. "
        f"{call}), {advice}."
    )


def example_roles(variables: Sequence[keras.Variable], units: int | None = None) -> str:
    """A first guess at the roles of variables, as code, with the right number of axes.

    Args:
        variables: the variables.
        units: int. The layer's width, if it is known: of an axis that is so many times
            as long as it, that many tensors lie side by side on it.
    """
    return "{" + ", ".join(f"{v.name!r}: {_roles(v, units)}" for v in variables) + "}"


def _roles(variable, units):
    rank, last = len(variable.shape), "'out'"
    if rank and units and variable.shape[-1] > units and not variable.shape[-1] % units:
        last = f"('out', {variable.shape[-1] // units})"
    if rank < 2:
        return f"({last},)" if rank else "()"
    read = "('in', 1)" if "recurrent" in variable.name else "'in'"
    return f"({'None, ' * (rank - 2)}{read}, {last})"


def _width_keys(layer: keras.Layer) -> tuple[str, ...]:
    """The keys of integers in the config, as a first guess at its widths."""
    try:
        config = layer.get_config()
    except NotImplementedError:
        return ("units",)
    no_widths = ("groups", "rank", "seed")
    whole = (k for k, v in config.items() if type(v) is int and k not in no_widths)
    return tuple(whole) or ("units",)
