"""The optimizer's part of the graft: a new optimizer for the fused model.

It has the options of the live model's optimizer and its state: counters, learning rate,
loss scale, and the slots in the grown form that `slot_values` computes.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras

from keras_fusion.errors import FusionError
from keras_fusion.graft import multipliers as rates
from keras_fusion.graft import second_optimizers, twins
from keras_fusion.graft.growth import Growth, Stages
from keras_fusion.models import host
from keras_fusion.models.private import deferral
from keras_fusion.models.private.attributes import instance_attributes
from keras_fusion.values import rate_multipliers, slot_values
from keras_fusion.values import slots as slot_rules

Optimizer = keras.optimizers.Optimizer
# `(variable of the smaller model, variable of the bigger one)`.
Pairs = Sequence[tuple[keras.Variable, keras.Variable]]

# Attributes of optimizers that keep their values in a reset.
_COUNTERS = ("_iterations", "_learning_rate", "step_counter", "dynamic_scale")


def leaves(optimizer: Optimizer | None) -> list[Optimizer]:
    """The optimizers that hold slots: itself, or those that it wraps; none for `None`."""
    return [o for o in family(optimizer) if not _wraps(o)]


def _wraps(optimizer: Optimizer) -> bool:
    return hasattr(optimizer, "inner_optimizer") or hasattr(
        optimizer, "_inner_optimizers"
    )


def is_divided(optimizer: Optimizer | None) -> bool:
    """Whether an optimizer leaves its variables to others (MultiOptimizer)."""
    return hasattr(optimizer, "_inner_optimizers")


def optimizer_of(model: keras.Model) -> Optimizer | None:
    """A model's optimizer, or `None` if it was not compiled with one."""
    return getattr(model, "optimizer", None)


def family(optimizer: Optimizer | None) -> list[Optimizer]:
    """An optimizer and all that it wraps (LossScaleOptimizer, MultiOptimizer)."""
    if optimizer is None:
        return []
    if hasattr(optimizer, "inner_optimizer"):
        inner = [optimizer.inner_optimizer]
    else:
        inner = getattr(optimizer, "_inner_optimizers", [])
    return [optimizer] + [member for one in inner for member in family(one)]


def raw_iterations(optimizer: Optimizer) -> int:
    """Batches the optimizer has seen; with gradient accumulation several per update."""
    inner: Any = getattr(optimizer, "inner_optimizer", optimizer)
    return int(host.to_numpy(inner._iterations))


def steps(optimizer: Optimizer) -> int:
    """Updates that the optimizer has done, without those that a loss scale skipped."""
    return raw_iterations(optimizer) // (optimizer.gradient_accumulation_steps or 1)


def _trainables(optimizer: Optimizer) -> list[keras.Variable]:
    return list(getattr(optimizer, "_trainable_variables", []))


def trained_ids(optimizer: Optimizer) -> set[int]:
    """The ids of the variables that an optimizer trains."""
    return {id(v) for one in family(optimizer) for v in _trainables(one)}


def read_state(optimizer: Optimizer | None) -> slot_values.State:
    """The state of an optimizer: its step count and slots; empty without an optimizer."""
    if optimizer is None:
        return slot_values.State()
    trainables, lists = _trainables(optimizer), _variable_lists(optimizer)
    lists = {k: v for k, v in lists.items() if len(v) == len(trainables)}
    return slot_values.State(optimizer, steps(optimizer), trainables, lists)


def _variable_lists(optimizer: Optimizer) -> dict[str, list]:
    """All lists of variables that an optimizer holds besides those that it trains."""
    own = {id(v) for v in _trainables(optimizer)}
    found = {}
    for name, value in instance_attributes(optimizer).items():
        if name != "_variables" and isinstance(value, (list, tuple)):
            held = {id(v) for v in value if isinstance(v, keras.Variable)}
            if held and not held <= own:
                found[name.lstrip("_")] = list(value)
    return found


def _scalars(optimizer: Optimizer) -> dict[str, keras.Variable]:
    return {
        name: value
        for name, value in instance_attributes(optimizer).items()
        if isinstance(value, keras.Variable) and not tuple(value.shape)
    }


def check_optimizers(parents: Sequence[keras.Model], optimizer_state: str) -> None:
    """Checks that the optimizers' state can be carried through a growth.

    Args:
        parents: the live model and its partners.
        optimizer_state: `"carry"` or `"reset"`.

    Raises:
        FusionError: naming the model and the optimizer.
    """
    live = parents[0]
    second_optimizers.check(live)
    kinds = leaves(optimizer_of(live))
    for kind in kinds:
        twins.twin(kind, {})  # Raises if that is not possible.
    if optimizer_state == "reset":
        return
    for kind in kinds:
        _check_slots(kind)
    if not kinds:
        return
    for i, partner in enumerate(parents[1:]):
        if partner is not live:
            _check_partner(i, kinds, leaves(optimizer_of(partner)))


