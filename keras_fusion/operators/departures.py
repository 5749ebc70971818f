"""The errors for a growth whose function changed, or could not be seen."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_fusion.errors import FusionError
from keras_fusion.models import graph as graphs
from keras_fusion.operators.correspondence import Change

_PLACES = {
    "input": "its input",
    "inner": "what its activation gets",
    "output": "its output",
}


def error(
    plan: Any, wrong: Sequence[Change], tolerance: float, when: str
) -> FusionError:
    """The error for changes that are too large.

    Args:
        plan: the `Plan`.
        wrong: the changes, those of inner tensors first, in the order of the calls.
        tolerance: float. The largest change of the outputs that is allowed.
        when: string. Under which condition they were seen, with a comma and a space.
    """
    largest = max(change.amount for change in wrong)
    ends = [change.amount for change in wrong if change.layer is None]
    whose = "outputs" if ends else "inner tensors"
    return FusionError(
        f"The fused {plan.fused.name!r} should compute what its parents do, but {when}its "
        f"{whose} changed by {max(ends, default=largest):.1e} (more than the tolerance "
        f"{tolerance:.0e}). {_first(plan, wrong[0])}"
    )


def _first(plan: Any, change: Change) -> str:
    """Where the function departs first, and what can be done."""
    if change.layer is None:
        return (
            "No layer with weights departs, so it is what comes after the last of them: a "
            "readout tied to an embedding (see `tied_readout` of keras_fusion.register), "
            "or an operation that mixes features or holds a width. Keep that out of the "
            "model, or pass the bigger model as `into`."
        )
    layer = change.layer
    before = _before(plan.parents[0], layer.parents[0])
    place = _PLACES[change.place]
    cause = "What stands before it mixes" if change.place == "input" else "It mixes"
    if before and change.place == "input":
        cause = f"Before it stand {', '.join(before)}; one of these mixes"
    if any(layout.has_new for layout in plan.layouts):
        cause = (
            "The new capacity counts there: in a norm after the residual sum, or whose "
            "epsilon is not small, for which a whole `factor` is exact. Or "
            f"{cause[0].lower()}{cause[1:]}"
        )
    if not type(plan.filler).__module__.startswith("keras_fusion."):
        cause = (
            f"{type(plan.filler).__name__} puts units elsewhere than the axes of the "
            f"plan's layouts say. Or {cause[0].lower()}{cause[1:]}"
        )
    return (
        f"The first layer that departs is {type(layer.grown).__name__} "
        f"{layer.parents[0].name!r} at {layer.address!r}: {place} changed by "
        f"{change.amount:.1e}. {cause} the features of one parent with those of another, "
        "or holds a width or an order of features, in a way that no rule tells. Use "
        "layers there that treat each feature by itself, describe the layer with "
        "keras_fusion.register, or pass the bigger model as `into`."
    )


def _before(model: Any, layer: Any) -> list[str]:
    """The calls without weights between a layer and those with weights before it."""
    if not graphs.is_plain(model):
        return []
    graph = graphs.read(model)
    edge = [t.key for c in graph.calls if c.operation is layer for t in c.inputs]
    found: dict[str, str] = {}
    while edge:
        call = graph.producer(edge.pop())
        if call is None or getattr(call.operation, "weights", None):
            continue
        kind = call.operation
        kind = kind if isinstance(kind, str) else type(kind).__name__
        if call.name not in found and kind != "InputLayer":
            found[call.name] = f"{kind} {call.name!r}"
            edge += [t.key for t in call.inputs]
    return list(found.values())[::-1][-4:]


def other_shape(plan: Any, i: int, old: np.ndarray, new: np.ndarray) -> FusionError:
    """The error for an output that has another shape after a growth.

    Args:
        plan: the `Plan`.
        i: int. Which output.
        old: the parent's output.
        new: the grown model's.
    """
    return FusionError(
        f"Output {i} of {plan.parents[0].name!r} has shape {old.shape}, and {new.shape} in "
        "the grown model, where nothing says which of it is the old one. End the model in "
        "a layer whose size is no width, such as Dense, or pass the bigger model as `into`."
    )


def failed(model: Any, error: Exception, training: bool) -> FusionError:
    """The error for a grown model that cannot be called, unlike its parents.

    Args:
        model: the grown model.
        error: what it raised.
        training: bool. Whether it was called as in training.
    """
    when = " in training mode" if training else ""
    return FusionError(
        f"The grown {model.name!r} fails{when}, where its parents do not: {error} A "
        "constant or an option in it holds a width. Keep that out of the model, or pass "
        "the bigger model as `into`."
    )


def not_verified(
    plan: Any, silent: Sequence[int], outputs: Sequence[np.ndarray]
) -> FusionError:
    """The error for outputs that say nothing.

    Args:
        plan: the `Plan`.
        silent: the indices of these outputs.
        outputs: all outputs of the first parent.
    """
    what = ", ".join(f"output {i} is {_description(outputs[i])}" for i in silent)
    return FusionError(
        f"The growth of {plan.parents[0].name!r} should keep its function, which cannot "
        f"be verified: {what} for all inputs that were tried, whatever the weights. Pass "
        "a batch of your data as `probe`, for which the outputs are finite and differ "
        "from row to row."
    )


def _description(y: np.ndarray) -> str:
    if not y.size:
        return "empty"
    if not np.isfinite(y).any():
        return "not finite"
    return "zero" if not y[np.isfinite(y)].any() else "constant"
