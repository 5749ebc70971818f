"""The calls of a graph, with the axes of what goes in and what is known so far."""

import dataclasses
from collections.abc import Hashable, Iterable
from typing import Any

import numpy as np

from keras_fusion.architecture.chosen import Chosen
from keras_fusion.architecture.named_axes import (
    Axes,
    Axis,
    Names,
    constant,
)
from keras_fusion.models import graph as graphs
from keras_fusion.models.graph import Call, Tensor

MIXES = "it mixes the features of one parent with those of another"
PROJECT = "Put a layer that sets its own width (Dense) before it"
_OTHERS = "Its width stays; give the model others that can grow, by a Dense before it"


@dataclasses.dataclass
class Known:
    """What is known so far about a whole model.

    Args:
        names: its widths.
        copies: whether the parents are copies of one model.
        capacity: how much larger than the sum of the parents each width is to be.
        chosen: which widths grow.
        streams: names of widths that embeddings make or whose tensors are added.
        repeated: the inputs of concatenations that every parent gets a copy of.
        entries: the axis of the features that go into each layer, by its id.
        outputs: the axis of those that come out.
        overrides: entries of the grown config, by the id of a layer or operation.
    """

    names: Names
    copies: bool
    capacity: float
    chosen: Chosen = dataclasses.field(default_factory=Chosen)
    streams: set[Hashable] = dataclasses.field(default_factory=set)
    repeated: set[Hashable] = dataclasses.field(default_factory=set)
    entries: dict[int, Axis] = dataclasses.field(default_factory=dict)
    outputs: dict[int, Axis] = dataclasses.field(default_factory=dict)
    overrides: dict[int, dict] = dataclasses.field(default_factory=dict)

    @property
    def are_whole_copies(self) -> bool:
        """Whether every grown axis holds copies of one model's features, and no more."""
        return self.copies and self.capacity == 1.0 and self.chosen.to is None


@dataclasses.dataclass
class Site:
    """A call in a graph, with the axes of what goes in.

    Args:
        known: what is `Known` about the model.
        call: the call.
        inputs: the axes of its tensors, in the order of `call.inputs`.
        outputs: the tensors that it makes and that are used.
        layers: the corresponding layers of the parents; empty for an operation.
        target: the call's counterpart in a bigger model that was given, and the shapes
            of what it makes, by output.
    """

    known: Known
    call: Call
    inputs: tuple[Axes, ...]
    outputs: tuple[Tensor, ...]
    layers: tuple = ()
    target: tuple[Call, dict[int, tuple]] | None = None

    @property
    def names(self) -> Names:
        """The widths of the model."""
        return self.known.names

    def option(self, name: str, default: Any = None) -> Any:
        """An entry of the config."""
        return self.call.config.get(name, default)

    def keep(self, axis: Axis, cause: str, way_out: str = _OTHERS) -> None:
        """Says that an axis must keep its size, and why."""
        self.names.keep(axis, f"{self.call.described} cannot grow: {cause}. {way_out}.")

    def same(self, one: Axis, other: Axis) -> None:
        """Says that two axes are taken entry by entry."""
        reason = (
            f"{self.call.described} joins features that grow with others that stay or "
            "are laid out otherwise. Project one of them by a layer that sets its own "
            "width."
        )
        self.names.same(one, other, reason)

    def kept(self, cause: str, way_out: str = _OTHERS) -> list[Axes]:
        """The outputs if nothing that goes in may grow."""
        return self.all_kept(f"{self.call.described} cannot grow: {cause}. {way_out}.")

    def all_kept(self, reason: str) -> list[Axes]:
        """The same, for a reason in whole sentences."""
        for axes in self.inputs:
            for axis in axes:
                self.names.keep(axis, reason)
        return [constant(tensor.shape) for tensor in self.outputs]

    def override(self, entries: dict[str, Any]) -> None:
        """Says which entries the config of the grown layer or operation is to have."""
        self.known.overrides[id(self.call.source)] = entries

    def mark_stream(self, axis: Axis) -> None:
        """Notes that an axis holds the features of a residual stream."""
        self.known.streams |= {part.name for part in axis if part.name is not None}

    def arrays(self) -> list[Axes]:
        """The axes of the constant arrays among the arguments."""
        return [
            constant(np.shape(value["config"]["value"]))
            for value in self._values()
            if _is_array(value)
        ]

    def _values(self) -> list[Any]:
        return list(_leaves([*self.call.args, *self.call.kwargs.values()]))

    def operands(self) -> list[Axes]:
        """The axes of all tensors, arrays and numbers among the arguments, in order."""
        tensors = iter(self.inputs)
        return [_axes(value, tensors) for value in self._values()]


def _leaves(value: Any) -> Iterable[Any]:
    if isinstance(value, dict) and "class_name" not in value:
        for key in sorted(value):
            yield from _leaves(value[key])
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _axes(value: Any, tensors) -> Axes:
    if graphs.is_tensor(value):
        return next(tensors)
    return constant(np.shape(value["config"]["value"])) if _is_array(value) else ()


def _is_array(value: Any) -> bool:
    return isinstance(value, dict) and value["class_name"] in (
        "__numpy__",
        "__tensor__",
    )
