"""Schedules: when to grow, asked after each training step and each epoch."""

import dataclasses
import math
import warnings

import keras

from keras_fusion.errors import FusionError, is_integer, is_number, require
from keras_fusion.models.names import helpful
from keras_fusion.training.monitored import monitored
from keras_fusion.training.options import positive_integers


@dataclasses.dataclass(frozen=True)
class Moment:
    """A moment of training at which a model may grow.

    Args:
        step: int. Optimizer steps done so far, over all calls of `fit`.
        epoch: int. Epochs done so far, over all calls of `fit` with the callback that
            asks.
        growths: int. Growths done so far by the callback that asks.
        logs: dict of metrics at the end of an epoch, `None` within one.

    Example:

    >>> import keras_fusion
    >>> moment = keras_fusion.Moment(step=7, epoch=0, growths=0)
    >>> keras_fusion.AtStep(7).should_grow(moment)
    True
    """

    step: int
    epoch: int
    growths: int
    logs: dict | None = None


class GrowthSchedule:
    """Base class of schedules: subclass it and answer `should_grow`.

    Example:

    >>> import keras_fusion
    >>> class AtLoss(keras_fusion.GrowthSchedule):
    ...     def __init__(self, loss):
    ...         self.loss = loss
    ...
    ...     def should_grow(self, moment):
    ...         if moment.logs is None or moment.growths:
    ...             return False
    ...         return moment.logs["loss"] < self.loss
    ...
    ...     def get_config(self):
    ...         return {"loss": self.loss}
    >>> grow = keras_fusion.DeepFusion(schedule=AtLoss(0.5))
    """

    def reset(self) -> None:
        """Called when a callback begins to train a model, but not when it goes on."""

    def check(self, first: Moment, last: Moment | None) -> None:
        """Called before the first step; raises if a growth can never happen.

        Args:
            first: where the run begins.
            last: where it will end, or `None` if its length is unknown.
        """

    def should_grow(self, moment: Moment) -> bool:
        """Whether to grow now.

        Args:
            moment: `Moment`. Where the run stands.

        Returns:
            bool.
        """
        raise NotImplementedError

    def is_done(self, growths: int) -> bool:
        """Whether no more growths will come.

        Args:
            growths: int. Growths done so far.

        Returns:
            bool.
        """
        return False

    def get_state(self) -> dict:
        """The schedule's memory of the run, as plain data for a backup."""
        return {}

    def set_state(self, state: dict) -> None:
        """Continues from what `get_state` returned, in a resumed run."""

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {}

    @classmethod
    def from_config(cls, config: dict) -> "GrowthSchedule":
        """Rebuilds the schedule from `get_config`."""
        return cls(**config)


class _Listed(GrowthSchedule):
    """A schedule that grows at listed counts of steps or epochs."""

    # The name that errors call the list by; `DeepFusion` has another one.
    argument = ""
    _told = False

    def _check(
        self, values: list[int], growths: int, now: int, end: int | None
    ) -> None:
        """Raises for moments that have passed; warns of those past the end of this fit."""
        waiting, name = values[growths:], self.argument
        if waiting and waiting[0] <= now:
            raise FusionError(
                f"`{name}={waiting[0]}` has passed: training begins after {now}. Steps and "
                "epochs are counted from the first; choose a later one. If fit() is called "
                "several times, make the callback once and pass it to each."
            )
        if waiting and end is not None and waiting[-1] > end and not self._told:
            self._told = True  # A loop of fits says it once.
            warnings.warn(
                f"`{name}={waiting[-1]}` lies past the end of this fit(), which stops "
                f"after {end}. The model grows in a later fit() with this callback, or "
                "not at all: train longer, or grow earlier.",
                stacklevel=3,
            )


@keras.saving.register_keras_serializable(package="keras_fusion")
class AtStep(_Listed):
    """Grows after given optimizer steps.

    Args:
        steps: int or increasing list of ints, counted from 1: a growth at step s
            happens after step s. Under `steps_per_execution=n` it happens at the end of
            the execution that holds step s. They are the optimizer's, over all calls of
            `fit`.

    Raises:
        FusionError: if `steps` is not made of positive integers; when training begins,
            for steps that have passed. Steps that a `fit` does not reach give a warning.

    Example:

    >>> import keras_fusion
    >>> grow = keras_fusion.DeepFusion(schedule=keras_fusion.AtStep([1000, 5000]))
    """

    argument = "steps"

    @helpful
    def __init__(self, steps: int | list[int]):
        self.steps = positive_integers("steps", steps)

    def check(self, first: Moment, last: Moment | None) -> None:
        """Raises for steps that have passed, warns of those that `fit` does not reach."""
        end = last.step if last else None
        self._check(self.steps, first.growths, first.step, end)

    def is_done(self, growths: int) -> bool:
        """Whether all of the list has been done."""
        return growths >= len(self.steps)

    def should_grow(self, moment: Moment) -> bool:
        """Whether the next step of the list has been done."""
        waiting = self.steps[moment.growths :]
        return bool(waiting) and moment.logs is None and moment.step >= waiting[0]

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {"steps": self.steps}


