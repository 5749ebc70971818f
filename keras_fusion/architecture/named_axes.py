"""Named axes: every axis of every tensor of a graph, known by what made it.

An axis is a sequence of parts. A part is either a number of entries that stays (a length,
the features of an input) or a width, which has the name of the layer that made it and
grows. A `Concatenate` puts the parts of its inputs one after the other; a `Flatten`
repeats those of the last axis; a gate halves its input, whose width is then two equal
parts. Two axes that an operation takes entry by entry must agree
part by part: their widths are then one width, and a width that meets a number stays.
"""

import dataclasses
from collections.abc import Hashable, Sequence

import numpy as np

from keras_fusion.errors import FusionError


@dataclasses.dataclass(frozen=True)
class Placement:
    """The places of the parents' features on the last axis of a fused tensor.

    Args:
        size: int. Length of the axis.
        blocks: one integer array per parent, the places of its features.
        stretches: one tuple `(start, size, new start, new size)` per part of the axis:
            where it lies in the first parent, and where in the fused tensor.
    """

    size: int
    blocks: tuple[np.ndarray, ...]
    stretches: tuple[tuple[int, int, int, int], ...] = ()

    @property
    def is_contiguous(self) -> bool:
        """Whether the parents lie side by side, in order, new capacity after them."""
        order = np.concatenate(self.blocks)
        return np.array_equal(order, np.arange(len(order)))


def contiguous(sizes: Sequence[int]) -> tuple[np.ndarray, ...]:
    """Blocks of the given sizes, one after the other."""
    ends = np.cumsum(sizes)
    return tuple(
        np.arange(end - size, end) for size, end in zip(sizes, ends, strict=True)
    )


@dataclasses.dataclass(frozen=True)
class Part:
    """A run of entries of an axis.

    Args:
        size: int, in the first parent; `None` for an unknown length or the batch.
        name: the width that it is; `None` for a number that stays.
        origin: of a number in a concatenation, which input of which call it is.
    """

    size: int | None
    name: Hashable = None
    origin: Hashable = None

    @property
    def length(self) -> int:
        """The size, where it is known."""
        return self.size or 0


Axis = tuple[Part, ...]
Axes = tuple[Axis, ...]


def constant(shape: Sequence[int | None]) -> Axes:
    """Axes that all stay."""
    return tuple((Part(size),) for size in shape)


def total(axis: Axis) -> int | None:
    """The length of an axis in the first parent."""
    sizes = [part.size for part in axis]
    return None if None in sizes else sum(size for size in sizes if size is not None)


@dataclasses.dataclass(frozen=True)
class Pin:
    """A reason why a width must stay.

    Args:
        reason: string, one sentence or more.
        cause: `"output"` for the shape of a model's output, `"size"` for an axis that it
            must agree with, `"choice"` for what the user leaves out, `"nature"` for what
            an operation does with it: distinct parents then have no width of that size
            in common.
    """

    reason: str
    cause: str


@dataclasses.dataclass(frozen=True)
class Width:
    """A width that some layer sets.

    Args:
        maker: name of the layer.
        sizes: its size in each parent.
        grown: its size in the fused model, if it grows.
        must_grow: why it cannot stay; `None` if it can.
        can_be_cut: whether it may be several parts, in each of which all parents lie.
        keys: the names that choose it: the layer's, and that of its config's key.
        kind: what it is for, see `chosen.KINDS`; `None` for what no layer sets.
    """

    maker: str
    sizes: tuple[int, ...]
    grown: int
    must_grow: str | None = None
    can_be_cut: bool = False
    keys: tuple[str, ...] = ()
    kind: str | None = None


