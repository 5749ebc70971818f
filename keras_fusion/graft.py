"""The graft: a live model becomes the fused one, in the middle of `fit()`.

The live object keeps its identity and all that belongs to the training run (compile
state, metrics, history, stop flag, strategy); its graph, layers and weights become the
fused model's. So every reference that others hold stays valid.

This is the only module that touches Keras's private state.
"""

import contextlib

import keras
import numpy as np

from keras_fusion import slots as slot_rules
from keras_fusion import structure
from keras_fusion.architecture import skipped_attributes
from keras_fusion.errors import FusionError, GrowthError

# What belongs to the training run and not to the network.
_RUN_STATE = {
    "_called",
    "_compile_config",
    "_compile_loss",
    "_compile_metrics",
    "_compiled_trainable_state",
    "_compute_loss_has_training_arg",
    "_distribute_reduction_method",
    "_distribute_strategy",
    "_epoch_iterator",
    "_eval_epoch_iterator",
    "_inbound_nodes",
    "_initial_epoch",
    "_jax_state",
    "_jax_state_synced",
    "_jit_compile",
    "_loss_tracker",
    "_outbound_nodes",
    "_parent_path",
    "_run_eagerly",
    "build",
    "compiled",
    "history",
    "loss",
    "name",
    "optimizer",
    "quantize",
    "sampler",
    "set_weights",
    "steps_per_execution",
    "stop_training",
    "test_function",
    "predict_function",
    "train_function",
    "unrolled_steps_per_execution",
}
_PLAIN = (bool, int, float, str, bytes, type(None))


def sync(model: keras.Model) -> None:
    """Brings the values that a JAX training loop holds back into the variables."""
    if hasattr(model, "jax_state_sync") and getattr(model, "_jax_state", None):
        model.jax_state_sync()


def scope(model: keras.Model) -> contextlib.AbstractContextManager:
    """The scope in which variables of the model must be created."""
    strategy = getattr(model, "_distribute_strategy", None)
    return strategy.scope() if strategy is not None else contextlib.nullcontext()


def raw_iterations(optimizer: keras.optimizers.Optimizer) -> int:
    """Batches the optimizer has seen; with gradient accumulation several an update."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    return int(keras.ops.convert_to_numpy(inner._iterations))


def schedule_of(optimizer: keras.optimizers.Optimizer):
    """The optimizer's learning-rate schedule, or `None` if its rate is a variable."""
    rate = optimizer._learning_rate
    return None if isinstance(rate, keras.Variable) else rate


def keep_names(model: keras.Model, fused: keras.Model) -> None:
    """Gives the fused model's layers and variables the names of a model's.

    Keras numbers unnamed sub-layers anew in each build; patterns that match variables
    by path (a LayoutMap, a weight-decay exclusion) must go on matching.
    """
    for _, (old, new) in structure.lockstep([model, fused], skipped_attributes):
        new.name = old.name
        new._path = old._path
        pairs = zip(
            structure.own_variables(old), structure.own_variables(new), strict=True
        )
        for old_variable, new_variable in pairs:
            new_variable._path = old_variable._path
            new_variable._name = old_variable._name
        if keras.config.backend() == "torch" and hasattr(new, "_torch_params"):
            new._track_variables()


# The optimizer.


def _trainables(optimizer):
    return list(optimizer._trainable_variables)


def slot_lists(optimizer: keras.optimizers.Optimizer) -> dict[str, list]:
    """An optimizer's slots: lists aligned with its trainable variables, by name."""
    trainables = _trainables(optimizer)
    own = {id(v) for v in trainables}
    found = {}
    for name, value in vars(optimizer).items():
        if name in ("_variables", "_trainable_variables") or not trainables:
            continue
        if isinstance(value, (list, tuple)) and len(value) == len(trainables):
            if all(v is None or isinstance(v, keras.Variable) for v in value):
                if not any(id(v) in own for v in value):
                    found[name.lstrip("_")] = list(value)
    return found


def _scalars(optimizer):
    return {k: v for k, v in vars(optimizer).items() if isinstance(v, keras.Variable)}