def _check_slots(optimizer: Optimizer) -> None:
    """Checks that the meaning of all variables of an optimizer is known."""
    rules, state = slot_rules.describe(optimizer), read_state(optimizer)
    lists = _variable_lists(optimizer)
    known = {id(v) for v in _scalars(optimizer).values()}
    known |= {id(v) for k in set(rules) & set(state.lists) for v in state.lists[k]}
    unknown = [k for k, v in lists.items() if not {id(x) for x in v} <= known]
    listed = {id(v) for value in lists.values() for v in value}
    unknown += [v.path for v in optimizer._variables if id(v) not in known | listed]
    if unknown:
        raise FusionError(
            f"Optimizer {type(optimizer).__name__} has slots {sorted(unknown)} of "
            "unknown meaning. Describe them with keras_fusion.register_optimizer (each "
            "a list with one entry per trained variable), or pass "
            "optimizer_state='reset'."
        )


def _check_partner(
    i: int, kinds: Sequence[Optimizer], others: Sequence[Optimizer]
) -> None:
    """Checks that partner `i` has the state that the live model's optimizers have."""
    expected = [type(kind).__name__ for kind in kinds]
    problem = None
    if [type(o) for o in others] != [type(k) for k in kinds]:
        problem = ", ".join(type(o).__name__ for o in others) or "none"
    for kind, other in zip(kinds, others, strict=False):
        rules, state = slot_rules.describe(kind), read_state(other)
        lost = set(read_state(kind).lists) - set(state.lists)
        lost = sorted(name for name in lost if name in rules and not rules[name].kept)
        if problem is not None or not _trainables(kind):
            continue
        if not (other.built and state.step):
            built = "has done no step" if other.built else "not built"
            problem = f"{type(other).__name__} ({built})"
        elif lost:
            problem = f"{type(other).__name__} without {lost}"
    if problem is not None:
        raise FusionError(
            f"`optimizer_state='carry'` needs the state of {', '.join(expected)} from "
            f"every parent, but `partners[{i}]` has {problem}. Pass "
            "optimizer_state='reset', or pass the partner with the optimizer that it was "
            "trained with."
        )


def grown_optimizer(
    plan: Stages, optimizer_state: str, multipliers: bool = False
) -> Optimizer | None:
    """Makes an optimizer for the fused model, with the state of its parents' optimizers.

    Args:
        plan: a filled `Plan` or `Plans`; the optimizers are the parents'.
        optimizer_state: `"carry"` fuses the slots, `"reset"` leaves them at their initial
            values. Step count, learning rate and loss scale are kept in both.
        multipliers: bool. Whether to multiply the learning rate of each variable so that
            the function is learned as fast as before.

    Returns:
        An optimizer of the live model's class, built on the fused model's variables;
        `None` if the live model has none.
    """
    *earlier, last = plan.stages
    if optimizer_of(earlier[0].parents[0] if earlier else last.parents[0]) is None:
        return None
    for stage in earlier:
        # It is the parent of the next growth, which has no optimizer yet.
        stage.fused.optimizer = _grown(stage, optimizer_state, multipliers)
    return _grown(last, optimizer_state, multipliers)


def _grown(plan: Growth, optimizer_state: str, multipliers: bool) -> Optimizer:
    """The optimizer after one growth."""
    live: Optimizer = plan.parents[0].optimizer
    reset = optimizer_state == "reset"
    pairs = [(i.sources[0], i.target) for i in plan.layouts]
    known = {id(source) for source, _ in pairs}
    strange = [v.path for v in _trainables(live) if id(v) not in known]
    if strange:
        raise FusionError(
            f"The optimizer of {plan.parents[0].name!r} trains variables that are not "
            f"the model's: {strange}. Give them an optimizer of their own."
        )
    added = [
        rate_multipliers.by_width(plan.layouts, leaf) if multipliers else None
        for leaf in leaves(live)
    ]
    if not live.built:
        return _unbuilt(live, pairs, added)
    fresh = _built(live, _in_order(live, plan.fused, pairs), pairs, added)
    if reset:
        deferral.give_values(fresh.variables)
    for old, new in zip(family(live), family(fresh), strict=True):
        for name, variable in _scalars(old).items():
            if name in _COUNTERS or not reset:
                instance_attributes(new)[name].assign(
                    keras.ops.convert_to_numpy(variable)
                )
    count = len(leaves(live))
    families = [_leaves_of(parent, count) for parent in plan.parents]
    for *states, leaf in zip(*families, leaves(fresh), strict=True):
        slot_values.transfer(
            [read_state(state) for state in states],
            read_state(leaf),
            leaf,
            plan.layouts,
            plan.filler,
            copies=plan.copies,
            reset=reset,
        )
    deferral.give_values(fresh.variables)
    return fresh


