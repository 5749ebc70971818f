"""The three runs of the demo: a parent, the run that fuses, and the twin."""

import dataclasses
import time
from collections.abc import Callable

import keras
import tensorflow as tf

import keras_fusion
from keras_fusion.analysis.flops import training_step_flops
from keras_fusion.demo.planning import Cost, Plan
from keras_fusion.demo.progress import FlopsMeter, Point, Progress, StepTimer
from keras_fusion.demo.settings import Settings
from keras_fusion.t5.model import Architecture, build


@keras.saving.register_keras_serializable("keras_fusion_demo")
class Trapezoid(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that rises linearly, stays, and falls linearly to zero.

    Args:
        peak: float. The highest rate.
        warmup_steps: int. Steps of the rise.
        decay_from: int. The step at which the fall begins.
        total_steps: int. The step at which it ends.
    """

    def __init__(
        self, peak: float, warmup_steps: int, decay_from: int, total_steps: int
    ):
        self.peak = peak
        self.warmup_steps = warmup_steps
        self.decay_from = decay_from
        self.total_steps = total_steps

    def __call__(self, step):
        """The rate of the update that follows `step` updates."""
        step = keras.ops.cast(step, "float32")
        rise = (step + 1.0) / max(self.warmup_steps, 1)
        fall = (self.total_steps - step) / max(self.total_steps - self.decay_from, 1)
        return self.peak * keras.ops.clip(keras.ops.minimum(rise, fall), 0.0, 1.0)

    def get_config(self):
        """The constructor's arguments."""
        return {
            "peak": self.peak,
            "warmup_steps": self.warmup_steps,
            "decay_from": self.decay_from,
            "total_steps": self.total_steps,
        }


@dataclasses.dataclass(frozen=True)
class Run:
    """What became of one `fit`.

    Attributes:
        title: string.
        points: tuple of `Point`, in the order of the evaluations.
        seconds: float. Wall time, evaluations included.
        growths: tuple of `keras_fusion.GrowthEvent`.
    """

    title: str
    points: tuple[Point, ...]
    seconds: float
    growths: tuple[keras_fusion.GrowthEvent, ...] = ()

    @property
    def final(self) -> Point:
        """The last evaluation."""
        return self.points[-1]

    def to_dict(self) -> dict:
        """The run as plain data."""
        return {
            "title": self.title,
            "seconds": self.seconds,
            "points": [dataclasses.asdict(point) for point in self.points],
            "growths": [event.to_dict() for event in self.growths],
        }


class Trainer:
    """Trains the models of one demo.

    Args:
        settings: `Settings`.
        architecture: `Architecture` of the fused model and of the twin.
        batches: function that takes a seed and returns endless training batches as a
            `tf.data.Dataset`, in an order of their own for each seed.
        validation: `tf.data.Dataset`.
        began: float. `time.monotonic()` at the start of the demo.
    """

    def __init__(
        self,
        settings: Settings,
        architecture: Architecture,
        batches: Callable[[int], tf.data.Dataset],
        validation: tf.data.Dataset,
        *,
        began: float,
    ):
        self.settings = settings
        self.architecture = architecture
        self.batches = batches
        self.validation = validation
        self.began = began
        self.batch = next(iter(batches(0)))

    def costs(self, *, timed: bool) -> tuple[Cost, Cost]:
        """What a step of the wide model costs, and a step of a parent.

        Args:
            timed: bool. Whether to measure the seconds too, on throw-away models;
                otherwise they are 0.
        """
        wide, small = self.architecture, self.architecture.halved()
        return self._cost(wide, timed), self._cost(small, timed)

    def _cost(self, architecture, timed):
        model = compiled(build(architecture, seed=0), self.settings.twin_rate)
        flops = training_step_flops(model, self.batch)
        if not timed:
            return Cost(flops, 0.0)
        timer = StepTimer()
        model.fit(
            self.batches(0),
            steps_per_epoch=15,
            verbose=0,
            shuffle=False,
            callbacks=[timer],
        )
        return Cost(flops, timer.median())

    def parent(self, plan: Plan, *, seed: int, title: str) -> tuple[keras.Model, Run]:
        """Trains one parent.

        Args:
            plan: `Plan`.
            seed: int. Seeds its weights and its data.
            title: string.

        Returns:
            Tuple of the model and its `Run`.
        """
        model = self._half_wide(plan, seed)
        return model, self._fit(model, title, plan, plan.parent_steps, seed)

    def fused(self, plan: Plan, partner: keras.Model, *, seed: int, title: str) -> Run:
        """Trains the other parent, fuses it with its partner inside `fit`, goes on.

        Args:
            plan: `Plan`.
            partner: the model of `parent`.
            seed: int. Seeds the weights, the data and the fusion.
            title: string.

        Returns:
            The `Run`, parent's time included.
        """
        growth = keras_fusion.DeepFusion(
            at_step=plan.parent_steps,
            partners=[partner],
            learning_rate_factor=self.settings.growth_factor,
            rewarmup_steps=self.settings.rewarmup_steps,
            seed=seed,
        )
        model = self._half_wide(plan, seed)
        steps = plan.parent_steps + plan.wide_steps
        return self._fit(model, title, plan, steps, seed, growth)

    def twin(self, plan: Plan, *, seed: int, title: str) -> Run:
        """Trains a model of the fused one's architecture from scratch.

        Args:
            plan: `Plan`.
            seed: int. Seeds its weights and its data.
            title: string.

        Returns:
            The `Run`.
        """
        warmup = self.settings.warmup_steps
        rate = Trapezoid(self.settings.twin_rate, warmup, warmup, plan.twin_steps)
        model = compiled(build(self.architecture, seed=seed), rate)
        return self._fit(model, title, plan, plan.twin_steps, seed)

    def _half_wide(self, plan, seed):
        """A fresh parent. Its rate begins to fall at the growth."""
        rate = Trapezoid(
            self.settings.parent_rate,
            self.settings.warmup_steps,
            plan.parent_steps,
            plan.parent_steps + plan.wide_steps,
        )
        return compiled(build(self.architecture.halved(), seed=seed), rate)

    def _fit(self, model, title, plan, steps, seed, growth=None):
        meter = FlopsMeter(
            self.batch,
            self.validation,
            interval=max(plan.budget // self.settings.evaluations, 1),
            at_steps=[plan.parent_steps] if growth else [],
        )
        callbacks = [meter, Progress(title, meter, self.began)]
        begin = time.monotonic()
        model.fit(
            self.batches(seed),
            steps_per_epoch=steps,
            verbose=0,
            shuffle=False,  # the batches are shuffled already
            callbacks=callbacks + ([growth] if growth else []),
        )
        seconds = time.monotonic() - begin
        events = tuple(growth.events) if growth else ()
        return Run(title, tuple(meter.points), seconds, events)


def compiled(model: keras.Model, learning_rate) -> keras.Model:
    """Compiles a model for span corruption.

    Args:
        model: Keras model whose outputs are logits.
        learning_rate: float or `LearningRateSchedule`.

    Returns:
        The same model.
    """
    model.compile(
        optimizer=keras.optimizers.Adam(learning_rate, global_clipnorm=1.0),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=[keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
    )
    return model
