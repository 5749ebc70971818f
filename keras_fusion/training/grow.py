"""`grow`: grows a live model at once, outside of `fit`."""

import contextlib
import numbers
from collections.abc import Callable, Iterator
from typing import Any

import keras

from keras_fusion import graft
from keras_fusion.errors import FusionError, require
from keras_fusion.models import private, processes
from keras_fusion.models.names import helpful
from keras_fusion.operators.base import check_operator
from keras_fusion.operators.fusion import FusionOperator
from keras_fusion.training import journal, live_growth, options, swap
from keras_fusion.training.event import GrowthEvent


@helpful
def grow(
    model: keras.Model,
    operator_or_factor: Any = 2,
    *,
    to: dict[str, int] | float | None = None,
    optimizer: keras.optimizers.Optimizer | None = None,
    optimizer_state: str = "carry",
    learning_rate_factor: float | Callable = 1.0,
    learning_rate_multipliers: str | None = None,
    rewarmup_steps: int = 0,
    probe: Any = None,
    tolerance: float | None = None,
    seed: int | None = None,
    verbose: int = 1,
) -> GrowthEvent:
    """Grows a model and its optimizer now, in place, outside of `fit`.

    For training loops of your own, between two calls of `fit`, and before fine-tuning. The
    model object becomes the bigger one, and its optimizer object gets the grown state;
    `GrowModel` and `DeepFusion` do the same at a chosen moment of `fit`. A model without
    optimizer grows too. If a growth is refused or fails, the model is as it was.

    Whatever your own code has read from the model must be fetched again afterwards: lists
    of variables, a traced `tf.function`, the state of a JAX loop, a `torch.optim`
    optimizer (docs/custom_loops.md).

    Args:
        model: built model, compiled or not.
        operator_or_factor: how to grow: a growth operator; or number above 1, the factor
            of a self-fusion (see `FusionOperator`). Defaults to 2.
        to: in place of a factor, the sizes that widths are to have, or the number of
            parameters of the whole (`1.5e9`), see `fuse`.
        optimizer: the Keras optimizer of your loop, if the model was not compiled with
            it. Defaults to the model's own.
        optimizer_state: `"carry"` or `"reset"`, see `GrowModel`. Defaults to `"carry"`.
        learning_rate_factor: float, or function that measures it. Multiplies the
            learning rate from now on, see `GrowModel`. Defaults to 1.
        learning_rate_multipliers: `"width"` or `None`, see `GrowModel`. Defaults to
            `None`.
        rewarmup_steps: int. Steps over which the learning rate rises again from 0.
            Defaults to 0.
        probe: batch in the structure of the model's inputs, on which the change of the
            function is measured. By default a small random one is made.
        tolerance: float, see `GrowModel`.
        seed: int. Seed of what is drawn at random. Defaults to one drawn from NumPy's
            global generator, which `keras.utils.set_random_seed` governs.
        verbose: int. 1 prints one line, 0 prints nothing. Defaults to 1.

    Returns:
        The `GrowthEvent`.

    Raises:
        FusionError: for arguments or models that cannot grow; nothing has changed.
        GrowthError: if the growth failed; the model is as it was.

    Example: between two calls of `fit`.

    >>> import keras, keras_fusion, numpy as np
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8)])
    >>> model.add(keras.layers.Dense(1))
    >>> model.compile("adam", "mse")
    >>> x = np.ones((32, 4), "float32")
    >>> _ = model.fit(x, x[:, :1], verbose=0)
    >>> event = keras_fusion.grow(model, 1.5, verbose=0)
    >>> event.params_before, event.params_after, model.layers[0].units
    (49, 73, 12)
    >>> _ = model.fit(x, x[:, :1], verbose=0)
    """
    require(isinstance(model, keras.Model), "model", model, "a keras.Model")
    chosen = live_growth.Options(
        as_operator(operator_or_factor, to),
        optimizer_state,
        learning_rate_factor,
        learning_rate_multipliers,
        rewarmup_steps,
        probe,
        tolerance,
    )
    options.check_growth(
        optimizer_state=optimizer_state,
        learning_rate_factor=learning_rate_factor,
        learning_rate_multipliers=learning_rate_multipliers,
        rewarmup_steps=rewarmup_steps,
        tolerance=tolerance,
        verbose=verbose,
        record=None,
    )
    good = seed is None or options.is_integer(seed)
    require(good, "seed", seed, "an integer of at least 0, or None")
    private.sync(model)
    with _trained_by(model, optimizer), private.scope(model):
        seed = processes.drawn_seed() if seed is None else int(seed)
        _check(model, chosen)
        occasion = _occasion(model, seed)
        return live_growth.told(
            model, verbose, lambda: live_growth.grow(model, chosen, occasion)
        )


def as_operator(given: Any, to: dict[str, int] | float | None = None) -> Any:
    """The growth operator that a factor, sizes or an operator stand for.

    Raises:
        FusionError: for anything else.
    """
    if to is not None:
        if given != 2:  # which it is by default
            raise FusionError(
                "`to` says how large the model becomes, and so does `operator_or_factor`. "
                f"Received: to={to!r}, operator_or_factor={given!r}. Leave one of the two "
                "out."
            )
        return FusionOperator(to=to)
    if isinstance(given, numbers.Real) and not isinstance(given, bool):
        factor = float(given)
        return FusionOperator(factor=int(factor) if factor.is_integer() else factor)
    check_operator(given, "operator_or_factor")
    return given


@contextlib.contextmanager
def _trained_by(model: keras.Model, optimizer: Any) -> Iterator[None]:
    """A scope in which a model has the optimizer of a loop of one's own."""
    own = graft.optimizer_of(model)
    if optimizer is None or optimizer is own:
        yield
        return
    require(
        isinstance(optimizer, keras.optimizers.Optimizer),
        "optimizer",
        optimizer,
        "a Keras optimizer, or None (one of another kind, as PyTorch's own, is made anew "
        "on the grown model's parameters)",
    )
    if own is not None and own.built:  # keras-hub's tasks are compiled by themselves
        raise FusionError(
            f"Model {model.name!r} has been trained with the optimizer that it was "
            f"compiled with, and `optimizer` is another one ({type(optimizer).__name__}); "
            "only one can be grown. Leave `optimizer` out, or compile the model again."
        )
    with graft.with_optimizer(model, optimizer):
        yield


def _check(model: keras.Model, chosen: live_growth.Options) -> None:
    """Checks what concerns the optimizer before anything is built."""
    swap.build_multi_optimizer(model)
    swap.check_optimizers(model, chosen.operator, chosen.optimizer_state)
    live_growth.check_rates(model, chosen)


def _occasion(model: keras.Model, seed: int) -> live_growth.Occasion:
    optimizer = graft.optimizer_of(model)
    done = 0 if optimizer is None else graft.raw_iterations(optimizer)
    core: Any = getattr(optimizer, "inner_optimizer", optimizer)
    every = getattr(core, "gradient_accumulation_steps", None) or 1
    return live_growth.Occasion(done // every, journal.of(model).clock.epoch, seed)
