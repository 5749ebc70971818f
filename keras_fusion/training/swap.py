"""One change of a live model: prepared beside it, then put in its place as a whole.

Nothing else in this room deals with plans.
"""

import contextlib
import dataclasses
import gc
import signal
import threading
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_fusion import graft
from keras_fusion.errors import FusionError, GrowthError
from keras_fusion.layout import parent_blocks
from keras_fusion.models import memory, private, probe, samples
from keras_fusion.operators.plan import Plan
from keras_fusion.operators.verification import verify
from keras_fusion.training import penalties
from keras_fusion.training.matching import check_shapes, shapes_of
from keras_fusion.training.record import Change

# Bytes of a model from which on its memory is freed at once.
_LARGE = 2**26


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A change that only has to be put in place.

    Args:
        plan: the filled `Plan`.
        optimizer: optimizer of the new model; `None` if the live one has none.
    """

    plan: Plan
    optimizer: keras.optimizers.Optimizer | None

    @property
    def fused(self) -> keras.Model:
        """The new model."""
        return self.plan.fused

    @property
    def shapes(self) -> list[list[int]]:
        """The shapes of the new model's weights."""
        return shapes_of(self.fused)

    def in_place(self, model: keras.Model) -> contextlib.AbstractContextManager:
        """A scope in which the live model is the new one, see `graft.grafted`."""
        adapter = self.plan.weights_adapter()
        return graft.grafted(model, self.fused, self.optimizer, adapter)


@dataclasses.dataclass(frozen=True)
class StockNorms:
    """The change of a model's block norms to the stock norms that they are made of.

    Args:
        shapes: list of lists of ints. The shapes of the weights that there will be.
    """

    shapes: list[list[int]]

    def in_place(self, model: keras.Model) -> contextlib.AbstractContextManager:
        """A scope in which the live model's norms are stock norms."""
        return graft.stock_norms(model)


def _probe(operator: Any, inputs: Any) -> Any:
    """The batch on which a growth is measured: the callback's, or the operator's."""
    return getattr(operator, "probe", None) if inputs is None else inputs


def nth_seed(seed: int, n: int) -> int:
    """The seed of the n-th growth of a run."""
    return int(np.random.SeedSequence([seed, n]).generate_state(1)[0])


def check(
    model: keras.Model,
    operator: Any,
    seed: int,
    optimizer_state: str,
    *,
    inputs: Any = None,
    tolerance: float | None = None,
) -> None:
    """Tries a growth and drops it, so that what cannot work is refused now, see `tried`.

    Raises:
        FusionError: if the growth is refused.
    """
    planned = tried(
        model, operator, seed, optimizer_state, inputs=inputs, tolerance=tolerance
    )
    is_large = planned is not None and memory.size_of(planned.fused) > _LARGE
    del planned
    if is_large:
        gc.collect()  # Models hold themselves; training needs the memory.


def tried(
    model: keras.Model,
    operator: Any,
    seed: int,
    optimizer_state: str,
    *,
    inputs: Any = None,
    tolerance: float | None = None,
) -> Plan | None:
    """Tries a growth; nothing of it is put in place.

    Where the memory holds the bigger model as well, its weights are filled and its
    function is measured; else it is only laid out.

    Returns:
        The plan, or `None` if the memory does not even suffice for that.

    Raises:
        FusionError: if the growth is refused.
    """
    planned = None
    try:
        with private.scope(model), probe.given(_probe(operator, inputs)):
            planned = operator.plan(model, seed)
            if memory.holds(planned.fused):
                _measured(planned, model, tolerance)
            graft.check_metrics(model, planned.fused)
    except FusionError:
        raise
    except Exception as error:
        if not memory.is_exhausted(error):
            raise FusionError(
                f"The growth of {model.name!r} fails ({type(error).__name__}: {error}). "
                "Nothing has changed."
            ) from error
    check_optimizers(model, operator, optimizer_state)
    return planned


