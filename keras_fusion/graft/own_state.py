"""Which attributes of a model that grows belong to its run, and which to the network.

The network's are the bigger model's from then on: layers and variables and what holds
them, what Keras itself keeps, and what the constructor made of the widths. The run's stay
as they are: compile state, metrics, counters, loss weights and whatever else a class of
models keeps for its training.
"""

import functools
import types
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

from keras_fusion.models import graph
from keras_fusion.models.private import deferral
from keras_fusion.models.private.attributes import instance_attributes, is_bookkeeping

# Attributes of Keras that belong to the training run and not to the network.
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
# How far and how long a value is searched, which may be a data set.
_DEEPEST, _MOST = 6, 10_000
# Their classes keep nothing for a run but what is named above.
_LIBRARIES = ("keras", "keras_hub")


def names_of_run(live: keras.Model, fused: keras.Model) -> set[str]:
    """The attributes of a live model that a graft leaves as they are.

    Args:
        live: the live model, before it becomes the bigger one.
        fused: the bigger model.
    """
    own, new = instance_attributes(live), instance_attributes(fused)
    shared = own.keys() & new.keys()
    usual = shared & _RUN_STATE
    if type(live) in (keras.Sequential, graph.functional_class()):
        return usual
    names = {x for x in shared - _names_of_keras() if not is_bookkeeping(x)}
    metrics = {name for name in names if any(map(_is_metric, held(own[name])))}
    data = {
        name
        for name in names - metrics
        if not any(
            _is_of_network(part, (live, fused))
            for value in (own[name], new[name])
            for part in held(value)
        )
    }
    differing = {name for name in data if not equal(own[name], new[name])}
    return usual | metrics | (data - _made_of_widths(live, differing))


@functools.cache
def _names_of_keras() -> frozenset[str]:
    """The attributes that any model has, functional or not."""
    inputs = keras.Input((1,), name="input")
    models = (
        keras.Model(inputs, inputs, name="functional"),
        keras.Sequential([inputs], name="sequential"),
        keras.Model(name="subclassed"),
    )
    return frozenset(name for model in models for name in instance_attributes(model))


def _made_of_widths(live: keras.Model, names: set[str]) -> set[str]:
    """Of some attributes those that the constructor made, and nobody has changed since.

    A number that it computed from the width belongs to the network.
    """
    if not names or graph.takes_a_graph(type(live)):
        return set()  # A constructor that gets a graph gets no width.
    if type(live).__module__.partition(".")[0] in _LIBRARIES:
        return names
    try:
        config = live.get_config()
        told = {name for name in names if name.lstrip("_") in config}
        if told == names:
            return names  # A twin would have the bigger model's cost once more.
        with deferral.without_values():
            made = instance_attributes(type(live).from_config(config))
    except Exception:
        return names  # Without a config nobody knows what was changed.
    own = instance_attributes(live)
    return told | {
        name
        for name in names - told
        if name in made
        and equal(made[name], own[name])
        # A function that asks the model for its width, and not the bigger one.
        and not any(part is live for part in held(own[name]))
    }


def _is_metric(value: Any) -> bool:
    return isinstance(value, keras.Metric)


def _is_of_network(value: Any, models: tuple) -> bool:
    kinds = keras.Layer, keras.Variable, keras.KerasTensor, keras.Operation
    return isinstance(value, kinds) and not any(value is model for model in models)


def held(value: Any, depth: int = 0, seen: set[int] | None = None) -> Iterator[Any]:
    """Yields a value and all that it holds, in containers, objects and functions."""
    seen = set() if seen is None else seen
    if id(value) in seen or depth > _DEEPEST or len(seen) > _MOST:
        return
    seen.add(id(value))
    yield value
    for part in _parts(value):
        yield from held(part, depth + 1, seen)


def _parts(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return [*value.keys(), *value.values()]
    if isinstance(value, (list, tuple, set, frozenset)):
        return list(value)
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, types.MethodType):
        return [value.__self__]
    if isinstance(value, types.FunctionType):
        return [*_cells(value), *(value.__defaults__ or ())]
    opaque = (type, types.ModuleType, keras.Operation, keras.Variable, keras.Metric)
    if isinstance(value, opaque) or not hasattr(value, "__dict__"):
        return []
    return list(vars(value).values())


def _cells(function: types.FunctionType) -> list[Any]:
    """What a function has taken from where it was made."""
    return [c.cell_contents for c in function.__closure__ or () if _is_filled(c)]


def _is_filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def equal(a: Any, b: Any) -> bool:
    """Whether two values are the same data; of what is no data, the same object."""
    if a is b:
        return True
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    if type(a) is not type(b) or isinstance(a, keras.Operation):
        return False
    if isinstance(a, types.FunctionType):
        return a.__code__ is b.__code__ and equal(_cells(a), _cells(b))
    if isinstance(a, np.ndarray) or keras.ops.is_tensor(a):
        a, b = (np.asarray(keras.ops.convert_to_numpy(x)) for x in (a, b))
        return bool(np.array_equal(a, b))
    try:
        return bool(a == b) or (not _is_compared(a) and equal(vars(a), vars(b)))
    except Exception:  # Values that cannot be compared, or have no attributes.
        return False


def _is_compared(value: Any) -> bool:
    """Whether a value's class says itself when two are equal."""
    return type(value).__eq__ is not object.__eq__