class Names:
    """The widths of a model: which are one and the same, and which must stay.

    Args:
        count: the number of parents.

    Attributes:
        widths: dict from the name of each width to it.
        changed: whether something was learnt since it was last set to `False`.
    """

    def __init__(self, count: int):
        self.count = count
        self.widths: dict[Hashable, Width] = {}
        self.changed = False
        self._root: dict[Hashable, Hashable] = {}
        self._pins: dict[Hashable, Pin] = {}
        self._cuts: dict[Hashable, Axis] = {}

    def new(self, name: Hashable, width: Width) -> Axis:
        """The axis that is the width of this name, or the parts that it was cut in."""
        self.widths[name] = width
        return self._cuts.get(self.root(name), (Part(width.sizes[0], name),))

    def root(self, name: Hashable) -> Hashable:
        """The name that stands for all widths that are equal to one."""
        while name in self._root:
            name = self._root[name]
        return name

    def settled(self, name: Hashable) -> Hashable:
        """The root of a width, or that of the parts that it was cut in."""
        root = self.root(name)
        return self.settled(self._cuts[root][0].name) if root in self._cuts else root

    def pin(self, name: Hashable) -> Pin | None:
        """Why a width must stay, or `None` if it grows."""
        return self._pins.get(self.settled(name))

    def pins(self) -> list[Pin]:
        """The reasons why widths stay, in the order in which they were found."""
        return list(self._pins.values())

    def stays(self, part: Part) -> bool:
        """Whether a part has the same size in the fused model."""
        return part.name is None or self.pin(part.name) is not None

    def is_kept(self, axis: Axis) -> bool:
        """Whether no part of an axis grows."""
        return all(map(self.stays, axis))

    def is_grown(self, axis: Axis) -> bool:
        """Whether every part of an axis grows."""
        return not any(map(self.stays, axis))

    def keep(self, axis: Axis, reason: str, cause: str = "nature") -> None:
        """Says that an axis must have the parents' size.

        What is an output of the model stays for that cause, whatever else is found of it.
        """
        for part in axis:
            root = None if part.name is None else self.root(part.name)
            if not self.stays(part):
                self.changed = True
            elif cause != "output" or root not in self._pins:
                continue
            self._pins[root] = Pin(reason, cause)

    def same(self, one: Axis, other: Axis, reason: str, cause: str = "size") -> None:
        """Says that two axes are taken entry by entry, so that they must grow alike."""
        if self.is_kept(one) and self.is_kept(other):
            return
        one, other = self._cut_like(one, other), self._cut_like(other, one)
        if len(one) == len(other) and all(
            self._alike(*pair) for pair in zip(one, other, strict=True)
        ):
            for a, b in zip(one, other, strict=True):
                self._tie(a, b, reason, cause)
        else:  # The parts of one end where those of the other do not.
            self.keep(one, reason)
            self.keep(other, reason)

    def pieces(self, axis: Axis, count: int) -> list[Axis] | None:
        """An axis in pieces of equal length, each of whole parts.

        A part that is as long as several pieces is cut. `None` if that cannot be.
        """
        length = total(axis)
        if length is None or length % count:
            return None
        size, found, left = length // count, [], 0
        for part in axis:
            if left == 0 and part.length % size == 0:
                cut = self._cut(part, part.length // size)
                if cut is None:
                    return None
                found += [(own,) for own in cut]
            elif part.length <= (left or size):
                found = found if left else [*found, ()]
                found[-1] += (part,)
                left = (left or size) - part.length
            else:
                return None
        return found

    def _cut(self, part: Part, count: int) -> Axis | None:
        """A part as several equal ones; `None` if its maker cannot lay it out so."""
        if count == 1:
            return (part,)
        if self.stays(part):
            return (Part(part.length // count),) * count
        root, width = self.root(part.name), self._width(part)
        if root not in self._cuts:
            tied = [w for name, w in self.widths.items() if self.root(name) == root]
            whole = all(size % count == 0 for size in (*width.sizes, width.grown))
            if not whole or not all(own.can_be_cut for own in tied):
                return None
            sizes = tuple(size // count for size in width.sizes)
            piece = dataclasses.replace(width, sizes=sizes, grown=width.grown // count)
            self._cuts[root] = self.new(("piece", root), piece) * count
            self.changed = True
        return self._cuts[root] if len(self._cuts[root]) == count else None

    def _cut_like(self, axis: Axis, other: Axis) -> Axis:
        """An axis of one width, cut in as many parts as another."""
        is_whole = len(axis) == 1 < len(other) and total(axis) == total(other)
        if is_whole and len({part.size for part in other}) == 1:
            return self._cut(axis[0], len(other)) or axis
        return axis

    def _alike(self, a: Part, b: Part) -> bool:
        if a.name is None or b.name is None:
            return a.size == b.size
        return self._width(a).sizes == self._width(b).sizes

    def _width(self, part: Part) -> Width:
        return self.widths[self.root(part.name)]

    def _tie(self, a: Part, b: Part, reason: str, cause: str) -> None:
        if self.stays(a) or self.stays(b):
            self.keep((a, b), reason, cause)
            return
        one, other = self.root(a.name), self.root(b.name)
        if one != other:
            self._root[other] = one
            self.changed = True

    def size(self, axis: Axis) -> int | None:
        """The length of an axis in the fused model."""
        sizes = [p.size if self.stays(p) else self._width(p).grown for p in axis]
        return (
            None if None in sizes else sum(size for size in sizes if size is not None)
        )

    def placement(self, axis: Axis) -> Placement | None:
        """Where the parents lie on an axis; `None` if it does not grow."""
        if self.is_kept(axis):
            return None
        blocks, stretches = [[] for _ in range(self.count)], []
        start = place = 0
        for part in axis:
            if self.stays(part):  # The same places for every parent.
                own, new = (np.arange(part.length),) * self.count, part.length
            else:
                own, new = contiguous(self._width(part).sizes), self._width(part).grown
            for block, positions in zip(blocks, own, strict=True):
                block.append(place + positions)
            stretches.append((start, part.length, place, new))
            start, place = start + (part.length), place + new
        joined = tuple(np.concatenate(block) for block in blocks)
        return Placement(place, joined, tuple(stretches))

    def check_kept(self) -> None:
        """Refuses widths that must stay and cannot, or that differ between the parents.

        Raises:
            FusionError: naming the layer.
        """
        for name, width in self.widths.items():
            pin = self.pin(name)
            if pin is not None and width.must_grow is not None:
                raise FusionError(f"{width.must_grow} {pin.reason}")
            if pin is not None and len(set(width.sizes)) > 1:
                raise FusionError(
                    f"The parents differ in the width of {width.maker!r}, "
                    f"{list(width.sizes)}, which must stay. {pin.reason}"
                )
