"""The layout of a widening by copies of units: which unit is copied where.

The bigger model is built as for a fusion; what lies on each axis is not the parents side
by side but the one model and, behind it, copies of its units (`copying`).
"""

import dataclasses
import math
from collections.abc import Callable

import keras
import numpy as np

from keras_fusion.architecture import build
from keras_fusion.architecture.parents import resolve_parents
from keras_fusion.architecture.widths import Widths
from keras_fusion.layout import variables as layouts
from keras_fusion.layout.variables import VariableLayout
from keras_fusion.models import host, private, probe, rules, tree
from keras_fusion.operators import arguments
from keras_fusion.operators.plan import Plan, Settings, adopt
from keras_fusion.values import calibration, copies


@dataclasses.dataclass
class Widening(Plan):
    """A laid-out widening by copies.

    Args:
        spread: float. How uneven the copies' shares are, see `copies.uneven_shares`.
    """

    spread: float = 0.0

    def without_promise(self) -> "Widening":
        """The same plan, which is allowed to change the function."""
        settings = dataclasses.replace(self.settings, promised=False)
        return dataclasses.replace(self, settings=settings)

    def values(self, index: int, arrays: list, fresh: np.ndarray | None) -> np.ndarray:
        """The grown value of one variable, the same whenever it is asked for."""
        item, settings = self.layouts[index], self.settings
        if item.copied is None or item.is_state:
            return super().values(index, arrays, fresh)
        split = item.before_tied_readout
        scale = item.scales[0] * (item.copies if split else 1.0)
        array = np.asarray(arrays[0])
        correction = self.corrections.get(id(item.sources[0]))
        array = array if correction is None else correction(array)
        value = copies.copy_array(
            (array + item.offset) * scale,
            item.axes,
            item.copied,
            split_outputs=split,
            spread=self.spread,
            noise=settings.off_diagonal_scale,
            rng=np.random.default_rng([settings.seed, index]),
        )
        value = value - item.offset
        if item.has_new:
            value = copies.filled(
                value,
                item.axes,
                item.copied,
                fresh=np.asarray(fresh),
                fresh_roles=self.fresh_roles.get(index, ()),
                mean_outputs=index in self.mean_outputs,
            )
        return value.astype(np.asarray(arrays[0]).dtype)


def make_plan(
    model: keras.Model,
    factor: float,
    choose: Callable[[keras.Model, keras.Model, list], Callable],
    *,
    noise: float,
    spread: float = 0.0,
    seed: int | None = None,
    whole_copies: bool = False,
) -> Widening:
    """Lays out a widening, changing nothing.

    Args:
        model: a built model.
        factor: number above 1. How many times as wide the model becomes.
        choose: function `(model, grown, layouts) -> mapping`, where `mapping(old, new)`
            says which of `old` units each of `new` copies, see
            `copies.source_positions`.
        noise: float, see `copies.copy_array`.
        spread: float, see `copies.uneven_shares`.
        seed: int. Seed of the noise and the shares. Defaults to one drawn from NumPy's
            global generator.
        whole_copies: bool. Whether joint norms will see whole copies and else nothing, so
            that their epsilons must be smaller.

    Returns:
        A `Widening`.

    Raises:
        FusionError: for arguments or models that cannot be widened.
    """
    models, larger = resolve_parents(model, factor, copies=1)
    arguments.check_noise("paired", noise, copies=True)
    seed = arguments.drawn_seed(seed)
    with private.without_values():
        grown, widths = build.build(
            models,
            capacity=larger,
            epsilon_divisor=factor / int(factor) if whole_copies else 1.0,
        )
    plain = layouts.plan(models, grown, widths)
    mapping = choose(model, grown, plain)
    mode = "paired" if noise else "zeros"
    settings = Settings(mode, noise, seed, copies=True)
    items = [_copied(item, mapping) for item in plain]
    plan = Widening(models, grown, items, settings, spread=spread)
    adopt(plan)
    return plan


def _copied(item, mapping):
    """The layout of a variable, with the sources of its copies."""
    if not item.grown:
        return item
    sources = tuple(copies.source_positions(axis, mapping) for axis in item.axes)
    item = dataclasses.replace(item, copied=sources)
    if item.before_tied_readout:
        # The readout's factor lies here, as in a fusion.
        scales = (item.scales[0] / item.copies,)
        item = dataclasses.replace(item, scales=scales)
    return item