def check_optimizers(parents: list[keras.Model], optimizer_state: str) -> None:
    """Checks that the optimizers' state can go through a growth.

    Args:
        parents: the live model and its partners.
        optimizer_state: `"carry"` or `"reset"`.

    Raises:
        FusionError: naming the model and the optimizer.
    """
    live = parents[0]
    for name, value in vars(live).items():
        if isinstance(value, keras.optimizers.Optimizer) and name != "optimizer":
            raise FusionError(
                f"Model {live.name!r} trains with a second optimizer, in its attribute "
                f"{name!r}; only `model.optimizer` can be grown. Train with one "
                "optimizer (keras.optimizers.MultiOptimizer joins several)."
            )
    if optimizer_state == "reset":
        return
    kind = _core(live.optimizer)
    slot_rules.describe(kind)
    for i, partner in enumerate(parents[1:]):
        if partner is live:
            continue
        other = getattr(partner, "optimizer", None)
        other = _core(other) if other is not None else None
        if type(other) is not type(kind) or not other.built:
            state = "none" if other is None else type(other).__name__
            built = "" if other is None or other.built else " (not built)"
            raise FusionError(
                f"`optimizer_state='carry'` needs the state of {type(kind).__name__} from "
                f"every parent, but `partners[{i}]` has {state}{built}. Pass "
                "optimizer_state='reset', or give the partner with the optimizer it was "
                "trained with."
            )


def _core(optimizer):
    return getattr(optimizer, "inner_optimizer", optimizer)


def grown_optimizer(plan, optimizer_state: str) -> keras.optimizers.Optimizer:
    """A new optimizer for the fused model, with the state that its parents' have.

    Args:
        plan: a filled `fusion.Plan`; the optimizers are its parents'.
        optimizer_state: `"carry"` fuses the slots, `"reset"` leaves them fresh. Step
            count, learning rate and loss scale go on in both.

    Returns:
        An optimizer of the live model's class, built on the fused model's variables.
    """
    live = plan.parents[0].optimizer
    fresh = type(live).from_config(live.get_config())
    _rebuild(live, fresh, plan)
    if optimizer_state == "carry" and _trainables(_core(live)):
        optimizers = [_core(parent.optimizer) for parent in plan.parents]
        _carry_slots(optimizers, _core(fresh), plan)
    return fresh


def _rebuild(live, fresh, plan):
    """Builds the new optimizer and copies what is no slot: counters and rates."""
    targets = {id(s): i.target for i in plan.layouts for s in i.sources[:1]}
    old, new = _core(live), _core(fresh)
    if hasattr(old, "_exclude_from_weight_decay"):
        excluded = old._exclude_from_weight_decay
        new._exclude_from_weight_decay = {
            id(targets[id(v)]) for v in _trainables(old) if id(v) in excluded
        }
        pattern = old._exclude_from_weight_decay_pattern
        new._exclude_from_weight_decay_pattern = pattern
        new._exclude_from_weight_decay_cache = {}
    if schedule_of(old) is not None:
        new.learning_rate = schedule_of(old)
    if not live.built:
        return
    fresh.build([targets[id(v)] for v in _trainables(old)])
    for a, b in ((live, fresh), (old, new)):
        for name, variable in _scalars(a).items():
            vars(b)[name].assign(keras.ops.convert_to_numpy(variable))


def _carry_slots(optimizers, fresh, plan):
    rules = slot_rules.describe(fresh)
    lists = [slot_lists(optimizer) for optimizer in optimizers]
    positions = [
        {id(v): i for i, v in enumerate(_trainables(optimizer))}
        for optimizer in optimizers
    ]
    new_lists = slot_lists(fresh)
    unknown = set(new_lists) - set(rules)
    if unknown:
        raise FusionError(
            f"Optimizer {type(fresh).__name__} has slots {sorted(unknown)} of unknown "
            "meaning. Describe them with keras_fusion.register_optimizer, or pass "
            "optimizer_state='reset'."
        )
    for item in plan.layouts:
        index = positions[0].get(id(item.sources[0]))
        if index is None:
            continue  # not trained
        where = [p.get(id(s)) for p, s in zip(positions, item.sources, strict=True)]
        _carry_variable(item, index, where, lists, new_lists, rules, fresh, plan)


