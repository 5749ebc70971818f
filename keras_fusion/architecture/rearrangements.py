"""The effect of operations that put axes, or their parts, in other places."""

import math
from collections.abc import Hashable, Sequence
from typing import Any

from keras_fusion.architecture.named_axes import Axes, Axis, Part, constant, total
from keras_fusion.architecture.operations import along_axis, chosen, joined
from keras_fusion.architecture.sites import MIXES, Site

# In another order.


def transpose(site: Site) -> list[Axes]:
    """All axes in another order."""
    axes = site.inputs[0]
    order = site.option("axes") or range(len(axes))[::-1]
    return [tuple(axes[i] for i in order)]


def swapaxes(site: Site) -> list[Axes]:
    """Two axes change places."""
    axes = list(site.inputs[0])
    one, other = site.option("axis1"), site.option("axis2")
    axes[one], axes[other] = axes[other], axes[one]
    return [tuple(axes)]


def moveaxis(site: Site) -> list[Axes]:
    """Some axes move."""
    axes = site.inputs[0]
    rank = len(axes)
    pairs = zip(
        chosen(site, rank, "destination"),
        chosen(site, rank, "source"),
        strict=True,
    )
    moved = dict(pairs)
    rest = iter(i for i in range(rank) if i not in moved.values())
    return [tuple(axes[moved[i] if i in moved else next(rest)] for i in range(rank))]


def permute(site: Site) -> list[Axes]:
    """The axes behind the batch in another order."""
    axes = site.inputs[0]
    return [(axes[0], *(axes[i] for i in site.option("dims")))]


# One behind the other.


def concatenation(site: Site) -> list[Axes]:
    """Axes are put one behind the other; the others are one and the same."""
    operands = [axes for axes in site.operands() if axes]
    place = site.option("axis", -1) % len(operands[0])
    result = list(joined(site, [_without(axes, place) for axes in operands]))
    parts = []
    for i, axes in enumerate(operands):
        parts += _part_of(site, axes[place], (id(site.call.source), i))
    result.insert(place, tuple(parts))
    return [tuple(result)]


def _without(axes: Axes, place: int) -> Axes:
    return axes[:place] + axes[place + 1 :]


def _part_of(site: Site, axis: Axis, origin: Hashable) -> Axis:
    """What an input adds to a concatenation: a number may become a copy per parent."""
    size = total(axis)
    if size is None or not site.names.is_kept(axis):
        return axis
    if origin in site.known.repeated:
        return (Part(size, origin),)
    return (Part(size, None, origin),)


def stack(site: Site) -> list[Axes]:
    """A new axis, as long as there are inputs."""
    operands = site.operands()
    axes = list(joined(site, operands))
    place = site.option("axis", 0) % (len(axes) + 1)
    axes.insert(place, (Part(len(operands)),))
    return [tuple(axes)]


def tile(site: Site) -> list[Axes]:
    """Axes several times, one behind the other; new ones come first."""
    times, axes = site.option("repeats"), site.inputs[0]
    times = [times] if isinstance(times, int) else list(times)
    rank = max(len(times), len(axes))
    times = [1] * (rank - len(times)) + times
    axes = (*[(Part(1),)] * (rank - len(axes)), *axes)
    shape = site.outputs[0].shape
    return [
        tuple(
            axis * n if total(axis) is not None else (Part(size),)
            for axis, n, size in zip(axes, times, shape, strict=True)
        )
    ]


def unstack(site: Site) -> list[Axes]:
    """The entries of an axis, each by itself."""
    axes = site.inputs[0]
    place = site.option("axis", 0) % len(axes)
    site.keep(axes[place], "it takes its features one by one")
    return [_without(axes, place)] * len(site.outputs)


def split(site: Site) -> list[Axes]:
    """Pieces of an axis, which are laid out alike."""
    axes = site.inputs[0]
    place = site.option("axis", -1) % len(axes)
    count = site.option("indices_or_sections")
    pieces = _alike(site, axes[place], count) if isinstance(count, int) else None
    if pieces is None:
        site.keep(
            axes[place], "it cuts a width in two, and each parent has both pieces"
        )
        return [
            (*axes[:place], (Part(tensor.shape[place]),), *axes[place + 1 :])
            for tensor in site.outputs
        ]
    return [
        (*axes[:place], pieces[tensor.key[2]], *axes[place + 1 :])
        for tensor in site.outputs
    ]


def _alike(site: Site, axis: Axis, count: int) -> list[Axis] | None:
    """An axis in equal pieces that grow alike; `None` if it does not fall apart so."""
    pieces = site.names.pieces(axis, count)
    if pieces is not None:
        for piece in pieces[1:]:
            site.same(pieces[0], piece)
    return pieces


def gate(site: Site) -> list[Axes]:
    """One half of an axis opens and closes the other."""
    axes = site.inputs[0]
    place = site.option("axis", -1) % len(axes)
    halves = _alike(site, axes[place], 2)
    if halves is None:
        return along_axis(site)
    return [(*axes[:place], halves[0], *axes[place + 1 :])]