def joint_norms(model: keras.Model, grown: keras.Model) -> dict[int, rules.Norm]:
    """What each norm computes that grew, by the ids of its grown variables."""
    pairs = tree.lockstep([model, grown])
    return {
        id(variable): rules.find_for_weights(layer).norm
        for _, (layer, wider) in pairs
        if calibration.is_joint_norm(layer, wider)
        for variable in tree.own_variables(wider)
    }


def has_even_norms(plan: Widening) -> bool:
    """Whether all joint norms are over units that are copied equally often.

    Only then is the norm's statistic that of the smaller model.
    """
    norms = joint_norms(plan.parents[0], plan.fused)
    return all(
        np.ptp(copies.shares(source)) == 0
        for item in plan.layouts
        if id(item.target) in norms and item.copied is not None
        for source in item.copied
        if source is not None
    )


# Units. What may be copied by itself is found by trying.


def common_groups(
    model: keras.Model, grown: keras.Model, items: list[VariableLayout]
) -> int:
    """Into how many groups, equal on each axis, the units of a model can be put.

    Copying whole groups, the same everywhere, keeps heads whole, each with its keys.

    Args:
        model: the model.
        grown: the bigger model.
        items: the layouts of the widening.
    """
    sizes = {old for item in items for _, old, _, new in _stretches(item) if old < new}
    pairs = tree.lockstep([model, grown])
    for _, (layer, wider) in pairs:
        rule = rules.find(layer)
        if rule is not None and rule.widths:
            old, new = _whole_numbers(layer), _whole_numbers(wider)
            sizes |= {old[k] for k in rule.widths if old.get(k, 0) < new.get(k, 0)}
    return math.gcd(*sizes)


def _whole_numbers(layer):
    try:
        config = layer.get_config()
    except NotImplementedError:
        return {}  # A model without config, which was given the bigger one.
    return {key: value for key, value in config.items() if isinstance(value, int)}


def _stretches(item):
    for axis in item.axes:
        if axis.grown:
            yield from copies.stretches(axis)


def free_sizes(model: keras.Model, items: list[VariableLayout]) -> set[int]:
    """The widths whose units can change places one by one, and the function stays.

    Units of such a width are independent of each other; those of others belong together
    (the features of a head). It is tried on a twin of random weights, in which nothing
    is too small to count.

    Args:
        model: a built model.
        items: the layouts of its widening.

    Returns:
        Set of the sizes of axes.
    """
    twin = build.regrown(model, Widths())
    rng = np.random.default_rng(0)
    pairs = layouts.plan([model], twin, Widths(), must_grow=False)
    for variable in twin.trainable_variables:
        scale = 2.0 / np.sqrt(variable.shape[-2]) if len(variable.shape) > 1 else 0.5
        host.write(variable, scale * rng.standard_normal(variable.shape))
    targets = {id(pair.sources[0]): pair.target for pair in pairs}
    rows = [(targets[id(item.sources[0])], item.axes) for item in items]
    inputs = probe.accepted(twin)
    expected = probe.outputs(twin, inputs)
    sizes = {old for item in items for _, old, _, _ in _stretches(item)}

    def is_free(size):
        moved = _moved(rows, rng.permutation(size))
        for variable, _, new in moved:
            host.write(variable, new)
        change = probe.change(expected, probe.outputs(twin, inputs))
        for variable, old, _ in moved:
            host.write(variable, old)
        return change <= probe.tolerance(twin) / 10

    return {size for size in sorted(sizes) if is_free(size)}


def _moved(rows, order):
    """Values with all units of one width in another order."""
    found = []
    for variable, axes in rows:
        old = new = np.array(host.read(variable))
        for dimension, axis in enumerate(axes):
            for start, size, _, _ in copies.stretches(axis) if axis.grown else ():
                if size == len(order):
                    places = np.arange(old.shape[dimension])
                    places[start : start + size] = start + order
                    new = np.take(new, places, axis=dimension)
        if new is not old:
            found.append((variable, old, new))
    return found
