"""New optimizers with the options of others.

A twin is made from a config. What a class of a user's own keeps beside it stays with the
live optimizer, see `names_of_run`.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import keras

from keras_fusion.errors import FusionError
from keras_fusion.graft.own_state import equal, held
from keras_fusion.models.private.attributes import instance_attributes

Optimizer = keras.optimizers.Optimizer


def schedule_of(optimizer: Optimizer) -> Any:
    """The optimizer's learning-rate schedule, or `None` if its rate is a variable."""
    rate = optimizer._learning_rate
    return None if isinstance(rate, keras.Variable) else rate


def options(optimizer: Any) -> dict[str, Any]:
    """An optimizer's config without its learning rate, whose schedule may have none."""
    schedule = schedule_of(optimizer)
    own = instance_attributes(optimizer)
    if schedule is not None:
        own["_learning_rate"] = 0.0
    try:
        config = dict(optimizer.get_config())
    finally:
        if schedule is not None:
            own["_learning_rate"] = schedule
    config.pop("learning_rate", None)
    return config


def twin(optimizer: Any, sources: Mapping[int, keras.Variable]) -> Any:
    """A new optimizer with the options of another one, not built.

    Args:
        optimizer: the other one.
        sources: the old variable by the id of the new one.

    Raises:
        FusionError: if its class cannot be made from its config.
    """
    cls = type(optimizer)
    if hasattr(optimizer, "inner_optimizer"):
        inner = twin(optimizer.inner_optimizer, sources)
        return cls(
            inner,
            initial_scale=optimizer.initial_scale,
            dynamic_growth_steps=optimizer.dynamic_growth_steps,
            name=optimizer.name,
        )
    if hasattr(optimizer, "_inner_optimizers"):
        return _multi_twin(optimizer, sources)
    schedule = schedule_of(optimizer)
    try:
        if schedule is None:
            return cls.from_config(optimizer.get_config())
        # The schedule object itself is kept, so that it does not need a config.
        new = cls.from_config(options(optimizer) | {"learning_rate": 0.0})
    except Exception as error:
        raise FusionError(
            f"Optimizer {cls.__name__} cannot be made from its own config "
            f"({type(error).__name__}: {error}). Give the class a get_config with all "
            "arguments of its constructor."
        ) from error
    new.learning_rate = schedule
    return new


def _multi_twin(optimizer: Any, sources: Mapping[int, keras.Variable]) -> Any:
    """A `MultiOptimizer` that divides the new variables as the old ones are divided."""
    twins: dict[int, tuple] = {}

    def twin_of(inner: Any) -> Any:
        if id(inner) not in twins:
            twins[id(inner)] = inner, twin(inner, sources)
        return twins[id(inner)][1]

    new = type(optimizer)(
        lambda variable: twin_of(_chooser(optimizer)(sources[id(variable)])),
        loss_scale_factor=optimizer.loss_scale_factor,
        name=optimizer.name,
    )
    new._inner_optimizers.extend(map(twin_of, optimizer._inner_optimizers))
    return new


def _chooser(optimizer: Any) -> Callable[[keras.Variable], Any]:
    """The function from a variable to its optimizer.

    That of the user may make new optimizers, so that a built one is asked for its choice.
    """
    if not optimizer.built:
        return optimizer._optimizer_map
    inner, places = optimizer._inner_optimizers, optimizer._var_to_optimizer_idx
    return lambda variable: inner[places[optimizer._var_key(variable)]]


def names_of_run(live: Optimizer, fresh: Optimizer) -> set[str]:
    """The attributes in which a live optimizer keeps what its own class has given it.

    Its constructor's arguments may be in no config, and may have changed in training.
    What a build makes, and all that Keras's class has, is the new optimizer's.

    Args:
        live: the live optimizer.
        fresh: its twin, built on the grown variables.
    """
    if hasattr(live, "inner_optimizer") or hasattr(live, "_inner_optimizers"):
        return set()
    own, new = instance_attributes(live), instance_attributes(fresh)
    names = {
        name
        for name in (own.keys() & new.keys()) - _names_of_keras(_stock(type(live)))
        if not any(
            isinstance(part, keras.Variable)
            for value in (own[name], new[name])
            for part in held(value)
        )
    }
    if not names:
        return names
    unbuilt = instance_attributes(twin(live, {}))
    return {
        name for name in names if name in unbuilt and equal(unbuilt[name], new[name])
    }


def _stock(cls: type) -> Any:
    """Keras's optimizer that a class is, or is derived from."""
    return next(b for b in cls.__mro__ if b.__module__.partition(".")[0] == "keras")


@functools.cache
def _names_of_keras(stock: Any) -> frozenset[str]:
    """The attributes of a built optimizer of Keras."""
    made = stock(learning_rate=0.0, name="optimizer")
    if stock is not keras.optimizers.Optimizer:
        made.build([keras.Variable([[0.0]], name="variable")])
    return frozenset(instance_attributes(made))
