"""The effect of each known operation on named axes.

An effect is a function from a `Site`, one call in a graph, to the axes of each output. It
says which axes must stay or are one and the same. What is not listed here is not known to
treat the features of each parent by themselves: the widths that reach it stay.
"""

from collections.abc import Callable, Sequence

from keras_fusion.architecture.named_axes import Axes, Axis, Part, constant, total
from keras_fusion.architecture.sites import MIXES, Site

Effect = Callable[[Site], list[Axes]]


# Entry by entry, with broadcasting.

_SUMS_OF_STREAMS = ("Add", "Average", "Subtract")  # Layers and operations.


def elementwise(site: Site) -> list[Axes]:
    """Each entry of the output is made of the entries at its place."""
    for array in site.arrays():
        keep_beside(site, array)
    return [joined(site, site.operands())] * len(site.outputs)


def keep_beside(site: Site, array: Axes) -> None:
    """Keeps what a constant array is as long as."""
    for axes in site.inputs:
        for axis, own in zip(axes[::-1], array[::-1], strict=False):
            if total(own) != 1:
                site.keep(
                    axis,
                    f"it holds a constant array of shape {tuple(map(total, array))}, made "
                    "for the parents' width",
                    "Make the array a weight of a layer that has a rule",
                )


def joined(site: Site, operands: Sequence[Axes]) -> Axes:
    """The axes of operands that are broadcast against each other."""
    rank = max(map(len, operands), default=0)
    if site.call.class_name in _SUMS_OF_STREAMS:
        for axes in site.inputs if len(site.inputs) > 1 else ():
            site.mark_stream(axes[-1] if axes else ())
    result = []
    for place in range(-rank, 0):
        axes = [axes[place] for axes in operands if len(axes) >= -place]
        widest = next((axis for axis in axes if total(axis) != 1), axes[0])
        for axis in axes:
            if total(axis) == 1 and total(widest) != 1:
                site.keep(axis, "its input of size 1 is broadcast to every feature")
            else:
                site.same(axis, widest)
        result.append(widest)
    return tuple(result)


# Along some axes.

# What copies of one model say together is what each of them says.
_IDEMPOTENT = ("All", "Amax", "Amin", "Any", "Max", "Min")


def chosen(site: Site, rank: int, name: str = "axis") -> list[int]:
    """The axes that an option names; all for `None`."""
    axes = site.option(name, -1)
    if axes is None:
        return list(range(rank))
    return [a % rank for a in (axes if isinstance(axes, (list, tuple)) else [axes])]


def reduction(site: Site) -> list[Axes]:
    """Some axes become one number."""
    (axes, *_) = site.inputs
    gone = chosen(site, len(axes))
    is_common = site.call.class_name in _IDEMPOTENT and site.known.are_whole_copies
    for i in gone if not is_common else ():
        site.keep(axes[i], "it makes one number of the features of all parents")
    if site.option("keepdims"):
        one = (Part(1),)
        return [tuple(one if i in gone else axis for i, axis in enumerate(axes))]
    return [tuple(axis for i, axis in enumerate(axes) if i not in gone)]


def along_axis(site: Site) -> list[Axes]:
    """What happens along an axis depends on all its entries; the others pass."""
    (axes, *_) = site.inputs
    if len(axes) != len(site.outputs[0].shape):
        return site.kept(MIXES)  # It is flattened.
    along = chosen(site, len(axes))
    for i in along:
        site.keep(axes[i], MIXES)
    shape = constant(site.outputs[0].shape)  # Other along the axis only.
    return [tuple(shape[i] if i in along else axis for i, axis in enumerate(axes))]


def one_hot(site: Site) -> list[Axes]:
    """A new axis beside those of the numbers."""
    axes, rank = site.inputs[0], len(site.outputs[0].shape)
    place = site.option("axis", -1) % rank
    return [(*axes[:place], (Part(site.outputs[0].shape[place]),), *axes[place:])]


def untouched(site: Site) -> list[Axes]:
    """Axes whose length changes stay; axes of equal length pass."""
    (axes, *_) = site.inputs
    shape = site.outputs[0].shape
    if len(axes) != len(shape):
        return site.kept(MIXES)
    result = []
    for axis, size in zip(axes, shape, strict=True):
        if total(axis) != size:
            site.keep(axis, "it changes how many features there are")
        result.append(axis if total(axis) == size else (Part(size),))
    return [tuple(result)]


# Contraction.

_SUMS = "it sums over the features of all parents at once"


def matmul(site: Site) -> list[Axes]:
    """Rows times columns."""
    one, other = site.operands()
    if len(one) < 2 or len(other) < 2:
        return site.kept(_SUMS)
    site.keep(one[-1], _SUMS)
    site.keep(other[-2], _SUMS)
    return [(*joined(site, [one[:-2], other[:-2]]), one[-2], other[-1])]


def einsum(site: Site) -> list[Axes]:
    """Letters are axes: those that the output lacks are summed over."""
    equation = site.option("subscripts").replace(" ", "")
    if "." in equation or "->" not in equation:
        return site.kept(_SUMS)
    left, output = equation.split("->")
    found: dict[str, Axis] = {}
    for letters, axes in zip(left.split(","), site.operands(), strict=True):
        for letter, axis in zip(letters, axes, strict=True):
            site.same(found.setdefault(letter, axis), axis)
            if letter not in output:
                site.keep(axis, _SUMS)
    return [tuple(found[letter] for letter in output)]