def check_optimizers(model: keras.Model, operator: Any, optimizer_state: str) -> None:
    """Checks that the optimizers' state can be carried through a growth.

    Raises:
        FusionError: naming the model and the optimizer.
    """
    parents = getattr(operator, "parents", None)
    models = parents(model) if parents is not None else [model]
    graft.check_optimizers(models, optimizer_state)


def _measured(
    planned: Plan, model: keras.Model, tolerance: float | None
) -> probe.Difference:
    """Fills the bigger model, and verifies its function."""
    planned.fill()
    return verify(planned, samples.sample(model), tolerance=tolerance)


def prepare(
    model: keras.Model,
    operator: Any,
    seed: int,
    *,
    optimizer_state: str,
    multipliers: bool,
    inputs: Any = None,
    tolerance: float | None = None,
) -> tuple[Prepared, probe.Difference]:
    """Does everything that can fail, away from the live model.

    Args:
        model: the live model.
        operator: `GrowthOperator` or another object with its methods.
        seed: int. Seed of what is drawn at random.
        optimizer_state: `"carry"` or `"reset"`.
        multipliers: bool. Whether each weight gets a learning rate of its own.
        inputs: probe batch; by default one is made up.
        tolerance: float. Change of the outputs above which an exact growth is refused.

    Returns:
        The growth, and the difference of the outputs that it makes.

    Raises:
        FusionError: if the growth is refused.
        GrowthError: if it failed.
    """
    try:
        with private.scope(model), probe.given(_probe(operator, inputs)):
            planned = operator.plan(model, seed)
            difference = _measured(planned, model, tolerance)
            penalties.warn_of_change(model, planned.fused)
            optimizer = graft.grown_optimizer(planned, optimizer_state, multipliers)
    except FusionError:
        raise
    except Exception as error:
        raise GrowthError(
            f"The growth of {model.name!r} failed ({type(error).__name__}: {error}); it "
            "trains on as it was."
        ) from error
    return Prepared(planned, optimizer), difference


def build_optimizer(model: keras.Model) -> None:
    """Makes the optimizer's variables, into which saved ones can be loaded.

    They are in the order that the run had, which a file of weights goes by. Where there
    are none, Keras loads none.
    """
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)


def build_multi_optimizer(model: keras.Model) -> None:
    """Builds an unbuilt `MultiOptimizer`, which knows only then which optimizers it has.

    Other optimizers are left to be built by their first step.
    """
    optimizer = graft.optimizer_of(model)
    if graft.is_divided(optimizer) and model.built and model.weights:
        with private.scope(model):
            build_optimizer(model)


def prepare_again(
    model: keras.Model, operator: Any, seed: int, multipliers: bool, inputs: Any = None
) -> Prepared:
    """Prepares a growth whose weights and optimizer state will be loaded afterwards."""
    with private.scope(model), probe.given(_probe(operator, inputs)):
        build_optimizer(model)
        planned = operator.plan(model, seed)
        planned.fill()
        optimizer = graft.grown_optimizer(planned, "reset", multipliers)
    return Prepared(planned, optimizer)


def prepare_stock_norms(model: keras.Model) -> StockNorms:
    """Prepares stock norms in place of block norms."""
    return StockNorms(graft.shapes_with_stock_norms(model))


@contextlib.contextmanager
def in_place(model: keras.Model, prepared: Prepared | StockNorms) -> Iterator[None]:
    """Opens a scope in which the live model is the new one.

    If anything in it fails, the model becomes again what it was, entirely.

    Raises:
        GrowthError: if the swap failed; the model trains on as it was.
    """
    with private.scope(model), prepared.in_place(model):
        yield


@contextlib.contextmanager
def in_place_again(
    model: keras.Model, prepared: Prepared | StockNorms, change: Change
) -> Iterator[None]:
    """Opens the same scope for a recorded change.

    Raises:
        FusionError: if the model would become another one; nothing has changed.
    """
    where = f"The recorded change at step {change.step}"
    check_shapes(change.after, prepared.shapes, where)
    with in_place(model, prepared):
        yield


def remember_blocks(model: keras.Model, prepared: Prepared) -> parent_blocks.Blocks:
    """Remembers where the parents lie in the model that has grown."""
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
