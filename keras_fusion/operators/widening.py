"""The layout of a growth by copies of units: which unit is copied where.

The bigger model is built as for a fusion; what lies on each axis is not the parents side
by side but the one model and, behind it, copies of its units (`values.copies`).
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import keras
import numpy as np

from keras_fusion.architecture import build
from keras_fusion.architecture.parents import Parents, resolved
from keras_fusion.architecture.setters import whole_numbers
from keras_fusion.architecture.widths import Widths
from keras_fusion.errors import FusionError
from keras_fusion.layout import variables
from keras_fusion.layout.axes import CopiedAxis
from keras_fusion.layout.variables import VariableLayout
from keras_fusion.models import exchange, host, private, probe, samples
from keras_fusion.operators.plan import Draft, Plan, build_and_lay_out
from keras_fusion.values import calibration, copies
from keras_fusion.values.fillers import CopiesFiller


@dataclasses.dataclass(frozen=True)
class Widening:
    """A growth by copies of units, whose filler may still be settled.

    Args:
        draft: the `Draft`, its layouts with their copies.
        filler: the `CopiesFiller`.
    """

    draft: Draft
    filler: CopiesFiller

    def plan(self, *, exact: bool = True) -> Plan:
        """The plan."""
        return self.draft.plan(self.filler, exact=exact)


def lay_out(
    model: keras.Model,
    factor: float,
    choose: Callable[[Draft], Callable[[int, int], np.ndarray]],
    *,
    seed: int,
    noise_scale: float,
    spread: float = 0.0,
    whole_copies: bool = False,
) -> Widening:
    """Lays out a widening, changing nothing.

    Args:
        model: a built model.
        factor: number above 1. How many times as wide the model becomes.
        choose: function from the `Draft`, without copies yet, to a function `mapping`;
            `mapping(old, new)` says which of `old` units each of `new` copies, see
            `copies.copied_axis`.
        seed: int. Seed of the noise, the shares and the initial values.
        noise_scale: float, see `copies.copy_array`.
        spread: float, see `copies.uneven_shares`.
        whole_copies: bool. Whether joint norms will see whole copies and else nothing, so
            that their epsilons must be smaller.

    Raises:
        FusionError: for a model that cannot be widened.
    """
    _refuse_blocks(model)
    models, larger = resolved(model, factor, copies=1)
    draft = build_and_lay_out(
        Parents.of(models),
        seed=seed,
        capacity=larger,
        epsilon_divisor=factor / int(factor) if whole_copies else 1.0,
    )
    mapping = choose(draft)
    layouts = tuple(_copied(layout, mapping) for layout in draft.layouts)
    draft = dataclasses.replace(draft, layouts=layouts)
    filler = CopiesFiller(noise_scale=noise_scale, spread=spread, seed=seed)
    return Widening(draft, filler)


def _refuse_blocks(model: keras.Model) -> None:
    """Refuses a model that computes block by block, since copies of units are no blocks."""
    for layer in exchange.block_norms(model):
        raise FusionError(
            f"{type(layer).__name__} {layer.name!r} computes for each of its blocks "
            f"{layer.blocks} alone, and copies of single units would lie in none of them. "
            "Let AnnealBlockNorms make it a stock layer first, or grow with "
            "FusionOperator(), which copies whole blocks."
        )


def _copied(layout, mapping):
    """The layout of a variable, with the sources of its copies."""
    if not layout.grown:
        return layout
    axes = tuple(copies.copied_axis(axis, mapping) for axis in layout.axes)
    ratios = (axis.size / len(axis.positions(0)) for axis in axes if axis.grown)
    layout = dataclasses.replace(layout, axes=axes, copies=max(ratios))
    if not layout.has_new:
        layout = dataclasses.replace(layout, initial=None)
    if layout.before_tied_readout:
        # The readout's factor lies here, as in a fusion.
        scales = (layout.scales[0] / layout.copies,)
        layout = dataclasses.replace(layout, scales=scales)
    return layout


def normed_sizes(draft: Draft) -> set[int]:
    """The widths that one norm reads as a whole, or as parts of a concatenation."""
    ids = {
        id(variable)
        for match in draft.matches
        if calibration.is_joint(match)
        for variable in match.grown.variables
    }
    return {
        old
        for layout in draft.layouts
        if id(layout.target) in ids
        for _, old, _, _ in _stretches(layout)
    }


def has_even_norms(draft: Draft) -> bool:
    """Whether all joint norms are over units that are copied equally often.

    Only then is the norm's statistic that of the smaller model.
    """
    joint = [match.grown for match in draft.matches if calibration.is_joint(match)]
    ids = {id(variable) for norm in joint for variable in norm.variables}
    return all(
        np.ptp(copies.shares(axis.sources)) == 0
        for layout in draft.layouts
        if id(layout.target) in ids
        for axis in layout.axes
        if isinstance(axis, CopiedAxis)
    )


# Units. What may be copied by itself is found by trying.


def common_groups(draft: Draft) -> int:
    """Into how many groups, equal on each axis, the units of a model can be put.

    Copying whole groups, the same everywhere, keeps heads whole, each with its keys.
    """
    sizes = {old for layout in draft.layouts for _, old, _, _ in _stretches(layout)}
    for match in draft.matches:
        if match.rule is not None and isinstance(match.rule.widths, tuple):
            old, new = whole_numbers(match.layers[0]), whole_numbers(match.grown)
            widths = match.rule.widths
            sizes |= {old[k] for k in widths if old.get(k, 0) < new.get(k, 0)}
    return math.gcd(*sizes)


def _stretches(layout: VariableLayout):
    """Yields the parts of the axes that grow."""
    for axis in layout.axes:
        for part in copies.stretches(axis) if axis.grown else ():
            if part[1] < part[3]:
                yield part


def free_sizes(draft: Draft) -> set[int]:
    """The widths whose units can change places one by one, and the function stays.

    Units of such a width are independent of each other; those of others belong together
    (the features of a head). It is tried on a twin of random weights, in which nothing
    is too small to count.

    Returns:
        Set of the sizes of axes.
    """
    model = draft.parents.first
    with private.without_values():
        twin = build.regrown(model, Widths())
    matches = Parents.of([model]).matched_with(twin)
    pairs = variables.lay_out(matches, Widths(), must_grow=False)
    targets = {id(pair.sources[0]): pair.target for pair in pairs}
    rows = [(targets[id(x.sources[0])], x.axes) for x in draft.layouts]
    rng = np.random.default_rng(0)
    with host.assumed(
        [(v, probe.random_value(v, rng)) for v in twin.trainable_variables]
    ):
        inputs = samples.accepted(twin)
        expected = probe.outputs(twin, inputs)
        sizes = {old for x in draft.layouts for _, old, _, _ in _stretches(x)}

        def is_free(size):
            with host.assumed(_moved(rows, rng.permutation(size))):
                change = probe.change(expected, probe.outputs(twin, inputs))
            return change <= probe.tolerance(twin) / 10

        return {size for size in sorted(sizes) if is_free(size)}


def _moved(
    rows: Sequence[tuple[keras.Variable, tuple]], order: np.ndarray
) -> list[tuple[keras.Variable, np.ndarray]]:
    """Values with all units of one width in another order."""
    found = []
    for variable, axes in rows:
        old = new = np.array(host.read(variable))
        for dimension, axis in enumerate(axes):
            for start, size, _, new_size in (
                copies.stretches(axis) if axis.grown else ()
            ):
                if size == len(order) and new_size > size:
                    places = np.arange(old.shape[dimension])
                    places[start : start + size] = start + order
                    new = np.take(new, places, axis=dimension)
        if new is not old:
            found.append((variable, new))
    return found
