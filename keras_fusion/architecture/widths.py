"""Which widths of a functional model may grow, and how the parents lie in them.

The graph of the first parent is read with named axes (`named_axes`): each layer names the
width that it sets, and each operation says what it does to the axes of its inputs. Where
an axis cannot grow (it is added to an input, summed over, reaches an output) its widths
must stay. The graph is read again with what was learnt, until there is nothing new:

- `fixed`: the layers whose output must keep its size (a readout, above all);
- `entries`: for the input of each layer, where each parent's features lie in the
  fused one's. They lie side by side, except after a `Flatten` or a `Concatenate`.

A width that cannot grow stays, if there are others; if there are none, or if distinct
parents would need it, the reason is raised.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras

from keras_fusion.architecture.chosen import Chosen
from keras_fusion.architecture.known_layers import effect_of
from keras_fusion.architecture.named_axes import (
    Axes,
    Names,
    Part,
    Placement,
    constant,
    contiguous,
)
from keras_fusion.architecture.parents import Parents
from keras_fusion.architecture.sites import Known, Site
from keras_fusion.architecture.wiring import wiring
from keras_fusion.errors import FusionError
from keras_fusion.models import graph as graphs

# A model's outputs stay, and so does what the user leaves out: no reason to refuse.
MEANT = ("output", "choice")

__all__ = ["Placement", "Widths", "analyse", "contiguous", "siblings_of"]


@dataclasses.dataclass
class Widths:
    """The widths that grow, by the id of the first parent's layer.

    Args:
        fixed: layers whose output must keep its size.
        entries: where the parents' features lie in the input of a layer.
        outputs: the same for its output.
        inputs: for a nested model one entry per input, `None` for one that did not
            grow.
        block_norms: whether norms over what grew get one statistic a parent.
        capacity: how much larger than the sum of the parents each width is to be.
        epsilon_divisor: what a joint norm's epsilon is divided by, since new capacity
            starts at zero and lowers what the epsilon is added to.
        overrides: config entries to set, by the layer's id.
        analysed: whether `entries` and `outputs` tell all that grows.
        repeated: how often each input of a concatenation is to be there, where that is
            not once: by the id of what concatenates and the input's place.
        shapes: the shapes of the tensors of the fused graph, by key.
        reasons: why widths stay that no output demands.
        made: what has been built; a layer that several models share is built once.
        chosen: which widths grow at all.
    """

    fixed: set[int] = dataclasses.field(default_factory=set)
    entries: dict[int, Placement] = dataclasses.field(default_factory=dict)
    outputs: dict[int, Placement] = dataclasses.field(default_factory=dict)
    inputs: dict[int, list] = dataclasses.field(default_factory=dict)
    block_norms: bool = False
    capacity: float = 1.0
    epsilon_divisor: float = 1.0
    overrides: dict[int, dict] = dataclasses.field(default_factory=dict)
    analysed: bool = False
    repeated: dict[tuple, int] = dataclasses.field(default_factory=dict)
    shapes: dict[graphs.Key, tuple] = dataclasses.field(default_factory=dict)
    reasons: tuple[str, ...] = ()
    made: dict[int, Any] = dataclasses.field(default_factory=dict)
    chosen: Chosen = dataclasses.field(default_factory=Chosen)


def analyse(
    parents: Parents,
    capacity: float = 1.0,
    target: keras.Model | None = None,
    chosen: Chosen | None = None,
) -> Widths:
    """Finds the widths that may grow, for parents that are plain graph models.

    Args:
        parents: K functional or Sequential models of one architecture.
        capacity: float. How much larger than the sum each width is to be.
        target: a bigger model that was given, in which unknown layers are tried.
        chosen: which widths grow; by default all.

    Returns:
        A `Widths`; its keys are the ids of the first parent's layers.

    Raises:
        FusionError: for a layer that cannot stand where its input grows.
    """
    chosen = chosen or Chosen()
    known = Known(Names(len(parents.models)), parents.copies, capacity, chosen)
    reading = _Reading(parents, known, target)
    while True:
        known.names.changed = False
        for record in (known.entries, known.outputs, known.overrides, reading.inputs):
            record.clear()
        tensors, outputs = reading.of_graph(parents.graph, (), parents.models)
        for tensor, axes in zip(parents.graph.outputs, outputs, strict=True):
            reason = f"The shape of the model's output {tensor.key[0]!r} must stay."
            for axis in axes:
                known.names.keep(axis, reason, "output")
        if not known.names.changed:
            _keep_unchosen(known)
        if not known.names.changed:
            return _found(known, tensors, reading.inputs, target is None)


def _keep_unchosen(known):
    """Keeps the widths that grow but are not chosen, when it is known which are equal."""
    setters: dict[Any, dict] = {}
    streams = set(map(known.names.settled, known.streams))
    for name, width in () if known.chosen.is_all else known.names.widths.items():
        if width.kind is not None and known.names.pin(name) is None:
            root = known.names.settled(name)
            kind = "residual" if root in streams else width.kind
            setters.setdefault(root, {})[width.keys] = kind
    pairs = {root: list(own.items()) for root, own in setters.items()}
    for root in known.chosen.unwanted(pairs):
        part = Part(known.names.widths[root].sizes[0], root)
        known.names.keep((part,), "It is not among the widths chosen.", "choice")


def _found(known, tensors, inputs, is_free) -> Widths:
    """What the last reading found, by the ids of layers."""
    names = known.names
    names.check_kept()
    _check_some_grow(known, is_free)

    def placed(axes):
        return {
            key: place
            for key, axis in axes.items()
            if (place := names.placement(axis)) is not None
        }

    return Widths(
        fixed={
            name[1] for name in names.widths if name[0] == "width" and names.pin(name)
        },
        entries=placed(known.entries),
        outputs=placed(known.outputs),
        inputs={
            key: [names.placement(axes[-1]) if axes else None for axes in own]
            for key, own in inputs.items()
        },
        capacity=known.capacity,
        overrides=dict(known.overrides),
        repeated={
            origin: names.count for origin in known.repeated if not names.pin(origin)
        },
        shapes={key: tuple(map(names.size, axes)) for key, axes in tensors.items()},
        reasons=tuple(pin.reason for pin in names.pins() if pin.cause not in MEANT),
    )


def _check_some_grow(known, is_free):
    """Raises the reason if no width can grow, or none of distinct parents."""
    names = known.names
    pins = [pin for pin in names.pins() if pin.cause not in MEANT]
    is_stuck = all(names.pin(name) for name in names.widths)
    hard = [pin.reason for pin in pins if pin.cause == "nature"]
    if hard and not known.copies:
        raise FusionError(f"{hard[0]} Distinct parents cannot share such a width.")
    # A choice may mean widths inside of layers, of which the graph tells nothing.
    if pins and is_stuck and (hard or is_free) and known.chosen.is_all:
        raise FusionError(hard[0] if hard else pins[0].reason)


class _Reading:
    """Reads the graph of a model and those of the models nested in it.

    Attributes:
        inputs: dict from the id of a nested model to the axes of its inputs.
    """

    def __init__(self, parents, known, target):
        self.known = known
        self.inputs: dict[int, list[Axes]] = {}
        self._read: dict[int, graphs.Graph] = {}
        self._targets = counterparts(parents.graph, target)

    def of_graph(
        self,
        graph: graphs.Graph,
        path: tuple,
        models: Sequence[keras.Model],
        inputs: Sequence[Axes] | None = None,
    ) -> tuple[dict[graphs.Key, Axes], list[Axes]]:
        """The axes of all tensors of a graph, and those of its outputs."""
        if inputs is None:
            inputs = [constant(t.shape) for t in models[0].inputs]
        tensors = dict(zip(graph.inputs, inputs, strict=True))
        siblings = siblings_of(models)
        for call in graph.calls:
            outputs = graph.made_by(call)
            if outputs:
                axes = [tensors[tensor.key] for tensor in call.inputs]
                layers = siblings.get(id(call.operation), ())
                made = self._of_call(call, axes, outputs, path, layers)
                keys = (tensor.key for tensor in outputs)
                tensors.update(zip(keys, made, strict=True))
        return tensors, [tensors[tensor.key] for tensor in graph.outputs]

    def _of_call(self, call, axes, outputs, path, layers):
        if graphs.is_plain(call.operation):
            return self._of_nested(call, axes, outputs, path, layers)
        target = None if path else self._targets.get(call.key)
        site = Site(self.known, call, tuple(axes), outputs, layers, target)
        made = effect_of(call)(site)
        return made * len(outputs) if len(made) == 1 else made

    def _of_nested(self, call, axes, outputs, path, layers):
        """A nested model's graph, with what goes into it; the same at all its calls."""
        model, names = call.operation, self.known.names
        if id(model) not in self._read:
            self._read[id(model)] = graphs.read(model)
        site = Site(self.known, call, tuple(axes), outputs, layers)
        first = self.inputs.setdefault(id(layers[0]), list(axes))
        reason = (
            f"The nested model {call.name!r} is called on features that grow and on "
            "others that stay. Use a model for each."
        )
        for ours, theirs in zip(first, axes, strict=True):
            for one, other in zip(ours, theirs, strict=True):
                names.same(one, other, reason, "nature")
            for axis in ours[:-1]:
                site.keep(axis, "an axis of its input other than the last grows")
        inner_path = (*path, call.name)
        _, made = self.of_graph(self._read[id(model)], inner_path, layers, axes)
        return [made[tensor.key[2]] for tensor in outputs]


def counterparts(
    graph: graphs.Graph, target: keras.Model | None
) -> dict[tuple[str, int], tuple[graphs.Call, dict[int, tuple]]]:
    """The calls of a bigger model that was given, and the shapes of what they make."""
    if not graphs.is_plain(target):
        return {}
    bigger = graphs.read(target)
    pairs = zip(wiring(graph).calls, wiring(bigger).calls, strict=False)
    return {
        own.key: (call, {t.key[2]: t.shape for t in bigger.made_by(call)})
        for own, call in pairs
    }


def siblings_of(parents: Sequence[keras.Model]) -> dict[int, tuple]:
    """The parents' corresponding layers, by the id of the first parent's."""
    stacks = zip(*(p.layers for p in parents), strict=True)
    return {id(layers[0]): layers for layers in stacks}
