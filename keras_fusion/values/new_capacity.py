"""New capacity of a target that is larger than the sum of its parents.

It must have no influence on the function yet, and still learn. So on each way through it
one weight starts at zero and the others at their initial values. Which one must be zero
depends on the network: into a new hidden unit the weights may be anything if those out
of it are zero; in a residual stream under one joint norm it is the other way round,
since every feature that is not zero would count in the norm's mean of squares. Where that
is a layer norm's, a new feature that is the mean of the others does not count. Which way it
must be is found by trying, on the model itself.
"""

import numpy as np

from keras_fusion.errors import FusionError
from keras_fusion.models import host, probe, rules, tree


def is_new(layouts: list) -> bool:
    """Whether some axis has entries that belong to no parent."""
    return any(layout.has_new for layout in layouts)


def settle(plan) -> None:
    """Decides what the new capacity of a self-fusion starts from.

    Args:
        plan: the `fusion.Plan`, whose `fresh_roles` and `mean_outputs` are set, and whose
            larger model is filled on the way.

    Raises:
        FusionError: if the function changes even where no new capacity is used.
    """
    if not (plan.corrections or any(i.before_tied_readout for i in plan.layouts)):
        return  # New outputs that nothing reads: with no joint norm that is enough.
    model, numpy = plan.parents[0], host.read
    fresh = [
        np.array(numpy(item.target)) if item.has_new else None for item in plan.layouts
    ]
    inputs = varied_inputs(plan)
    expected = probe.outputs(model, inputs)

    def value(index):
        sources = [numpy(v) for v in plan.layouts[index].sources]
        return plan.values(index, sources, fresh[index])

    def outputs():
        return _old_part(probe.outputs(plan.fused, inputs), expected)

    plan.fresh_roles = {i: () for i, item in enumerate(plan.layouts) if item.has_new}
    unused = _without_use(plan, value, outputs, expected)
    for role in ("out", "in"):
        tried = [i for i in plan.fresh_roles if _has_new(plan.layouts[i], role)]
        try_fresh(plan, role, tried, value, lambda: probe.change(unused, outputs()))


def try_fresh(plan, role: str, tried: list[int], value, change) -> None:
    """Lets new capacity start from initial values, where the function does not notice.

    Args:
        plan: the plan, whose `fresh_roles` are extended.
        role: string. The role of the axes whose new entries are tried.
        tried: list of indices of layouts.
        value: function from such an index to the value that the plan now says.
        change: function without arguments that measures the change of the outputs.
    """
    before = dict(plan.fresh_roles)
    plan.fresh_roles |= {i: (*before[i], role) for i in tried}
    values = [(plan.layouts[i].target, value(i)) for i in tried]
    kept = {id(variable) for variable in probe.keep_harmless(change, values)}
    plan.fresh_roles |= {
        i: before[i] for i in tried if id(plan.layouts[i].target) not in kept
    }


def varied_inputs(plan):
    """A batch on which what has an influence shows it, of all ids if that can be."""
    model = plan.parents[0]
    tables = [
        item.sources[0].shape[0]
        for item in plan.layouts
        if [axis.role for axis in item.axes] == [None, "out"]
    ]
    for ids in (max(tables, default=2), min(tables, default=2)):
        try:
            inputs = probe.accepted(model, size=8, ids=ids)
        except FusionError:
            continue
        if all(np.isfinite(y).all() for y in probe.outputs(model, inputs)):
            return inputs
    return probe.accepted(model, size=8)


def _without_use(plan, value, outputs, expected):
    """Fills the larger model so that it uses no new capacity; returns its outputs."""
    norms = _norm_weights(plan.fused)
    means = (i for i in plan.fresh_roles if id(plan.layouts[i].target) not in norms)
    changes = []
    for mean_outputs in (frozenset(), frozenset(means)):
        plan.mean_outputs = mean_outputs
        for index, item in enumerate(plan.layouts):
            host.write(item.target, value(index))
        found = outputs()
        changes.append(probe.change(expected, found))
        if changes[-1] <= probe.tolerance(plan.fused):
            return found
    raise FusionError(
        f"{plan.fused.name!r} is larger than its copies together, and the new capacity "
        f"changes the outputs by {min(changes):.1e} even where it is not used: layer norms "
        "after the residual sum, or after an activation, count it in their mean, or a "
        "norm's epsilon is not small against what it is added to (that of an `into` should "
        "be the smaller one's, times the share of the features that is not new). Use a "
        "whole `factor`, or for functional and Sequential models norms='block'."
    )


def _norm_weights(model):
    """The ids of what norms scale and shift by."""
    return {
        id(variable)
        for _, layer in tree.walk(model)
        if (rule := rules.find_for_weights(layer)) is not None and rule.norm
        for variable in tree.own_variables(layer)
    }


def _has_new(layout, role):
    return any(axis.unused().size and axis.role == role for axis in layout.axes)


def _old_part(outputs, expected):
    """The features that the smaller model has too; hidden states have grown."""
    return [
        y[..., : e.shape[-1]] if y.ndim and y.ndim == e.ndim else y
        for y, e in zip(outputs, expected, strict=True)
    ]
