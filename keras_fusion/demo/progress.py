"""Callbacks that count FLOPs, evaluate at equal distances in FLOPs, and report."""

import dataclasses
import itertools
import statistics
import time
from collections.abc import Collection

import keras
import tensorflow as tf

from keras_fusion.analysis.flops import training_step_flops


@dataclasses.dataclass(frozen=True)
class Point:
    """One evaluation.

    Attributes:
        step: int. Optimizer steps of this run so far.
        flops: int. Training FLOPs of this run so far.
        parameters: int. Of the model at this moment.
        loss: float. Validation loss, in nats a token.
        accuracy: float. The share of the validation tokens predicted right.
    """

    step: int
    flops: int
    parameters: int
    loss: float
    accuracy: float


class FlopsMeter(keras.callbacks.Callback):
    """Counts the training FLOPs of a run and evaluates the model along the way.

    The model is evaluated whenever a multiple of `interval` is passed, right after a
    growth, and at the end. The FLOPs of evaluations do not count.

    Put it before the callback that grows the model: the step that precedes a growth
    is then counted with the model that did it.

    Args:
        batch: tuple of tensors. A batch of the training data, whose shapes count.
        validation: `tf.data.Dataset`.
        interval: int. FLOPs from one evaluation to the next.
        at_steps: collection of ints. Steps after which to evaluate as well, such as
            the growth step. Defaults to none.

    Attributes:
        flops: int. The FLOPs so far.
        step: int. The optimizer steps so far.
        points: list of `Point`.
    """

    def __init__(
        self,
        batch: tuple,
        validation: tf.data.Dataset,
        interval: int,
        at_steps: Collection[int] = (),
    ):
        super().__init__()
        self.batch = batch
        self.validation = validation
        self.interval = interval
        self.at_steps = at_steps
        self.flops = 0
        self.step = 0
        self.points = []
        self._parameters = None
        self._step_flops = 0

    def on_train_batch_begin(self, batch, logs=None):
        """Counts the FLOPs of a step anew if the model has grown."""
        parameters = self.model.count_params()
        if parameters == self._parameters:
            return
        self._step_flops = training_step_flops(self.model, self.batch)
        if self._parameters is not None:
            self._evaluate()
        self._parameters = parameters

    def on_train_batch_end(self, batch, logs=None):
        """Counts the step and evaluates if it is time."""
        intervals = self.flops // self.interval
        self.flops += self._step_flops
        self.step += 1
        if self.flops // self.interval > intervals or self.step in self.at_steps:
            self._evaluate()

    def on_train_end(self, logs=None):
        """Evaluates the trained model."""
        if not self.points or self.points[-1].step != self.step:
            self._evaluate()

    def _evaluate(self):
        results = self.model.evaluate(self.validation, verbose=0, return_dict=True)
        self.points.append(
            Point(
                step=self.step,
                flops=self.flops,
                parameters=self.model.count_params(),
                loss=results["loss"],
                accuracy=results["accuracy"],
            )
        )


class Progress(keras.callbacks.Callback):
    """Prints a line every few seconds.

    Args:
        title: string. The name of the run.
        meter: `FlopsMeter` of the run.
        began: float. `time.monotonic()` at the start of the demo.
        seconds: float. Time from one line to the next. Defaults to 5.
    """

    def __init__(
        self, title: str, meter: FlopsMeter, began: float, seconds: float = 5.0
    ):
        super().__init__()
        self.title = title
        self.meter = meter
        self.began = began
        self.seconds = seconds
        self._printed = float("-inf")

    def on_train_batch_end(self, batch, logs=None):
        """Prints if it is time, and at the last step."""
        last = self.meter.step == self.params["steps"]
        if last or time.monotonic() - self._printed >= self.seconds:
            self._printed = time.monotonic()
            print(self._line(logs["loss"]), flush=True)

    def _line(self, loss):
        validation = ""
        if self.meter.points:
            validation = f"  validation {self.meter.points[-1].loss:.3f}"
        return (
            f"{clock(time.monotonic() - self.began)}  {self.title:<22}"
            f"step {self.meter.step:>5}/{self.params['steps']}  "
            f"{self.meter.flops / 1e12:6.3f} TFLOPs  loss {loss:.3f}{validation}"
        )


class StepTimer(keras.callbacks.Callback):
    """Measures the seconds of each training step."""

    def __init__(self):
        super().__init__()
        self._ends = []

    def on_train_batch_end(self, batch, logs=None):
        """Notes the time."""
        self._ends.append(time.perf_counter())

    def median(self) -> float:
        """The median; the first step, which builds the graph, does not count."""
        return statistics.median(b - a for a, b in itertools.pairwise(self._ends))


def clock(seconds: float) -> str:
    """Writes a duration as minutes and seconds, such as `3:07`."""
    return f"{int(seconds) // 60:>2}:{int(seconds) % 60:02}"
