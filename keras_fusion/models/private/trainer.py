"""A model's training state in `fit()`: values, strategy, first epoch."""

import contextlib

import keras


def sync(model: keras.Model) -> None:
    """Writes the values that a JAX training loop holds back to the variables."""
    if hasattr(model, "jax_state_sync") and getattr(model, "_jax_state", None):
        model.jax_state_sync()


def scope(model: keras.Model) -> contextlib.AbstractContextManager:
    """The scope in which variables of the model must be created."""
    strategy = getattr(model, "_distribute_strategy", None)
    return strategy.scope() if strategy is not None else contextlib.nullcontext()


def start_at_epoch(model: keras.Model, epoch: int | None) -> None:
    """Sets the first epoch of a `fit()` that is about to begin, whatever it was passed."""
    model._initial_epoch = epoch
