"""A model in the middle of `fit()`: its values, its strategy, where it starts."""

import contextlib

import keras


def sync(model: keras.Model) -> None:
    """Brings the values that a JAX training loop holds back into the variables."""
    if hasattr(model, "jax_state_sync") and getattr(model, "_jax_state", None):
        model.jax_state_sync()


def scope(model: keras.Model) -> contextlib.AbstractContextManager:
    """The scope in which variables of the model must be created."""
    strategy = getattr(model, "_distribute_strategy", None)
    return strategy.scope() if strategy is not None else contextlib.nullcontext()


def start_at_epoch(model: keras.Model, epoch: int | None) -> None:
    """Says where a `fit()` that is about to begin starts, whatever was passed to it."""
    model._initial_epoch = epoch