def item(site: Site) -> list[Axes]:
    """A selection by a constant key: axes that are taken whole pass."""
    key = site.call.args[1] if len(site.call.args) > 1 else None
    keys = list(key) if isinstance(key, (list, tuple)) else [key]
    kinds = [_kind(k) for k in keys]
    axes, shape = site.inputs[0], site.outputs[0].shape
    if len(site.inputs) > 1 or "other" in kinds:
        return site.kept("its key is not one of whole numbers and slices")
    whole = len(axes) - sum(kind not in ("new", "rest") for kind in kinds)
    if "rest" not in kinds:
        kinds.append("rest")
        keys.append(None)
    at = kinds.index("rest")
    kinds[at : at + 1] = ["all"] * whole
    keys[at : at + 1] = [None] * whole
    result, i = [], 0
    for kind in kinds:
        if kind == "new":
            result.append((Part(1),))
            continue
        if kind != "all":
            site.keep(axes[i], "it selects some of the features")
        if kind != "one":
            whole_axis = kind == "all"
            result.append(axes[i] if whole_axis else (Part(shape[len(result)]),))
        i += 1
    return [tuple(result)]


def _kind(key: Any) -> str:
    if key is None:
        return "new"
    if isinstance(key, int) and not isinstance(key, bool):
        return "one"
    if isinstance(key, dict) and key.get("class_name") == "__ellipsis__":
        return "rest"
    if isinstance(key, dict) and key.get("class_name") == "__slice__":
        bounds = key["config"]
        whole = bounds["start"] in (None, 0) and bounds["stop"] is None
        return "all" if whole and bounds["step"] in (None, 1) else "some"
    return "other"


def take(site: Site) -> list[Axes]:
    """Entries of one axis, at places that are given."""
    axes, *indices = site.operands()
    if site.option("axis") is None:
        return site.kept(MIXES)
    place = site.option("axis") % len(axes)
    site.keep(axes[place], "it selects some of the features")
    rank = len(site.outputs[0].shape) - len(axes) + 1
    chosen = indices[0] if len(indices[0]) == rank else None
    if chosen is None:  # A list of numbers.
        chosen = constant(site.outputs[0].shape[place : place + rank])
    return [(*axes[:place], *chosen, *axes[place + 1 :])]


# By another shape.


_TARGET = "its target shape holds the parents' width, or cuts it"


def flatten(site: Site) -> list[Axes]:
    """All axes behind the batch become one."""
    axes = site.inputs[0]
    positions = tuple(total(axis) for axis in axes[1:-1])
    if None in positions:
        return site.all_kept(
            f"Layer {site.call.name!r} flattens axes of unknown length {positions}. Give "
            "the model's Input a full shape, or pool instead of flattening."
        )
    return reshape(site)


def reshape(site: Site) -> list[Axes]:
    """Axes are joined, or axes of size 1 come and go; then each keeps its name."""
    axes, shape = site.inputs[0], site.outputs[0].shape
    result: list[Axis] = []
    for ours, theirs in _groups([total(axis) for axis in axes], shape):
        own = [axes[i] for i in ours]
        new = [shape[i] for i in theirs]
        found = _regrouped(site, own, new)
        if found is None:
            for axis in own:
                site.keep(axis, _TARGET)
        result += found or constant(new)
    _reshaped(site, result)
    return [tuple(result)]


def _reshaped(site: Site, axes: Sequence[Axis]) -> None:
    """The target shape of a reshape, in the fused model."""
    name = "newshape" if "newshape" in site.call.config else "target_shape"
    shape = site.option(name)
    if shape is not None:
        sizes = [site.names.size(axis) for axis in axes][-len(shape) :]
        pairs = zip(shape, sizes, strict=True)
        site.override({name: tuple(s if s in (-1, None) else n or s for s, n in pairs)})


def _groups(ours: Sequence, theirs: Sequence) -> list[tuple[list[int], list[int]]]:
    """The axes of two shapes in groups that hold equally many entries."""
    if len(ours) > 1 < len(theirs) and None is not ours[-1] == theirs[-1]:
        # The last axis passes, whatever becomes of those before it.
        last = ([len(ours) - 1], [len(theirs) - 1])
        return [*_groups(ours[:-1], theirs[:-1]), last]
    groups, i, j = [], 0, 0
    while i < len(ours) and j < len(theirs):
        own, new = [i], [j]
        while (inside := _product(ours, own)) != (outside := _product(theirs, new)):
            grow_own = None not in (inside, outside) and (inside or 0) < (outside or 0)
            if grow_own and own[-1] + 1 < len(ours):
                own.append(own[-1] + 1)
            elif not grow_own and new[-1] + 1 < len(theirs):
                new.append(new[-1] + 1)
            else:  # They do not fit, since a length is unknown.
                own, new = list(range(i, len(ours))), list(range(j, len(theirs)))
                break
        groups.append((own, new))
        i, j = own[-1] + 1, new[-1] + 1
    if groups:  # What is left has size 1.
        groups[-1][0].extend(range(i, len(ours)))
        groups[-1][1].extend(range(j, len(theirs)))
    return groups


def _product(sizes: Sequence, places: Sequence[int]) -> int | None:
    chosen = [sizes[i] for i in places]
    return None if None in chosen else math.prod(chosen)


def _regrouped(site: Site, own: list[Axis], new: list) -> list[Axis] | None:
    """The axes of one group, or `None` if a width would be cut."""
    if all(map(site.names.is_kept, own)):
        return list(constant(new))
    sizes = [total(axis) for axis in own]
    if None in sizes or _product(sizes, range(len(sizes))) != math.prod(new):
        return None
    if len(own) == len(new) == 1:
        return own
    wide = [a for a in own if total(a) != 1 or not site.names.is_kept(a)]
    places = [i for i, size in enumerate(new) if size != 1]
    if len(places) != 1:
        return None
    for axis in own:
        if axis is not wide[-1]:
            site.keep(axis, "it puts the features of this axis behind those of another")
    result = list(constant(new))
    result[places[0]] = wide[-1] * math.prod(total(axis) or 0 for axis in wide[:-1])
    return result
