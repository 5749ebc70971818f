"""`preview`: what a growth would make of a model, before it happens."""

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import keras

from keras_fusion import graft
from keras_fusion.errors import FusionError, require
from keras_fusion.models import flops, private, rules, samples, tree
from keras_fusion.models.names import helpful
from keras_fusion.models.stock import is_block_norm
from keras_fusion.operators.plan import Plan, Plans
from keras_fusion.training import live_growth, swap
from keras_fusion.training.grow import as_operator
from keras_fusion.training.tables import aligned

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class LayerPreview:
    """One layer with weights of its own, before and after a growth.

    Args:
        name: string. The layer's path in the model.
        kind: string. Its class.
        before: dict from the name of each variable to its shape now; empty for a layer
            that is new.
        after: the same after the growth; empty if the growth is refused.
        note: string. Whether it grows, and how exactly.
    """

    name: str
    kind: str
    before: dict[str, Shape]
    after: dict[str, Shape]
    note: str

    @property
    def params_before(self) -> int:
        """Number of parameters now."""
        return sum(map(math.prod, self.before.values()))

    @property
    def params_after(self) -> int:
        """Number of parameters after the growth."""
        return sum(map(math.prod, self.after.values()))


@dataclasses.dataclass(frozen=True)
class Preview:
    """What a growth would make of a model; printed, it is a table.

    Args:
        operator: string. What would be done.
        layers: tuple of one record per layer, with `name`, `kind`, `before`, `after`,
            `params_before`, `params_after` and `note`.
        params: `(before, after)`, numbers of parameters.
        flops: `(before, after)`, FLOPs of the forward and the backward pass on a batch;
            `None` if they cannot be counted.
        bytes: `(before, after)`, bytes of the weights and of the optimizer's state.
        device_bytes: `(before, during, after)`, those of them that one device holds:
            before the growth, at most during it, and after it. What a step needs for its
            activations and gradients is not counted.
        exact: bool. Whether the function stays, but for rounding.
        notes: tuple of strings. What else there is to know.
        refused: string. Why the growth is refused, or `None`. If it is refused, the
            values after it are `None`, or equal to those before.

    Example:

    >>> import keras, keras_fusion
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8)])
    >>> model.add(keras.layers.Dense(1))
    >>> seen = keras_fusion.preview(model, 2, verbose=0)
    >>> seen.params, seen.exact, seen.layers[0].after["kernel"]
    ((49, 97), True, (4, 16))
    """

    operator: str
    layers: tuple[LayerPreview, ...]
    params: tuple[int, int | None]
    flops: tuple[int, int | None] | None
    bytes: tuple[int, int | None]
    device_bytes: tuple[int, int | None, int | None]
    exact: bool
    notes: tuple[str, ...]
    refused: str | None = None

    def to_dict(self) -> dict:
        """The preview as plain data."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        """The table; layers that differ in their numbers alone share a line."""
        head = ("layer", "before", "after", "parameters", "")
        lines = [self.operator, "", *aligned([head, *_rows(self.layers)]), ""]
        totals = [
            ("parameters", _change(self.params)),
            ("FLOPs of a step", _change(self.flops)),
            ("bytes with the optimizer's state", _change(self.bytes)),
            ("bytes on each device", _moments(self.device_bytes)),
        ]
        lines += aligned(totals)
        lines += [f"- {note}" for note in self.notes]
        if self.refused is not None:
            lines.append(f"Refused: {self.refused}")
        return "\n".join(lines)

    __repr__ = __str__


@helpful
def preview(
    model: keras.Model,
    operator_or_factor: Any = 2,
    *,
    to: dict[str, int] | float | None = None,
    optimizer_state: str = "carry",
    probe: Any = None,
    verbose: int = 1,
) -> Preview:
    """Shows what a growth would make of a model, and changes nothing.

    The growth is laid out as for `grow` and `GrowModel`, whose `preview` method is this
    function for a callback: the bigger model is built and measured, as at the start of
    `fit`, and dropped. What is refused is told in the table, with the reason.

    Args:
        model: built model, compiled or not.
        operator_or_factor: how to grow, see `grow`. Defaults to 2.
        to: sizes, or a number of parameters, in place of a factor, see `grow`.
        optimizer_state: `"carry"` or `"reset"`, see `GrowModel`. Defaults to `"carry"`.
        probe: batch in the structure of the model's inputs, for which the FLOPs are
            counted. By default a small one is made.
        verbose: int. 1 prints the table, 0 prints nothing. Defaults to 1.

    Returns:
        A `Preview`.

    Raises:
        FusionError: for arguments that no model could grow with.

    Example:

    >>> import keras, keras_fusion
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8)])
    >>> model.add(keras.layers.Dense(1))
    >>> seen = keras_fusion.preview(model, 1.5, verbose=0)
    >>> [(layer.kind, layer.params_before, layer.params_after) for layer in seen.layers]
    [('Dense', 40, 60), ('Dense', 9, 13)]
    """
    require(isinstance(model, keras.Model), "model", model, "a keras.Model")
    options = live_growth.Options(
        as_operator(operator_or_factor, to), optimizer_state, probe=probe
    )
    found = previewed(model, options)
    if verbose:
        print(found)
    return found


def previewed(model: keras.Model, options: live_growth.Options) -> Preview:
    """The preview of a growth with some options."""
    counted, notes = _counted(model, options.probe)
    size, on_device = _bytes(model)
    before = Preview(
        operator=f"{options.operator} of {model.name!r}",
        layers=tuple(_untouched(model)),
        params=(model.count_params(), None),
        flops=None if counted is None else (counted, None),
        bytes=(size, None),
        device_bytes=(on_device, None, None),
        exact=False,
        notes=(),
    )
    try:
        live_growth.check_rates(model, options)
        tell = getattr(options.operator, "notes", lambda model: [])
        notes = [*tell(model), *notes]
        with private.scope(model):
            planned = swap.tried(
                model,
                options.operator,
                0,
                options.optimizer_state,
                inputs=options.probe,
                tolerance=options.tolerance,
            )
            if planned is None:
                raise FusionError("The memory does not hold the bigger model.")
            return _after(before, planned, options.probe, notes)
    except FusionError as error:
        return dataclasses.replace(before, refused=str(error), notes=tuple(notes))


def _bytes(model: keras.Model) -> tuple[int, int]:
    """The bytes of weights and optimizer state, and those on each device."""
    own = graft.bytes_of(model.weights)
    try:
        return own + graft.optimizer_bytes(model, [])[0], graft.device_bytes(model)[0]
    except FusionError:  # An optimizer that has no twin: told as the refusal.
        return own, graft.bytes_of(model.weights, per_device=True)


def _after(before: Preview, planned: Any, inputs: Any, notes: list[str]) -> Preview:
    """The preview of a growth that was laid out."""
    model, fused, layouts = planned.parents[0], planned.fused, planned.layouts
    size = graft.bytes_of(fused.weights) + graft.optimizer_bytes(model, layouts)[1]
    counted = None
    if before.flops is not None:
        inputs = samples.accepted(model) if inputs is None else inputs
        counted, _ = _counted(fused, inputs)
    layers = tuple(_grown(planned))
    approximate = [x.name for x in layers if x.note.startswith("approximate")]
    told = "The function is preserved up to rounding; this is measured at the growth."
    if not planned.exact:
        told = "The function changes; by how much is measured at the growth."
        if approximate:
            told += f" Norms of distinct parents are joined: {len(approximate)}."
    return dataclasses.replace(
        before,
        layers=layers,
        params=(before.params[0], fused.count_params()),
        flops=None
        if counted is None or before.flops is None
        else (before.flops[0], counted),
        bytes=(before.bytes[0], size),
        device_bytes=graft.device_bytes(model, planned),
        exact=planned.exact,
        notes=(told, *notes),
    )


def _counted(model: keras.Model, inputs: Any) -> tuple[int | None, list[str]]:
    """The FLOPs of a step without its loss, and on what they were counted."""
    try:
        inputs = samples.accepted(model) if inputs is None else inputs
        shapes = [tuple(x.shape) for x in keras.tree.flatten(inputs)]
        listed = ", ".join(dict.fromkeys(map(str, shapes)))
        note = f"FLOPs: forward and backward, on inputs of shape {listed}."
        return flops.model_flops(model, inputs), [note]
    except Exception as error:  # Whatever a model does when it is traced.
        return None, [f"FLOPs are not counted: {error}"]


# Layer by layer.


def _untouched(model: keras.Model) -> Iterable[LayerPreview]:
    """The layers of a model that does not grow."""
    weights = {id(v) for v in model.weights}  # without the states of seeds
    for address, layer in tree.walk(model):
        own = [v for v in tree.own_variables(layer) if id(v) in weights]
        if own:
            shapes = {v.name: tuple(v.shape) for v in own}
            name = _layer_name(own[0], address)
            yield LayerPreview(name, type(layer).__name__, shapes, {}, "")


def _grown(planned: Plan | Plans) -> Iterable[LayerPreview]:
    """The layers of the bigger model, each with what it grows from."""
    owners: dict[int, keras.Layer] = {}
    for _, layer in tree.walk(planned.fused):
        for variable in tree.own_variables(layer):
            owners.setdefault(id(variable), layer)
    rows, seen = {}, set()
    weights = {id(v) for v in planned.fused.weights}  # without the states of seeds
    for item in planned.layouts:
        if id(item.target) in weights:
            rows.setdefault(id(owners[id(item.target)]), []).append(item)
    for items in rows.values():
        layer = owners[id(items[0].target)]
        is_new = all(id(item.sources[0]) in seen for item in items)
        seen |= {id(item.sources[0]) for item in items}
        before = {i.target.name: tuple(i.sources[0].shape) for i in items}
        yield LayerPreview(
            _layer_name(items[0].target, items[0].address),
            type(layer).__name__,
            {} if is_new else before,
            {i.target.name: tuple(i.target.shape) for i in items},
            "new" if is_new else _note(planned, layer, items),
        )


def _note(planned: Plan | Plans, layer: keras.Layer, items: Sequence) -> str:
    if not any(item.grown for item in items):
        return "as it is"
    rule = rules.find_for_weights(layer)
    is_norm = rule is not None and rule.norm is not None
    if is_norm and not planned.copies and not is_block_norm(layer):
        return "approximate: one statistic of distinct parents"
    new = ", with new capacity" if any(item.has_new for item in items) else ""
    return f"{'exact' if planned.exact else 'grows'}{new}"


def _layer_name(variable: keras.Variable, address: str) -> str:
    return variable.path.rpartition("/")[0] or address


# The table's text.


def _rows(layers: Sequence[LayerPreview]) -> Iterable[tuple[str, ...]]:
    groups: dict[str, list[LayerPreview]] = {}
    for layer in layers:
        alike = dataclasses.replace(layer, name=re.sub(r"\d+", "#", layer.name))
        groups.setdefault(repr(alike), []).append(layer)
    for group in groups.values():
        first, times = group[0], f" (x{len(group)})" if len(group) > 1 else ""
        after = first.params_after if first.after else None
        yield (
            f"{first.name} ({first.kind}){times}",
            _largest(first.before),
            _largest(first.after),
            _change((first.params_before, after), ratio=False),
            first.note,
        )


def _largest(shapes: dict[str, Shape]) -> str:
    return str(max(shapes.values(), key=math.prod)) if shapes else "-"


def _change(pair: tuple[int, int | None] | None, ratio: bool = True) -> str:
    if pair is None:
        return "not counted"
    before, after = pair
    if after is None:
        return f"{before:,}"
    times = f" (x{after / before:.2f})" if ratio and before else ""
    return f"{before:,} -> {after:,}{times}"


def _moments(found: tuple[int, int | None, int | None]) -> str:
    before, during, after = found
    if during is None:
        return f"{before:,}"
    return f"{before:,} -> {during:,} during the growth -> {after:,}"
