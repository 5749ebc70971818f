"""One growth of a live model: prepared beside it, then put in its place as a whole."""

import contextlib
import dataclasses
import signal
import threading
import warnings
from collections.abc import Iterator

import keras
import numpy as np

from keras_fusion import graft
from keras_fusion.architecture import build
from keras_fusion.errors import FusionError, GrowthError
from keras_fusion.layout import parent_blocks
from keras_fusion.models import private, probe
from keras_fusion.operators.plan import Plan, replacement, verify
from keras_fusion.training import learning_rate
from keras_fusion.training.learning_rate import Ramp
from keras_fusion.values import slots


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A growth that only has to be put in place.

    Args:
        plan: the filled `Plan`.
        optimizer: optimizer of the grown model.
        difference: `probe.Difference` of the outputs, `None` if it was not measured.
    """

    plan: Plan
    optimizer: keras.optimizers.Optimizer
    difference: probe.Difference | None = None


def plan(model: keras.Model, operator, seed: int) -> Plan:
    """Asks an operator for its plan; what it draws at random depends on `seed` alone."""
    with private.scope(model):
        return operator.plan(model, seed)


def nth_seed(seed: int, n: int) -> int:
    """The seed of the n-th growth of a run."""
    return int(np.random.SeedSequence([seed, n]).generate_state(1)[0])


def prepare(
    model: keras.Model,
    operator,
    seed: int,
    *,
    optimizer_state: str,
    multipliers: bool,
    inputs=None,
    tolerance: float | None = None,
) -> Prepared:
    """All that can fail, away from the live model.

    Args:
        model: the live model.
        operator: `FusionOperator` or another object with its methods.
        seed: int. Seed of what is drawn at random.
        optimizer_state: `"carry"` or `"reset"`.
        multipliers: bool. Whether each weight gets a learning rate of its own.
        inputs: probe batch; by default one is made up.
        tolerance: float. Change of the outputs above which an exact growth is refused.

    Raises:
        FusionError: if the growth is refused.
        GrowthError: if it failed.
    """
    try:
        with private.scope(model):
            planned = plan(model, operator, seed)
            planned.fill()
            inputs = probe.accepted(model) if inputs is None else inputs
            given = tolerance is not None
            tolerance = tolerance if given else probe.tolerance(model)
            difference = verify(planned, inputs, tolerance=tolerance)
            optimizer = graft.grown_optimizer(planned, optimizer_state, multipliers)
    except FusionError:
        raise
    except Exception as error:
        raise GrowthError(
            f"The growth of {model.name!r} failed ({type(error).__name__}: {error}); it "
            "trains on as it was."
        ) from error
    return Prepared(planned, optimizer, difference)


def prepare_again(model: keras.Model, operator, seed: int, multipliers: bool):
    """Prepares a growth whose weights and optimizer state will be loaded afterwards."""
    with private.scope(model):
        if not model.optimizer.built:
            # In the order that the run had, which a file of weights goes by.
            model.optimizer.build(model.trainable_variables)
        planned = plan(model, operator, seed)
        planned.fill()
        optimizer = graft.grown_optimizer(planned, "reset", multipliers)
    return Prepared(planned, optimizer)


def prepare_stock_norms(model: keras.Model) -> Prepared:
    """Prepares the same model with Keras's norms in place of block norms."""
    with private.scope(model):
        planned = replacement(model, build.with_stock_norms(model))
        planned.fill()
        return Prepared(planned, graft.grown_optimizer(planned, "carry"))


def put_in_place(model: keras.Model, prepared: Prepared) -> None:
    """The live model becomes the grown one, or stays wholly as it was.

    Raises:
        GrowthError: if it failed; the model trains on as it was.
    """
    with private.scope(model):
        graft.graft(
            model,
            prepared.plan.fused,
            prepared.optimizer,
            prepared.plan.weights_adapter(),
        )


def remember_blocks(model: keras.Model, prepared: Prepared) -> parent_blocks.Blocks:
    """Where the parents lie in the model that has grown."""
    return parent_blocks.remember(prepared.plan.layouts, model)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Holds a KeyboardInterrupt back until the end, so that nothing is half done."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Signals go to the main thread.
        return
    held = []
    handler = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, lambda *arguments: held.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if held and callable(handler):
            handler(*held[0])


# The learning rate of the time after it.


def factors(
    model: keras.Model, factor, grown: parent_blocks.Blocks | None
) -> list[float]:
    """The factor on each optimizer's learning rate, measured if it is a function.

    Args:
        model: the model that has grown.
        factor: number, or function `(model, blocks, optimizer)`.
        grown: its `Blocks`.
    """
    leaves = graft.leaves(model.optimizer)
    if not callable(factor):
        return [factor] * len(leaves)
    try:
        return [factor(model, grown, optimizer) for optimizer in leaves]
    except Exception as error:  # The model has grown and must train on.
        warnings.warn(
            f"{factor!r} could not measure the learning rate's factor ({error}); the "
            "learning rate stays as it is.",
            stacklevel=2,
        )
        return [1.0] * len(leaves)


def ramps(
    model: keras.Model, factors: list[float], rewarmup_steps: int, reset: bool
) -> list[Ramp]:
    """The ramps that a growth begins now, one for each optimizer of the model."""
    leaves = graft.leaves(model.optimizer)
    return [
        Ramp(
            factor,
            rewarmup_steps,
            graft.steps(optimizer),
            slots.correction(optimizer) if reset else None,
            optimizer.gradient_accumulation_steps or 1,
        )
        for optimizer, factor in zip(leaves, factors, strict=True)
    ]


def start_ramps(model: keras.Model, ramps: list[Ramp]) -> None:
    """Puts the learning rates on their ramps."""
    for optimizer, ramp in zip(graft.leaves(model.optimizer), ramps, strict=True):
        learning_rate.start(optimizer, graft.schedule_of(optimizer), ramp)


def resume_ramps(model: keras.Model, growths: list[list[Ramp]]) -> None:
    """Goes on with the ramps of each growth after a model was loaded that had grown."""
    leaves = graft.leaves(model.optimizer) if growths else []
    for optimizer, *ramps in zip(leaves, *growths, strict=True):
        learning_rate.resume(optimizer, graft.schedule_of(optimizer), ramps)
