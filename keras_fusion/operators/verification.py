"""Verification: that a grown model computes what its parents do.

It is measured where it can be seen. A function that is NaN, zero, constant or saturated
on a batch tells nothing, so the inputs have several scales, tensors inside the model are
compared as well, and where the model's own weights show nothing random ones do. What
cannot be verified is refused.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from keras_fusion.errors import FusionError
from keras_fusion.models import graph as graphs
from keras_fusion.models import host, probe
from keras_fusion.models.observe import Watched, watch
from keras_fusion.models.samples import Sample
from keras_fusion.operators import correspondence, departures, in_training
from keras_fusion.operators import other_weights as weights
from keras_fusion.operators.correspondence import Change
from keras_fusion.operators.extended_outputs import is_behind_softmax, old_part
from keras_fusion.operators.plan import Plan, Plans
from keras_fusion.values.fillers import WidthFiller

# So many times the effect of rounded weights is rounding.
_FACTOR = 30
_MOST_ROUNDING = 0.1
# So much larger than at first may new units become; what overflows then is seen.
_GROWN = 30.0
# Outputs that vary less over the rows, relative to their size, are constant.
_CONSTANT = 1e-4


def verify(
    plan: Plan | Plans, sample: Sample, *, tolerance: float | None = None
) -> probe.Difference:
    """Measures a grown model against the mean of its parents.

    A growth that should be exact is measured on each scale of the inputs; layer by layer;
    in training mode too, without dropout and noise; after the constraints that the first
    update applies; and with large values in its new capacity.

    Args:
        plan: a filled `Plan`, or several.
        sample: the batch.
        tolerance: float. The largest change that a growth which should be exact may
            show. Defaults to `probe.tolerance`.

    Returns:
        The `probe.Difference` of the outputs.

    Raises:
        FusionError: if the growth should be exact, and the function changed, or cannot
            be seen; the message names the first layer that departs.
    """
    first = plan.parents[0]
    tolerance = probe.tolerance(first) if tolerance is None else tolerance
    verified = [_Verification(stage, sample, tolerance).run() for stage in plan.stages]
    (before, _), (_, after) = verified[0], verified[-1]
    extends = any(stage.extends for stage in plan.stages)
    return _difference(before, after, sample, extends)


def _difference(
    before: list[Watched], after: Watched, sample: Sample, extends: bool
) -> probe.Difference:
    """The difference on the first rows on which there is one."""
    mean = [
        np.mean(ys, axis=0) if len({y.shape for y in ys}) == 1 else None
        for ys in zip(*(watched.outputs for watched in before), strict=True)
    ]
    outputs = [
        old_part(old, new) if extends and old is not None else new
        for old, new in zip(mean, after.outputs, strict=True)
    ]
    found: Any = None
    for rows in sample.groups:

        def chosen(y, rows=rows):
            whole = y is None or not y.ndim or y.shape[0] != sample.rows
            return y if whole or y is None else y[rows]

        with np.errstate(all="ignore"):
            found = probe.difference(
                [chosen(y) for y in mean], [chosen(y) for y in outputs]
            )
        if np.isfinite(found.largest):
            break
    return found


@dataclasses.dataclass(frozen=True)
class _Measured:
    """One comparison: what each parent gave, what the grown model gave, the changes."""

    before: list[Watched]
    after: Watched
    inside: list[Change]
    outputs: list[Change]


class _Verification:
    """The verification of one growth."""

    def __init__(self, plan: Plan, sample: Sample, tolerance: float):
        self._plan, self._sample, self._tolerance = plan, sample, tolerance
        # Tensors inside need be no more exact than by default.
        self._inner = max(tolerance, probe.tolerance(plan.parents[0]))
        self._models = list({id(m): m for m in plan.parents}.values())
        self._has_new = any(layout.has_new for layout in plan.layouts)
        self._layers = correspondence.counterparts(plan) if plan.exact else []

    def run(self) -> tuple[list[Watched], Watched]:
        """Measures, and refuses what is not as promised; returns the plain calls."""
        if not self._plan.exact:
            return self._watched(False)
        self._check_weights()
        measured = self._measure()
        self._judge(measured, "")
        self._check_telling(measured)
        self._check_other_weights()
        self._check_new_capacity()
        self._check_training()
        self._check_update()
        return measured.before, measured.after

    def _watched(self, training: bool) -> tuple[list[Watched], Watched]:
        return self._watch_parents(training), self._watched_grown(training)

    def _watched_grown(self, training: bool) -> Watched:
        layers, inputs = [layer.grown for layer in self._layers], self._sample.inputs
        try:
            return watch(self._plan.fused, inputs, layers, training=training)
        except Exception as error:
            raise departures.failed(self._plan.fused, error, training) from error

    def _watch_parents(self, training: bool) -> list[Watched]:
        inputs, own = self._sample.inputs, {}
        for model in self._models:
            layers = [x for layer in self._layers for x in layer.parents]
            own[id(model)] = watch(model, inputs, layers, training=training)
        return [own[id(model)] for model in self._plan.parents]

    def _measure(self, training: bool = False) -> _Measured:
        return self._compared(*self._watched(training))

    def _compared(self, before: list[Watched], after: Watched) -> _Measured:
        inside = correspondence.changes(self._layers, before, after, self._sample)
        if self._plan.extends:  # Behind a softmax all change; before it none.
            inside = [x for x in inside if not is_behind_softmax(x, before[0])]
        axes = [axis for layer in self._layers for axis in layer.outputs]
        outputs = []
        for i, new in enumerate(after.outputs):
            old = [watched.outputs[i] for watched in before]
            new = old_part(old[0], new) if self._plan.extends else new
            pairs = correspondence.corresponding(old, new, axes)
            is_scaled = any(layer.is_scaled for layer in self._layers)
            has_grown = old[0].shape != new.shape
            if has_grown and graphs.is_plain(self._models[0]):
                raise departures.other_shape(self._plan, i, old[0], new)
            if not pairs and not (is_scaled and old[0].ndim == new.ndim):
                raise departures.other_shape(self._plan, i, old[0], new)
            amounts = [correspondence.amount_of(*p, self._sample) for p in pairs]
            if pairs and not (has_grown and is_scaled):
                outputs.append(Change(None, "output", i, max(amounts)))
        return _Measured(before, after, inside, outputs)

    # What changed.

    def _judge(self, measured: _Measured, when: str, training: bool = False) -> None:
        """Refuses changes beyond the tolerance, and beyond what rounding makes."""
        wrong = self._wrong(measured)
        if not wrong:
            return
        noise = self._noise(measured, training)
        wrong = [x for x in wrong if not x.amount <= noise.get(x.key, 0.0)]
        if wrong and not self._is_without_effect(wrong, training):
            raise departures.error(self._plan, wrong, self._tolerance, when)

    def _is_without_effect(self, wrong: list[Change], training: bool) -> bool:
        """Whether what changed inside has no effect on the outputs, by what it is.

        New capacity may add the same to all keys of an attention. Then the outputs do not
        change with random weights either.
        """
        if any(x.layer is None for x in wrong) or not self._has_new:
            return False
        with self._random_values():
            outputs = self._measure(training).outputs
        return all(x.amount <= self._inner for x in outputs)

    def _wrong(self, measured: _Measured) -> list[Change]:
        """The changes that are too large, those inside first.

        The outputs of distinct parents may be a function of the mean of their logits.
        """
        inside = [x for x in measured.inside if not x.amount <= self._inner]
        outputs = [x for x in measured.outputs if not x.amount <= self._tolerance]
        if self._plan.copies:
            return inside + outputs
        own = [x for x in inside if not x.is_mean]
        means = [x for x in measured.inside if x.is_mean]
        joined = [x for x in inside if x.is_mean]
        if own or not outputs:
            return own + outputs
        return [] if means and not joined else joined + outputs

    def _noise(self, measured: _Measured, training: bool) -> dict[tuple, float]:
        """By tensor, the change that rounded weights and new seeds may make.

        Where rounding makes as much as any change would (an argmax of equal numbers), it
        is no excuse.
        """
        rng = np.random.default_rng(0)
        values, most = [], max(_MOST_ROUNDING, self._inner)
        for model in self._models:
            size = probe.rounding(model)
            for v in model.variables:
                value = host.read(v)
                if keras.backend.is_float_dtype(v.dtype):
                    drawn = size * rng.standard_normal(value.shape)
                    values.append((v, (value * (1 + drawn)).astype(v.dtype)))
        with host.assumed(values):
            again = self._watch_parents(training)
        rounding = self._noise_of(measured.before, again)
        noise = {key: min(_FACTOR * x, most) for key, x in rounding.items()}
        seeds = [pair for model in self._models for pair in probe.other_seeds(model)]
        if seeds:
            with host.assumed(seeds):
                again = self._watch_parents(training)
            drawn = self._noise_of(measured.before, again)
            noise = {k: max(x, _FACTOR * drawn.get(k, 0.0)) for k, x in noise.items()}
        return noise

    def _noise_of(self, before, again):
        noise: dict[tuple, float] = {}
        for k, (old, new) in enumerate(zip(before, again, strict=True)):
            for layer in self._layers:
                calls = [x.calls.get(id(layer.parents[k]), []) for x in (old, new)]
                for i, (a, b) in enumerate(zip(*calls, strict=False)):
                    for place in ("input", "inner", "output"):
                        pair = getattr(a, place), getattr(b, place)
                        key = layer.address, place, i
                        self._note(noise, key, *pair)
            for i, pair in enumerate(zip(old.outputs, new.outputs, strict=True)):
                self._note(noise, (None, "output", i), *pair)
        return noise

    def _note(self, noise, key, old, new):
        if old is not None and new is not None and old.shape == new.shape:
            amount = correspondence.amount_of(old, new, self._sample)
            noise[key] = max(noise.get(key, 0.0), amount)

    # What could not be seen.

    def _check_weights(self) -> None:
        for v in (v for model in self._models for v in model.variables):
            is_float = keras.backend.is_float_dtype(v.dtype)
            if is_float and not np.isfinite(host.read(v)).all():
                raise FusionError(
                    f"{v.path!r} has values that are not finite (NaN or infinite), so that "
                    "nothing can be verified. The model has diverged: grow an earlier "
                    "state of it."
                )

    def _check_telling(self, measured: _Measured) -> None:
        """Refuses what says nothing, with the model's own weights and with random ones."""
        silent = self._silent(measured)
        if not silent or np.isinf(self._tolerance):
            return
        with self._random_values():
            random = self._measure()
            self._judge(random, "with random weights, ")
        still = [i for i in self._silent(random) if i in silent]
        still = [i for i in still if not self._moved(measured, random, i)]
        if still:
            raise departures.not_verified(self._plan, still, random.before[0].outputs)

    def _silent(self, measured: _Measured) -> list[int]:
        """The outputs that do not vary over the rows."""
        return [
            i
            for i, is_float in enumerate(measured.after.floats)
            if is_float
            and not all(self._varies(watched.outputs[i]) for watched in measured.before)
        ]

    def _varies(self, y: np.ndarray) -> bool:
        if not y.ndim or y.shape[0] != self._sample.rows:
            return False
        rows = y.reshape(len(y), -1)
        if not rows.shape[1]:
            return False
        rows = rows[np.isfinite(rows).any(axis=1)]
        if len(rows) < 2:
            return False
        rows = rows[:, np.isfinite(rows).all(axis=0)]
        spread = np.max(np.ptp(rows, axis=0), initial=0.0)
        return bool(spread > _CONSTANT * np.max(np.abs(rows), initial=0.0))

    def _moved(self, measured: _Measured, random: _Measured, i: int) -> bool:
        """Whether an output depends on the weights, if not on the inputs."""
        old, new = (x.before[0].outputs[i] for x in (measured, random))
        finite = np.isfinite(new).any() and np.isfinite(old).any() and new.size
        return bool(finite and correspondence.amount_of(new, old, self._sample) > 0.01)

    @contextlib.contextmanager
    def _random_values(self) -> Iterator[None]:
        """A scope in which the parents, and the grown model, have random weights."""
        rng = np.random.default_rng(1)
        values = [
            (variable, probe.random_value(variable, rng))
            for model in self._models
            for variable in model.trainable_variables
        ]
        with host.assumed(values), self._plan.assumed():
            yield

    def _check_other_weights(self) -> None:
        """What no graph tells is measured with other weights than its own, too.

        A minimum over the features hides new zeros until all features are positive.
        """
        if np.isinf(self._tolerance) or all(map(weights.is_known, self._models)):
            return
        for values, which in weights.drawn(self._models, self._has_new):
            with host.assumed(values), self._plan.assumed():
                try:
                    before = self._watch_parents(False)
                except Exception:
                    continue  # The parents themselves cannot be called so.
                after = self._watched_grown(False)
                self._judge(self._compared(before, after), f"with {which} weights, ")

    # What shows only later.

    def _check_new_capacity(self) -> None:
        """New units have no influence, however large they are."""
        plan = self._plan
        if not isinstance(plan.filler, WidthFiller):
            return
        values = []
        for index, layout in enumerate(plan.layouts):
            if layout.initial is None or not layout.has_new:
                continue
            arrays = [host.read(source) for source in layout.sources]
            own, fresh = np.std(arrays[0]), np.std(layout.initial())
            if fresh > 0:
                size = _GROWN * max(1.0, float(own / fresh))
                larger = dataclasses.replace(plan.filler, size=size)
                value = larger.value(index, layout, arrays)
                values.append((layout.target, value.astype(arrays[0].dtype)))
        if values:
            with host.assumed(values):
                self._judge(self._measure(), "once its new units have grown, ")

    def _check_training(self) -> None:
        """In training mode the function is the parents' too, but for dropout and noise."""
        layers = in_training.layers_of([*self._models, self._plan.fused])
        if in_training.needs_call(layers):
            try:
                with in_training.quiet(layers):
                    before = self._watch_parents(True)
            except Exception:
                return  # The parents themselves cannot be called so.
            with in_training.quiet(layers):
                after = self._watched_grown(True)
                self._judge(self._compared(before, after), "in training mode, ", True)
        if in_training.needs_noise(layers):
            self._watched_grown(True)

    def _check_update(self) -> None:
        """The first update applies constraints; then it is still the same function."""
        own = self._after_update(
            [v for m in self._models for v in m.trainable_variables]
        )
        grown = self._after_update([layout.target for layout in self._plan.layouts])
        if own or grown:
            names = ", ".join(repr(v.path) for v, _ in [*grown, *own][:3])
            when = f"after the next update, which applies the constraint of {names}, "
            with host.assumed([*grown, *own]):
                self._judge(self._measure(), when)

    @staticmethod
    def _after_update(variables: Sequence[keras.Variable]) -> list[probe.Value]:
        """What constraints will make of variables that do not obey them."""
        held = [(v, host.read(v)) for v in variables if v.trainable and v.constraint]
        return [(v, host.constrained(v, x)) for v, x in held if not host.obeys(v, x)]