def _unbuilt(
    live: Optimizer, pairs: Pairs, added: Sequence[Mapping[int, float] | None]
) -> Optimizer:
    """A new optimizer with the options and multipliers of the live one."""
    fresh = twins.twin(live, {id(target): source for source, target in pairs})
    for old, new in zip(family(live), family(fresh), strict=True):
        _keep_exclusions(old, new, pairs)
    for old, new, own in zip(leaves(live), leaves(fresh), added, strict=True):
        rates.carry(old, new, pairs, own)
    return fresh


def _built(
    live: Optimizer,
    variables: list[keras.Variable],
    pairs: Pairs,
    added: Sequence[Mapping[int, float] | None],
) -> Optimizer:
    """The same, built on variables; slots without values where that works."""
    fresh = _unbuilt(live, pairs, added)
    try:
        with deferral.without_values():
            fresh.build(variables)
    except Exception:  # An optimizer that fills its slots itself (ScheduleFreeAdamW).
        fresh = _unbuilt(live, pairs, added)
        fresh.build(variables)
    return fresh


def built_on(live: Optimizer, model: keras.Model) -> Optimizer:
    """An optimizer of a model as it will be in training: itself, or a built twin.

    The slots of a twin need have no values.
    """
    if live.built:
        return live
    pairs = [(v, v) for v in model.trainable_variables]
    return _built(live, model.trainable_variables, pairs, [None] * len(leaves(live)))


def _in_order(
    live: Optimizer, fused: keras.Model, pairs: Pairs
) -> list[keras.Variable]:
    """The variables of the new optimizer, in the order of the old one if that fits."""
    targets = {id(source): target for source, target in pairs}
    if len(targets) == len(pairs):
        return [targets[id(v)] for v in _trainables(live)]
    known = {id(v) for v in _trainables(live)}
    trained = {id(target): target for source, target in pairs if id(source) in known}
    ordered = [v for v in fused.trainable_variables if id(v) in trained]
    # The slots of what has been frozen since stay, too.
    listed = {id(v) for v in ordered}
    return ordered + [v for v in trained.values() if id(v) not in listed]


def _leaves_of(model: keras.Model, count: int) -> Sequence[Optimizer | None]:
    """A parent's optimizers; in a reset they may be fewer than the others'."""
    found = leaves(optimizer_of(model))
    return found if len(found) == count else [None] * count


def _keep_exclusions(old: Any, new: Any, pairs: Iterable[tuple[Any, Any]]) -> None:
    """Excludes the same variables from weight decay as before."""
    if not hasattr(old, "_exclude_from_weight_decay"):
        return
    keys = [(old._var_key(s), new._var_key(t)) for s, t in pairs]
    excluded = old._exclude_from_weight_decay
    cache = getattr(old, "_exclude_from_weight_decay_cache", {})
    instance_attributes(new).update(
        _exclude_from_weight_decay={t for s, t in keys if s in excluded},
        _exclude_from_weight_decay_pattern=old._exclude_from_weight_decay_pattern,
        # Decisions by name are kept: the new names may differ.
        _exclude_from_weight_decay_cache={t: cache[s] for s, t in keys if s in cache},
    )


def take_over(live: Optimizer, fresh: Optimizer) -> None:
    """Gives an optimizer object, and those that it wraps, the state of a new one."""
    kept = ("inner_optimizer", "_inner_optimizers", "_optimizer_map")
    for mine, new in zip(family(live), family(fresh), strict=True):
        own = instance_attributes(mine)
        names = {*kept, *twins.names_of_run(mine, new), *_methods_of(new)}
        held = {name: own[name] for name in names if name in own}
        own.update(instance_attributes(new))
        own.update(held)
        rates.bind(mine)


def _methods_of(optimizer: Optimizer) -> set[str]:
    """The attributes that an optimizer's constructor has bound to the object itself."""
    own = instance_attributes(optimizer).items()
    return {name for name, v in own if getattr(v, "__self__", None) is optimizer}