@keras.saving.register_keras_serializable(package="keras_fusion")
class AfterSteps(GrowthSchedule):
    """Grows once, so many optimizer steps after training with the callback begins.

    For a model that is trained already, whose optimizer has counted steps before.

    Args:
        steps: int, at least 1.

    Raises:
        FusionError: if `steps` is not a positive integer.

    Example:

    >>> import keras_fusion
    >>> grow = keras_fusion.DeepFusion(schedule=keras_fusion.AfterSteps(1))
    """

    @helpful
    def __init__(self, steps: int):
        require(is_integer(steps, 1), "steps", steps, "an integer of at least 1")
        self.steps = int(steps)
        self.reset()

    def reset(self) -> None:
        """Forgets where training began."""
        self._begin = None

    def check(self, first: Moment, last: Moment | None) -> None:
        """Notes where training begins."""
        if self._begin is None:
            self._begin = first.step

    def is_done(self, growths: int) -> bool:
        """Whether it has been done."""
        return growths > 0

    def should_grow(self, moment: Moment) -> bool:
        """Whether the steps have been done."""
        if moment.growths or moment.logs is not None or self._begin is None:
            return False
        return moment.step >= self._begin + self.steps

    def get_state(self) -> dict:
        """Where training began."""
        return {"begin": self._begin}

    def set_state(self, state: dict) -> None:
        """Continues a run that began there."""
        self._begin = state["begin"]

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {"steps": self.steps}


@keras.saving.register_keras_serializable(package="keras_fusion")
class AtEpoch(_Listed):
    """Grows at the end of given epochs, after their validation.

    Args:
        epochs: int or increasing list of ints, counted from 1 as the progress bar does;
            a callback that is passed to several calls of `fit` counts on.

    Raises:
        FusionError: if `epochs` is not made of positive integers; when training begins,
            for epochs that have passed. Those that a `fit` does not reach, or that are its
            last, give a warning.

    Example:

    >>> import keras_fusion
    >>> grow = keras_fusion.DeepFusion(schedule=keras_fusion.AtEpoch(3))
    """

    argument = "epochs"

    @helpful
    def __init__(self, epochs: int | list[int]):
        self.epochs = positive_integers("epochs", epochs)

    def check(self, first: Moment, last: Moment | None) -> None:
        """Raises for epochs that have passed, warns of those that `fit` does not reach."""
        end = last.epoch if last else None
        self._check(self.epochs, first.growths, first.epoch, end)
        if self.epochs[first.growths :] and self.epochs[-1] == end:
            warnings.warn(
                f"`{self.argument}={end}` is the end of this fit(): the model grows there, "
                "and is not trained afterwards, unless in a later fit(). Train longer, or "
                "grow earlier.",
                stacklevel=2,
            )

    def is_done(self, growths: int) -> bool:
        """Whether all of the list has been done."""
        return growths >= len(self.epochs)

    def should_grow(self, moment: Moment) -> bool:
        """Whether the next epoch of the list has been done."""
        waiting = self.epochs[moment.growths :]
        return bool(waiting) and moment.logs is not None and moment.epoch >= waiting[0]

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {"epochs": self.epochs}


@keras.saving.register_keras_serializable(package="keras_fusion")
class OnPlateau(GrowthSchedule):
    """Grows when a monitored value has stopped improving.

    Args:
        monitor: string. Name of the value in the epoch's logs.
        patience: int. Epochs without improvement after which to grow.
        min_delta: float. Smallest change that counts as an improvement.
        mode: `"min"` or `"max"`: which way is better.
        max_growths: int. How often to grow in all.

    Raises:
        FusionError: if `mode`, `patience` or `max_growths` is none of these; in training,
            if the logs have no value named `monitor`.

    Example:

    >>> import keras_fusion
    >>> schedule = keras_fusion.OnPlateau("val_loss", patience=3, min_delta=0.01)
    >>> grow = keras_fusion.DeepFusion(schedule=schedule)
    """

    @helpful
    def __init__(
        self,
        monitor: str = "val_loss",
        patience: int = 1,
        min_delta: float = 0.0,
        mode: str = "min",
        max_growths: int = 1,
    ):
        is_name = isinstance(monitor, str) and bool(monitor)
        require(is_name, "monitor", monitor, "the name of a value in the epoch's logs")
        positive = "an integer of at least 1"
        require(is_integer(patience, 1), "patience", patience, positive)
        delta = "a finite number of at least 0"
        fits = is_number(min_delta) and min_delta >= 0
        require(fits, "min_delta", min_delta, delta)
        require(mode in ("min", "max"), "mode", mode, "'min' or 'max'")
        require(is_integer(max_growths, 1), "max_growths", max_growths, positive)
        self.monitor = monitor
        self.patience = patience
        self.min_delta = min_delta
        self.mode = mode
        self.max_growths = max_growths
        self.reset()

    def reset(self) -> None:
        """Forgets the values seen so far."""
        self._best, self._waited = math.inf, 0

    def get_state(self) -> dict:
        """The best value and the epochs since."""
        best = None if math.isinf(self._best) else self._best
        return {"best": best, "waited": self._waited}

    def set_state(self, state: dict) -> None:
        """Continues from what `get_state` returned."""
        best, self._waited = state["best"], state["waited"]
        self._best = math.inf if best is None else best

    def is_done(self, growths: int) -> bool:
        """Whether it has grown `max_growths` times."""
        return growths >= self.max_growths

    def should_grow(self, moment: Moment) -> bool:
        """Whether the value has been flat for `patience` epochs."""
        if moment.logs is None or self.is_done(moment.growths):
            return False
        value = monitored(moment.logs, self.monitor)
        if value is None:
            return False
        value *= 1 if self.mode == "min" else -1
        if value < self._best - self.min_delta:
            self._best, self._waited = value, 0
            return False
        self._waited += 1
        if self._waited >= self.patience:
            self.reset()
            return True
        return False

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {
            "monitor": self.monitor,
            "patience": self.patience,
            "min_delta": self.min_delta,
            "mode": self.mode,
            "max_growths": self.max_growths,
        }