def _carry_variable(item, index, where, lists, new_lists, rules, fresh, plan):
    numpy = keras.ops.convert_to_numpy
    weights = [np.asarray(numpy(s)) for s in item.sources]
    value, done = np.asarray(numpy(item.target)), {}
    for name, new_slots in new_lists.items():
        target = new_slots[index]
        if target is None or (target.shape == () and item.target.shape != ()):
            continue  # a placeholder
        if any(i is None for i in where):
            raise FusionError(
                f"{item.address!r} is trained in the live model but frozen in a partner, "
                "which so has no state for it. Pass optimizer_state='reset'."
            )
        arrays = [
            np.asarray(numpy(parent[name][i]))
            for parent, i in zip(lists, where, strict=True)
        ]
        done[name] = slot_rules.fused_slot(
            rules[name],
            arrays,
            item,
            optimizer=fresh,
            weights=weights,
            value=value,
            done=done,
            copies=plan.settings.copies,
        ).astype(arrays[0].dtype)
        target.assign(done[name])


# The live model.


def graft(
    live: keras.Model,
    fused: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    adapt_weights=None,
) -> None:
    """Makes the live model the fused one; if that fails, leaves it as it was.

    Args:
        live: the model in training.
        fused: the bigger model, filled. It must not be used afterwards.
        optimizer: optimizer built on the fused model's variables. The live model's
            optimizer object takes its state over.
        adapt_weights: function from a list of weights of the live model as it was to
            those of the fused one. With it `live.set_weights` goes on accepting weights
            that were taken before the growth, as `EarlyStopping` does at the end.

    Raises:
        GrowthError: if anything failed; the model trains on as before.
    """
    owners = [live, live.optimizer, _core(live.optimizer)]
    before = [dict(vars(owner)) for owner in owners]
    old_shapes = [tuple(v.shape) for v in live.weights]
    try:
        _take_over_model(live, fused)
        _take_over_optimizer(live.optimizer, optimizer)
        live._compiled_trainable_state = {
            layer: layer.trainable for layer in live._flatten_layers()
        }
        if adapt_weights is not None:
            _accept_old_weights(live, old_shapes, adapt_weights)
        live.test_function = live.predict_function = None
        if hasattr(live, "generate_function"):
            live.generate_function = None
        live.train_function = None
        live.make_train_function(force=True)
    except BaseException as error:
        for owner, state in zip(owners, before, strict=True):
            _restore(owner, state)
        if not isinstance(error, Exception):
            raise
        raise GrowthError(
            f"The growth of {live.name!r} failed while the model was swapped ({error}); "
            "it trains on as it was."
        ) from error


def _restore(owner, state):
    vars(owner).clear()
    vars(owner).update(state)


def _take_over_model(live, fused):
    own = vars(live)
    initial = _initial_attributes(live)
    # The tracker's list of metrics is the new one; its content is the run's.
    vars(fused)["_metrics"][:] = own["_metrics"]
    for name, value in vars(fused).items():
        current = own.get(name)
        if name in own and (name in _RUN_STATE or isinstance(current, keras.Metric)):
            continue
        if name in initial and _changed(initial[name], current):
            continue
        own[name] = value


def _initial_attributes(live):
    """What a new model of the same config starts with.

    A plain attribute that has changed since (a counter) belongs to the run and is
    kept; one that has not (a scale computed from the width) belongs to the network.
    """
    if getattr(live, "outputs", None):
        return {}  # The network is in the graph, and building a twin would cost weights.
    try:
        return vars(type(live).from_config(live.get_config()))
    except Exception:
        return {}  # Without a config the fused model's attributes count.


def _changed(initial, current):
    return (
        isinstance(initial, _PLAIN)
        and isinstance(current, _PLAIN)
        and initial != current
    )


def _take_over_optimizer(live, fresh):
    inner = getattr(live, "inner_optimizer", None)
    vars(live).update(vars(fresh))
    if inner is not None:
        vars(inner).update(vars(fresh.inner_optimizer))
        vars(live)["inner_optimizer"] = inner


def _accept_old_weights(live, old_shapes, adapt_weights):
    """Lets weights from before the growth be set: they are grown in the same way.

    After several growths the weights of any stage climb up, stage by stage.
    """
    stages = getattr(vars(live).get("set_weights"), "stages", [])
    stages = [*stages, (old_shapes, adapt_weights)]

    def set_weights(weights):
        for shapes, adapt in stages:
            if [tuple(np.shape(w)) for w in weights] == shapes:
                weights = adapt(weights)
        type(live).set_weights(live, weights)

    set_weights.stages = stages
    vars(live)["set_weights"] = set_weights
