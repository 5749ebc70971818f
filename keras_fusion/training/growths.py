"""The growths of one callback: how each happens, is recorded, and is done again."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras

from keras_fusion import graft
from keras_fusion.errors import FusionError
from keras_fusion.layout import parent_blocks
from keras_fusion.layout.parent_blocks import Blocks
from keras_fusion.models import private, processes
from keras_fusion.training import (
    circumstances,
    fields,
    files,
    journal,
    live_growth,
    ramps,
    swap,
)
from keras_fusion.training.event import GrowthEvent
from keras_fusion.training.record import (
    GROWTH,
    Change,
    SavedGrowths,
    description,
    plain,
)
from keras_fusion.training.replay import replay

_STATE = {
    "seed": fields.none_or(fields.is_seed),
    "schedule": fields.is_dict,
    # Version 0.1.0 did not write them.
    "epochs_before": fields.is_count,
}

if TYPE_CHECKING:
    from keras_fusion.training.grow_model import GrowModel


def _events(changes: list[Change]) -> list[GrowthEvent]:
    events = [change.event for change in changes if change.kind == GROWTH]
    return [event for event in events if event is not None]


class Growths(journal.Author):
    """The author of a `GrowModel` callback's growths.

    The options are the callback's, and so are `events` and `blocks`, which are set here.

    Args:
        callback: the `GrowModel` callback.
        change_if_due: see `journal.Author`.
    """

    callback: "GrowModel"

    def __init__(
        self, callback: "GrowModel", change_if_due: Callable[[dict | None], None]
    ):
        super().__init__(callback, change_if_due)
        self._seed: int | None = None
        self._run: dict = {}
        self._schedule_state: dict | None = None
        self._ahead: list[Change] = []  # recorded changes that the model has not had

    def turn_to(self, model: keras.Model) -> None:
        """Begins, or continues, with a model that is not the one before."""
        self._seed = self._schedule_state = None
        self._ahead = []
        made = journal.of(model).changes_of(self)
        self.callback.events = _events(made)
        self.callback.blocks = parent_blocks.of(model) if made else None

    # Before the first growth.

    def draw_seed(self) -> None:
        """Draws the run's seed, unless it was resumed with one."""
        if not (self._run and self.callback.events):
            self._run = circumstances.of(self.callback.model)
        # Drawn in any case, so that the generator continues as in a resumed run.
        with private.scope(self.callback.model):
            drawn = processes.drawn_seed()
        self._seed = drawn if self._seed is None else self._seed

    def check(self) -> None:
        """Lays the next growth out once, so that what cannot work is refused now.

        Raises:
            FusionError: naming what cannot work.
        """
        grow, model = self.callback, self.callback.model
        if not isinstance(model.optimizer, keras.optimizers.Optimizer):
            raise FusionError(
                f"Model {model.name!r} has no optimizer to grow. Compile it with one "
                "before fit()."
            )
        swap.build_multi_optimizer(model)
        live_growth.check(model, live_growth.Options.of(grow), self._next_seed())

    def check_built(self) -> None:
        """Checks what only the first batch builds.

        Raises:
            FusionError: naming what cannot work.
        """
        look = getattr(self.callback.operator, "check_built", None)
        if look is not None:
            look(self.callback.model)

    # A growth.

    def grow(self, step: int) -> GrowthEvent:
        """Grows the model now.

        Args:
            step: int. Optimizer steps done.

        Returns:
            The `GrowthEvent`.

        Raises:
            FusionError: if the growth is refused; nothing has changed.
            GrowthError: if it failed; the model trains on as it was.
        """
        grow, model, seed = self.callback, self.callback.model, self._next_seed()
        recorded = self.ahead_at(step)
        epoch = recorded.epoch if recorded else journal.of(model).clock.epoch
        return live_growth.grow(
            model,
            live_growth.Options.of(grow),
            live_growth.Occasion(step, epoch, seed, self),
            self._enter,
            self._kept,
        )

    def _enter(self, event: GrowthEvent, blocks: Blocks) -> None:
        self.callback.blocks = blocks
        self.callback.events.append(event)

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        """Opens a scope after which a growth that failed leaves nothing behind."""
        grow = self.callback
        events, blocks = list(grow.events), grow.blocks
        try:
            yield
        except BaseException:
            grow.events[:], grow.blocks = events, blocks
            raise

    def _run_seed(self) -> int:
        """The seed from which the seed of each growth is derived."""
        if self._seed is None:
            raise FusionError(
                "The growth's seed is drawn when training begins. Call grow() in fit()."
            )
        return self._seed

    def _next_seed(self) -> int:
        return swap.nth_seed(self._run_seed(), len(self.callback.events))

    # Recorded growths.

    def replay(self, growths: Any) -> None:
        """Does recorded growths again, see `GrowModel.replay`."""
        model = self.callback.model
        found = replay(model, journal.of(model), self, growths)
        if found is not None:
            saved, self._ahead = found
            self._seed, self._run = saved.seed, saved.run

    def ahead_at(self, step: int) -> GrowthEvent | None:
        """The recorded growth of this step that the loaded weights do not have.

        A backup was made right before it, perhaps at an epoch's end.
        """
        for change in self._ahead[:1]:
            if (change.kind, change.step) == (GROWTH, step):
                return change.event
        return None

    def forget_ahead(self) -> None:
        """Lets growths that the weights do not have happen by the schedule alone."""
        self._ahead = []

    def grow_again(self, change: Change) -> None:
        """Does a recorded growth again, on a model whose weights will be loaded."""
        model = self.callback.model
        if change.ramps is None or change.seed is None:
            raise FusionError(
                f"The process was killed at the growth of step {change.step}, while the "
                "learning rate's factor was measured. Resume from before it."
            )
        grow = live_growth.Options.of(self.callback)
        prepared = swap.prepare_again(
            model, grow.operator, change.seed, grow.multiplies, grow.probe
        )
        with self._kept(), swap.in_place_again(model, prepared, change):
            self.callback.blocks = swap.remember_blocks(model, prepared)
            ramps.start(model, change.ramps)

    def script(self) -> dict:
        """The part of the script that a resumed run must share, as plain data."""
        grow, optimizer = self.callback, self.callback.model.optimizer
        swap.build_multi_optimizer(self.callback.model)
        optimizers = graft.leaves(optimizer) if optimizer else []
        return plain(
            {
                "operator": description(grow.operator),
                "schedule": description(grow.schedule),
                "optimizer_state": grow.optimizer_state,
                "learning_rate_factor": grow.learning_rate_factor,
                "learning_rate_multipliers": grow.learning_rate_multipliers,
                "rewarmup_steps": grow.rewarmup_steps,
                "optimizer": [type(optimizer).__name__ for optimizer in optimizers],
            }
        )

    def save(self, changes: list[Change]) -> None:
        """Writes changes to the record, if there is to be one."""
        if self.record is None:
            return
        content = SavedGrowths(self.script(), self._run_seed(), changes, self._run)
        with private.scope(self.callback.model):
            is_chief = processes.is_chief()
        if is_chief:
            content.write(self.record)

    def kept_record(self) -> contextlib.AbstractContextManager:
        """A scope after which the record is as before, if anything in it failed."""
        if self.record is None:
            return contextlib.nullcontext()
        with private.scope(self.callback.model):
            if not processes.is_chief():
                return contextlib.nullcontext()
        return files.as_before_on_error(Path(self.record))

    def resume(self, changes: list[Change]) -> None:
        """Continues after recorded changes."""
        self.forget_ahead()
        self.callback.events[:] = _events(changes)

    def get_state(self) -> dict:
        """The state that a backup holds beside weights and changes, as plain data."""
        schedule = plain(self.callback.schedule.get_state())
        before = self.callback.epoch_count.before
        return {"seed": self._seed, "schedule": schedule, "epochs_before": before}

    def set_state(self, state: dict) -> None:
        """Continues from what `get_state` returned, when the first epoch begins."""
        optional = ("epochs_before",)
        fields.check(state, _STATE, "the callback's progress", optional=optional)
        self.callback.epoch_count.resume(state.get("epochs_before"))
        self._seed, self._schedule_state = state["seed"], state["schedule"]

    def restore_schedule(self) -> None:
        """Gives the schedule the state that was backed up, if there is one."""
        if self._schedule_state is not None:
            state, self._schedule_state = self._schedule_state, None
            try:
                self.callback.schedule.set_state(state)
            except Exception as error:
                schedule = type(self.callback.schedule).__name__
                raise FusionError(
                    f"The backup's state of the schedule {schedule} cannot be used "
                    f"({type(error).__name__}: {error}). It is damaged, or of another "
                    "version of the class: delete the backup to start from the beginning."
                ) from error
