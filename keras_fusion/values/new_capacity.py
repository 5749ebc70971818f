"""New capacity of a target that is larger than the sum of its parents.

It must have no influence on the function yet, and still learn. So on each path through it
one weight starts at zero and the others at their initial values. Which one must be zero
depends on the network: the weights into a new hidden unit may be anything if those out
of it are zero; in a residual stream under one joint norm it is the other way round,
since every feature that is not zero would count in the norm's mean of squares. Under a
layer norm, a new feature that is the mean of the others does not count. What is usual is
tried first; where the function changes, trials weight by weight decide.
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import keras
import numpy as np

from keras_fusion.architecture.parents import Match
from keras_fusion.errors import FusionError
from keras_fusion.layout.variables import VariableLayout
from keras_fusion.models import host, probe, samples, tree
from keras_fusion.values import calibration
from keras_fusion.values.fillers import WidthFiller


def settled(
    filler: WidthFiller,
    matches: Sequence[Match],
    layouts: Sequence[VariableLayout],
    count: int,
) -> WidthFiller:
    """The filler with initial values of new capacity that have no influence.

    Args:
        filler: the filler of the growth of one model.
        matches: the corresponding layers of the model and the bigger one.
        layouts: the layouts of the growth.
        count: int. Number of whole copies of the model in the bigger one.

    Raises:
        FusionError: if the function changes even where no new capacity is used.
    """
    new = [index for index, layout in enumerate(layouts) if layout.has_new]
    if not new:
        return filler
    is_tied = any(layout.before_tied_readout for layout in layouts)
    norms = calibration.joint_layers(matches)
    if not (is_tied or norms):
        # Without a joint norm it is enough that nothing reads the new outputs.
        return filler
    varied = varied_answer(matches[0].layers[0], layouts, norms)
    corrections = calibration.for_new_capacity(matches, layouts, count, varied.seen)
    filler = dataclasses.replace(filler, corrections=corrections)
    if not (corrections or is_tied):
        return filler
    return _Trial(filler, matches, layouts, new, varied).run()


class _Trial:
    """Finds by trial which weights must be zero; nothing is written."""

    def __init__(
        self,
        filler: WidthFiller,
        matches: Sequence[Match],
        layouts: Sequence[VariableLayout],
        new: Sequence[int],
        varied: samples.Answer,
    ):
        self._filler = dataclasses.replace(filler, fresh_roles=dict.fromkeys(new, ()))
        self._matches, self._layouts, self._new = matches, layouts, new
        self._fused = matches[0].grown
        self._inputs, self._expected = varied.inputs, varied.outputs
        norms = _norm_weights(matches)
        self._has_norms = bool(norms)
        self._is_norm = {i: id(layouts[i].target) in norms for i in new}
        self._harmless = probe.harmless(self._fused, len(matches))

    def run(self) -> WidthFiller:
        """Runs the trials; returns the filler with `fresh_roles` and `mean_outputs`."""
        usual, everything = self._usual_roles(), range(len(self._layouts))
        without = self._filler
        mean_outputs = self._means()[0]
        self._filler = dataclasses.replace(without, mean_outputs=mean_outputs)
        if self._is_harmless(usual, everything, self._expected):
            return self._filler
        self._filler = without
        with contextlib.ExitStack() as assumed:
            unused = self._without_use(assumed)
            # Without a role a value is what is assumed already.
            used = [i for i in self._new if usual[i]]
            if self._is_harmless(usual, used, unused):
                return self._filler
            for role in ("out", "in"):
                kept = self._with_fresh(role, unused)
                assumed.enter_context(host.assumed(kept))
        return self._filler

    def _value(self, index: int) -> np.ndarray:
        arrays = [host.read(source) for source in self._layouts[index].sources]
        return self._filler.value(index, self._layouts[index], arrays)

    def _outputs(self) -> list[np.ndarray]:
        try:
            outputs = probe.outputs(self._fused, self._inputs)
        except Exception as error:
            raise FusionError(
                f"The grown {self._fused.name!r} fails where its parent does not: {error} "
                "A constant or an option in it holds a width. Keep that out of the model, "
                "or pass the bigger model as `into`."
            ) from error
        return _old_part(outputs, self._expected)

    def _means(self) -> list[frozenset[int]]:
        """Which new outputs may have to be the mean of the old ones; the likely first."""
        means = (i for i in self._new if not self._is_norm[i])
        tried = [frozenset(), frozenset(means)]
        if self._has_norms and _is_centered(self._matches):
            tried.reverse()
        return tried

    def _without_use(self, assumed: contextlib.ExitStack) -> list[np.ndarray]:
        """The outputs of the bigger model, assumed from now on, without new capacity."""
        changes = []
        for mean_outputs in self._means():
            self._filler = dataclasses.replace(self._filler, mean_outputs=mean_outputs)
            values = [(x.target, self._value(i)) for i, x in enumerate(self._layouts)]
            with host.assumed(values):
                found = self._outputs()
            changes.append(probe.change(self._expected, found))
            if changes[-1] <= probe.tolerance(self._fused):
                assumed.enter_context(host.assumed(values))
                return found
        raise FusionError(
            f"{self._fused.name!r} is larger than its copies together, and the new "
            f"capacity changes the outputs by {min(changes):.1e} even where it is not "
            "used: layer norms after the residual sum, or after an activation, count it "
            "in their mean, or a norm's epsilon is not small compared with the statistic "
            "that it is added to (in a model passed as `into` it should be the smaller "
            "model's, times the fraction of features that are not new). Use a whole "
            "`factor`, or a FusionOperator with norms='block'."
        )

    def _usual_roles(self) -> dict[int, tuple[str, ...]]:
        """The roles that start from initial values in most networks.

        What writes into widths that a norm reduces over starts at zero, what reads them
        at its initial values; it is the other way round for all other widths.
        """
        sizes = {role: {} for role in ("out", "in")}
        for i in self._new:
            for axis in self._layouts[i].axes:
                if axis.role in sizes and axis.unused().size:
                    sizes[axis.role].setdefault(i, set()).add(axis.size)
        is_norm = self._is_norm
        normed = set().union(*(own for i, own in sizes["out"].items() if is_norm[i]))
        free = {i for i, own in sizes["out"].items() if not own & normed}
        written = set().union(*(sizes["out"][i] for i in free))
        fresh = {
            "out": free | {i for i in sizes["out"] if is_norm[i]},
            "in": {i for i, own in sizes["in"].items() if not own & written},
        }
        return {i: tuple(r for r in fresh if i in fresh[r]) for i in self._new}

    def _is_harmless(
        self,
        roles: Mapping[int, tuple[str, ...]],
        indices: Iterable[int],
        expected: Sequence[np.ndarray],
    ) -> bool:
        """Tries roles at once; the filler gets them if nothing else than expected comes.

        Args:
            roles: by the index of a layout.
            indices: the layouts whose values are not assumed yet.
            expected: the outputs.
        """
        before = self._filler
        self._filler = _with_roles(before, roles)
        values = [(self._layouts[i].target, self._value(i)) for i in indices]
        with host.assumed(values):
            if probe.change(expected, self._outputs()) <= self._harmless:
                return True
        self._filler = before
        return False

    def _with_fresh(self, role: str, unused: Sequence[np.ndarray]) -> list[probe.Value]:
        """The values that start from initial ones without a change of the function."""
        tried = [i for i in self._new if _has_new(self._layouts[i], role)]
        before, old = self._filler, [self._value(i) for i in tried]
        roles = {i: (*before.fresh_roles[i], role) for i in tried}
        self._filler = _with_roles(before, roles)
        values = [(self._layouts[i].target, self._value(i)) for i in tried]
        same = [np.array_equal(x, y) for x, (_, y) in zip(old, values, strict=True)]
        pairs = list(zip(values, same, strict=True))
        kept = [value for value, is_same in pairs if is_same]
        kept += probe.keep_harmless(
            lambda: probe.change(unused, self._outputs()),
            [value for value, is_same in pairs if not is_same],
            tolerance=self._harmless,
        )
        ids = {id(variable) for variable, _ in kept}
        roles = {i: r for i, r in roles.items() if id(self._layouts[i].target) in ids}
        self._filler = _with_roles(before, roles)
        return kept


def _with_roles(
    filler: WidthFiller, roles: Mapping[int, tuple[str, ...]]
) -> WidthFiller:
    """The filler with other roles whose new capacity starts from initial values."""
    return dataclasses.replace(filler, fresh_roles={**filler.fresh_roles, **roles})


def varied_answer(
    model: keras.Model,
    layouts: Sequence[VariableLayout],
    norms: Sequence[keras.Layer],
) -> samples.Answer:
    """A probe that shows every influence, with all ids where the model allows it.

    Args:
        model: the smaller model.
        layouts: the layouts of the growth.
        norms: layers of the model to observe.

    Returns:
        The inputs, the model's outputs, and the calls of the norms.
    """
    tables = [
        item.sources[0].shape[0]
        for item in layouts
        if [axis.role for axis in item.axes] == [None, "out"]
    ]
    for ids in (max(tables, default=2), min(tables, default=2)):
        try:
            answer = samples.answered(model, size=8, ids=ids, layers=norms)
        except FusionError:
            continue
        if all(np.isfinite(y).all() for y in answer.outputs):
            return answer
    return samples.answered(model, size=8, layers=norms)


def _is_centered(matches: Sequence[Match]) -> bool:
    """Whether all norms of the bigger model subtract the mean."""
    rules = (match.weights_rule for match in matches)
    return all(rule.norm.centered for rule in rules if rule and rule.norm)


def _norm_weights(matches: Sequence[Match]) -> set[int]:
    """The ids of the weights of the bigger model's norms."""
    return {
        id(variable)
        for match in matches
        if match.weights_rule is not None and match.weights_rule.norm
        for variable in tree.own_variables(match.grown)
    }


def _has_new(layout: VariableLayout, role: str) -> bool:
    return any(axis.unused().size and axis.role == role for axis in layout.axes)


def _old_part(
    outputs: Sequence[np.ndarray], expected: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """The features that the smaller model has too; hidden states have grown."""
    return [
        y[..., : e.shape[-1]] if y.ndim and y.ndim == e.ndim else y
        for y, e in zip(outputs, expected, strict=True)
    ]
