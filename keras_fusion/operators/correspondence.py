"""Which tensors inside a grown model hold which tensors of its parents.

This follows from each layer's weights: the axes that are contracted with the layer's input
show where the parents' features lie in the input, and those that index the output show
where they lie in the output. Tensors that no weight describes are not compared.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_fusion.layout.axes import Axis, CopiedAxis
from keras_fusion.models import tree
from keras_fusion.models.observe import Seen, Watched
from keras_fusion.models.samples import Sample

Pair = tuple[np.ndarray, np.ndarray]  # what is expected, and what is found


@dataclasses.dataclass(frozen=True)
class Counterpart:
    """A layer of a grown model, with the parents' layers that lie in it.

    Args:
        address: string. The layer's address.
        parents: tuple of K layers; of copies the same one K times.
        grown: the layer.
        inputs: the axes of its weights that are contracted with its input.
        outputs: the axes of its weights that index its output.
        is_scaled: bool. Whether its output carries the factor of a tied readout.
    """

    address: str
    parents: tuple[keras.Layer, ...]
    grown: keras.Layer
    inputs: tuple[Axis, ...]
    outputs: tuple[Axis, ...]
    is_scaled: bool


@dataclasses.dataclass(frozen=True)
class Change:
    """The change of one tensor.

    Args:
        layer: the `Counterpart` that it belongs to, or `None` for a model's output.
        place: string, such as `"input"`.
        call: int. Which of the layer's calls; of a model's outputs which one.
        amount: float. The largest change relative to the largest value.
        is_mean: bool. Whether it is compared with the mean of distinct parents.
    """

    layer: Counterpart | None
    place: str
    call: int
    amount: float
    is_mean: bool = False

    @property
    def key(self) -> tuple:
        """What identifies the tensor in another measurement."""
        return self.layer and self.layer.address, self.place, self.call


def counterparts(plan: Any) -> list[Counterpart]:
    """The layers with weights of a growth in width.

    Args:
        plan: a `Plan`.

    Returns:
        List of `Counterpart`s; empty for a growth in depth.
    """
    if not any(layout.grown for layout in plan.layouts):
        return []
    owners = [_owners(model) for model in {id(m): m for m in plan.parents}.values()]
    own = {key: owner for found in owners for key, owner in found.items()}
    grown = _owners(plan.fused)
    by_layer: dict[int, list] = {}
    for layout in plan.layouts:
        if not layout.is_state and id(layout.target) in grown:
            layer = grown[id(layout.target)][1]
            by_layer.setdefault(id(layer), []).append(layout)
    found = []
    for layouts in by_layer.values():
        sources = [own.get(id(source)) for source in layouts[0].sources]
        if None in sources:
            continue  # A weight that no layer of the parent holds as its own.
        axes = [axis for layout in layouts for axis in layout.axes if axis.grown]
        found.append(
            Counterpart(
                grown[id(layouts[0].target)][0],
                tuple(source[1] for source in sources if source),
                grown[id(layouts[0].target)][1],
                tuple(axis for axis in axes if axis.role == "in"),
                # What is taken apart does not describe the output.
                tuple(x for x in axes if x.role == "out" and not x.stacked),
                any(x.before_tied_readout or set(x.scales) != {1.0} for x in layouts),
            )
        )
    return found


def _owners(model: keras.Model) -> dict[int, tuple[str, keras.Layer]]:
    """The layer that holds each variable, with its address."""
    return {
        id(variable): (address, layer)
        for address, layer in tree.walk(model)
        for variable in tree.own_variables(layer)
    }


def changes(
    layers: Sequence[Counterpart],
    before: Sequence[Watched],
    after: Watched,
    sample: Sample,
) -> list[Change]:
    """The changes of the tensors inside a model, in the order of its calls.

    Args:
        layers: the result of `counterparts`.
        before: the calls of the K parents.
        after: the call of the grown model.
        sample: the batch.
    """
    found, rank = [], {key: i for i, key in enumerate(after.calls)}
    for layer in sorted(layers, key=lambda x: rank.get(id(x.grown), len(rank))):
        calls = [
            watched.calls.get(id(own), [])
            for watched, own in zip(before, layer.parents, strict=True)
        ]
        own = after.calls.get(id(layer.grown), [])
        if any(len(x) != len(own) for x in calls):
            continue
        for i, seen in enumerate(own):
            found += _of_call(layer, i, [x[i] for x in calls], seen, sample)
    return found


def _of_call(layer, index, before: Sequence[Seen], after: Seen, sample):
    """The changes of one call: of its input, behind its activation, of its output."""
    floor = _floors(before[0].input, sample)
    tensors = [("input", layer.inputs)]
    if not layer.is_scaled:
        tensors += [("inner", layer.outputs), ("output", layer.outputs)]
    found = []
    for name, axes in tensors:
        old, new = [getattr(seen, name) for seen in before], getattr(after, name)
        if new is None or any(x is None for x in old):
            continue
        has_grown = any(x.shape != new.shape for x in old)
        is_mean = not has_grown and len({id(x) for x in layer.parents}) > 1
        if is_mean and (
            name == "input" or (name == "output" and after.inner is not None)
        ):
            continue  # Only what is linear in the weights is the mean.
        pairs = corresponding(old, new, axes)
        if pairs:
            amount = max(amount_of(*pair, sample, floor) for pair in pairs)
            found.append(Change(layer, name, index, amount, is_mean))
    return found


def _floors(value, sample):
    """By part, a size below which a difference to it is a rounding."""
    if value is None:
        return [0.0]
    return [1e-3 * _largest(part) for part in sample.parts(value)]


def _largest(part):
    finite = part[np.isfinite(part)]
    return float(np.max(np.abs(finite), initial=0.0))


def corresponding(
    old: Sequence[np.ndarray], new: np.ndarray, axes: Sequence[Axis]
) -> list[Pair]:
    """What is expected of a tensor and what is found, block by block.

    Args:
        old: K arrays, the parents' tensors.
        new: the grown model's.
        axes: the axes that may describe the one along which it grew.

    Returns:
        List of pairs of arrays of equal shapes; empty if no axis describes it.
    """
    if any(x.ndim != new.ndim for x in old):
        return []
    differ = [
        d for d in range(new.ndim) if any(x.shape[d] != new.shape[d] for x in old)
    ]
    if not differ:
        are_copies = all(x is old[0] for x in old)
        return [(old[0] if are_copies else np.mean(old, axis=0), new)]
    if len(differ) > 1:
        return []
    (d,) = differ
    fitting = (_along(axis, d, old, new) for axis in axes if axis.size == new.shape[d])
    # Several weights of a layer may be of that size; only one describes the tensor.
    return min(filter(None, fitting), key=_distance, default=[])


def _distance(pairs):
    with np.errstate(all="ignore"):
        found = [np.max(np.abs(new - old), initial=0.0) for old, new in pairs]
    return float(np.nan_to_num(max(found), nan=np.inf))


def _along(axis, d, old, new):
    if isinstance(axis, CopiedAxis):
        places = np.flatnonzero(axis.sources >= 0)
        if axis.sources.max() != old[0].shape[d] - 1:
            return []
        return [(old[0].take(axis.sources[places], d), new.take(places, d))]
    blocks = axis.blocks or ()
    if [len(b) for b in blocks] != [x.shape[d] for x in old]:
        return []
    return [(x, new.take(b, d)) for x, b in zip(old, blocks, strict=True)]


def amount_of(
    expected: np.ndarray,
    found: np.ndarray,
    sample: Sample,
    floors: Sequence[float] = (0.0,),
) -> float:
    """The largest change of a tensor, each part relative to its own largest value.

    What is expected to be NaN or infinite is left out; where a finite value has become
    so, the change is infinite.
    """
    worst = 0.0
    parts = list(zip(sample.parts(expected), sample.parts(found), strict=True))
    if len(floors) != len(parts):
        floors = [min(floors)] * len(parts)
    for (e, f), floor in zip(parts, floors, strict=True):
        finite = np.isfinite(e)
        if finite.any():
            with np.errstate(all="ignore"):
                change = np.abs(f[finite] - e[finite])
            scale = max(_largest(e), floor, float(np.finfo("float32").tiny))
            change = np.max(np.where(np.isfinite(change), change, np.inf))
            worst = max(worst, float(change) / scale)
    return worst
