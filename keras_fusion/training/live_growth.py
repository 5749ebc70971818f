"""One growth of a live model, now: what a callback does at its moment, and `grow` at once.

It is prepared beside the model, put in its place as a whole, and entered in the journal.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import keras

from keras_fusion import graft
from keras_fusion.errors import FusionError
from keras_fusion.layout.parent_blocks import Blocks
from keras_fusion.models import private, processes, progress
from keras_fusion.training import journal, ramps, swap
from keras_fusion.training.event import GrowthEvent
from keras_fusion.training.learning_rate import Ramp
from keras_fusion.training.matching import shapes_of
from keras_fusion.training.record import GROWTH, Change
from keras_fusion.values import rate_multipliers, slots


@dataclasses.dataclass(frozen=True)
class Options:
    """How to grow: the arguments that `GrowModel` and `grow` share."""

    operator: Any
    optimizer_state: str = "carry"
    learning_rate_factor: float | Callable = 1.0
    learning_rate_multipliers: str | None = None
    rewarmup_steps: int = 0
    probe: Any = None
    tolerance: float | None = None

    @classmethod
    def of(cls, holder: Any) -> "Options":
        """The options that an object, such as a callback, has as attributes now."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: getattr(holder, name) for name in names})

    @property
    def multiplies(self) -> bool:
        """Whether each weight gets a learning rate of its own."""
        return self.learning_rate_multipliers is not None

    @property
    def is_measured(self) -> bool:
        """Whether the learning rate's factor is measured on the grown model."""
        return callable(self.learning_rate_factor)


@dataclasses.dataclass(frozen=True)
class Occasion:
    """When a growth happens, and by whom.

    Args:
        step: int. Optimizer steps done.
        epoch: int. The epoch that the moment belongs to.
        seed: int. Seed of what is drawn at random.
        author: the `journal.Author`; `None` if no callback grows the model.
    """

    step: int
    epoch: int
    seed: int
    author: journal.Author | None = None


def check(model: keras.Model, options: Options, seed: int) -> None:
    """Lays a growth out once, so that what cannot work is refused now.

    Raises:
        FusionError: naming what cannot work.
    """
    _check_states(model)
    swap.check(
        model,
        options.operator,
        seed,
        options.optimizer_state,
        inputs=options.probe,
        tolerance=options.tolerance,
    )
    check_rates(model, options)


def _check_states(model: keras.Model) -> None:
    """Checks that no layer has a state that goes on from batch to batch.

    Raises:
        FusionError: naming the layer.
    """
    for layer in private.layers_of(model):
        if isinstance(layer, keras.layers.RNN) and layer.stateful:
            raise FusionError(
                f"{type(layer).__name__} {layer.name!r} is stateful: what it remembers of "
                "the batches before cannot be carried into a bigger layer in the middle of "
                "fit(). Grow between two calls, with keras_fusion.grow, after its "
                "reset_state()."
            )


def check_rates(model: keras.Model, options: Options) -> None:
    """Checks that the learning rates can be changed as the options say.

    Raises:
        FusionError: naming the optimizer or the option.
    """
    for optimizer in graft.leaves(graft.optimizer_of(model)):
        if options.learning_rate_factor != 1 or options.rewarmup_steps:
            slots.check_rate_may_change(optimizer)
        if options.multiplies:
            rate_multipliers.check(optimizer)
    check = getattr(options.learning_rate_factor, "check", None)
    if check is not None:
        check(model)


def grow(
    model: keras.Model,
    options: Options,
    occasion: Occasion,
    entered: Callable[[GrowthEvent, Blocks], None] = lambda event, blocks: None,
    kept: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
) -> GrowthEvent:
    """Grows a model now.

    Args:
        model: the live model, whose values are in its variables.
        options: `Options`.
        occasion: `Occasion`.
        entered: function that takes note of the event and of the parents' blocks, as
            part of the growth.
        kept: function that opens a scope after which, if anything in it failed, the one
            who grows is as before.

    Returns:
        The `GrowthEvent`.

    Raises:
        FusionError: if the growth is refused; nothing has changed.
        GrowthError: if it failed; the model is as it was.
    """
    prepared, event = _prepare(model, options, occasion)
    change = Change(
        kind=GROWTH,
        step=occasion.step,
        before=shapes_of(model),
        after=shapes_of(prepared.fused),
        seed=occasion.seed,
        ramps=None if options.is_measured else ramps_of(model, options, None),
        event=event,
    )
    with (
        swap.uninterrupted(),
        kept(),
        journal.of(model).announced(occasion.author, change) as pending,
        swap.in_place(model, prepared),
    ):
        blocks = swap.remember_blocks(model, prepared)
        started = change.ramps
        if started is None:  # What is measured needs the grown model.
            started = ramps_of(model, options, blocks)
        ramps.start(model, started)
        entered(event, blocks)
        pending.commit(started)
    return event


def _prepare(
    model: keras.Model, options: Options, occasion: Occasion
) -> tuple[swap.Prepared, GrowthEvent]:
    """The growth that only has to be put in place, and its event."""
    begin = time.perf_counter()
    prepared, difference = swap.prepare(
        model,
        options.operator,
        occasion.seed,
        optimizer_state=options.optimizer_state,
        multipliers=options.multiplies,
        inputs=options.probe,
        tolerance=options.tolerance,
    )
    event = GrowthEvent(
        step=occasion.step,
        epoch=occasion.epoch,
        params_before=model.count_params(),
        params_after=prepared.fused.count_params(),
        seconds=time.perf_counter() - begin,
        function_change=difference.largest,
        mean_change=difference.mean,
        argmax_agreement=difference.argmax_agreement,
        operator=str(options.operator),
        rounding=private.coarse_dtype(model) if prepared.plan.exact else None,
    )
    return prepared, event


def ramps_of(model: keras.Model, options: Options, blocks: Blocks | None) -> list[Ramp]:
    """The ramps of a growth that happens now, one per optimizer."""
    optimizer, factor = graft.optimizer_of(model), options.learning_rate_factor
    factors: list[float]
    if callable(factor):
        factors = ramps.measured(model, factor, blocks)
    else:
        factors = [float(factor)] * len(graft.leaves(optimizer))
    is_reset = options.optimizer_state == "reset"
    return ramps.of_growth(model, factors, options.rewarmup_steps, is_reset)


def told(
    model: keras.Model, verbose: int, growth: Callable[[], GrowthEvent]
) -> GrowthEvent:
    """Grows a model, and prints how far it is and what was done, in one process.

    Args:
        model: the live model.
        verbose: int. Whether to print.
        growth: function that grows the model.
    """
    with private.scope(model):
        speaks = bool(verbose) and processes.is_chief()
    with progress.shown(speaks):
        event = growth()
    if speaks:
        print(f"\n{event}")
    return event
