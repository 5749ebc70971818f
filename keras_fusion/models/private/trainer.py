"""A model's training state in `fit()`: values, strategy, first epoch."""

import contextlib
import gc
import sys
import weakref
from collections.abc import Iterable

import keras

from keras_fusion.models.private.attributes import attributes

# What a step of training on JAX takes and returns, under Keras's names.
_JAX_STATE = (
    "trainable_variables",
    "non_trainable_variables",
    "optimizer_variables",
    "metrics_variables",
)
_COMPILED = ("train_function", "test_function", "predict_function")


def sync(model: keras.Model) -> None:
    """Writes the values that a JAX training loop holds back to the variables."""
    if hasattr(model, "jax_state_sync") and getattr(model, "_jax_state", None):
        model.jax_state_sync()


def renew(model: keras.Model) -> None:
    """Gives a JAX training loop the model's present values, in place of those it holds.

    If the next step fails, the loop writes what it holds back to the variables. After a
    growth those are the values of another model.
    """
    if getattr(model, "_jax_state", None):
        values = model._get_jax_state(**dict.fromkeys(_JAX_STATE, True))
        model._jax_state = dict(zip(_JAX_STATE, values, strict=True))


def others(model: keras.Model) -> list[keras.Model]:
    """All other models. Nothing in a layer tells who holds it."""
    return [
        thing
        for thing in gc.get_objects()
        if issubclass(type(thing), keras.Model)
        and thing is not model
        and "_layers" in vars(thing)  # else its constructor has not run
    ]


def forget_compiled(holders: Iterable[keras.Model]) -> None:
    """Drops the compiled functions of models that hold a model that has changed.

    TensorFlow compiles a function together with the variables that it reads, so that
    such a function goes on with those that the model had before.
    """
    for holder in holders:
        for name in _COMPILED:
            if vars(holder).get(name) is not None:
                setattr(holder, name, None)


def layers_of(model: keras.Model) -> list[keras.Layer]:
    """A model and all layers in it, at any depth."""
    return model._flatten_layers()


def parts_of(model: keras.Model) -> set[int]:
    """The ids of a model's layers, and of what they hold, their trackers among it."""
    layers = model._flatten_layers()
    held = [value for layer in layers for _, value in attributes(layer)]
    # A Sequential tracks each functional model that it has been, layer by layer.
    tracked = [x for layer in layers for x in layer._tracker.config["layers"][1]]
    return {id(part) for part in (*layers, *held, *tracked)}


def identity(model: keras.Model) -> set[int]:
    """The ids of a model and of its tracker, which its views (`views.as_class`) share."""
    return {id(model), id(model._tracker)}


def has_any(model: keras.Model, variables: set[int]) -> bool:
    """Whether a model has trainable variables of some ids."""
    layers = model._flatten_layers()
    own = (v for layer in layers for v in layer._trainable_variables)
    return any(id(variable) in variables for variable in own)


def scope(model: keras.Model) -> contextlib.AbstractContextManager:
    """The scope in which variables of the model must be created."""
    strategy = getattr(model, "_distribute_strategy", None)
    return strategy.scope() if strategy is not None else contextlib.nullcontext()


class _FirstEpoch(int):
    """The first epoch of one `fit()`, which is 0 for any other.

    Keras would keep a plain number for all later calls of `fit()` if this one ended by an
    exception before its first epoch.
    """

    model: weakref.ref
    history: object

    def __bool__(self) -> bool:
        """Whether the `fit()` is the one that this was set in; Keras asks for it."""
        model = self.model()
        # Every fit() gives the model a new history.
        running = getattr(model, "history", None) is self.history
        return int(self) > 0 and model is not None and running


def start_at_epoch(model: keras.Model, epoch: int | None) -> None:
    """Sets the first epoch of the `fit()` that is about to begin, and of no other.

    Args:
        model: the model in training.
        epoch: int. Takes the place of what `fit()` was passed; `None` for that.
    """
    if epoch is not None:
        epoch = _FirstEpoch(epoch)
        epoch.model = weakref.ref(model)
        epoch.history = getattr(model, "history", None)
    model._initial_epoch = epoch


def compile_again(model: keras.Model) -> None:
    """Makes a model's compiled functions those of what it now is."""
    model.test_function = model.predict_function = None
    if hasattr(model, "generate_function"):
        model.generate_function = None
    if model.train_function is not None:
        model.train_function = None
        model.make_train_function(force=True)
    renew(model)


def callbacks_of_fit() -> list[keras.callbacks.Callback]:
    """The callbacks of the `fit` that calls now; none outside of a callback's hook.

    A callback is not told which others there are, so they are looked up on the stack.
    """
    frame = sys._getframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, keras.callbacks.CallbackList):
            return list(owner.callbacks)
        frame = frame.f_back
    return []
