"""Counts the FLOPs of a run and evaluates the model at equal distances in FLOPs."""

import dataclasses
from collections.abc import Callable, Collection, Iterable
from typing import Any

import keras


@dataclasses.dataclass(frozen=True)
class Point:
    """One evaluation.

    Attributes:
        step: int. Optimizer steps of this run so far.
        flops: int. Training FLOPs of this run so far.
        parameters: int. Of the model at this moment.
        loss: float. Validation loss, in nats per token.
        accuracy: float. The share of the validation tokens predicted right; `None` if
            the model was compiled without this metric.
    """

    step: int
    flops: int
    parameters: int
    loss: float
    accuracy: float | None = None


class FlopsMeter(keras.callbacks.Callback):
    """Counts the training FLOPs of a run and evaluates the model along the way.

    The model is evaluated whenever a multiple of `interval` is passed, right after a
    growth, and at the end. The FLOPs of evaluations do not count.

    Put it before the callback that grows the model: the step that precedes a growth
    is then counted with the model that did it.

    Args:
        cost: function from the model to the FLOPs of one of its training steps, such as
            `keras_fusion.flops.training_step_flops` with a batch. It is called when
            training begins and after each growth.
        validation: dataset to evaluate on.
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
        cost: Callable[[keras.Model], int],
        validation: Iterable,
        interval: int,
        at_steps: Collection[int] = (),
    ):
        super().__init__()
        self.cost = cost
        self.validation = validation
        self.interval = max(interval, 1)
        self.at_steps = at_steps
        self.flops = 0
        self.step = 0
        self.points = []
        self._parameters = None
        self._step_flops = 0

    def on_train_batch_begin(self, batch, logs=None):
        """Counts the FLOPs of a step again if the model has grown."""
        model: Any = self.model
        parameters = model.count_params()
        if parameters == self._parameters:
            return
        self._step_flops = self.cost(model)
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
        last = self.points[-1] if self.points else None
        model: Any = self.model
        now = self.step, model.count_params()
        if last is None or (last.step, last.parameters) != now:
            self._evaluate()

    def _evaluate(self):
        model: Any = self.model
        results = model.evaluate(self.validation, verbose=0, return_dict=True)
        self.points.append(
            Point(
                self.step,
                self.flops,
                model.count_params(),
                float(results["loss"]),
                results.get("accuracy"),
            )
        )
