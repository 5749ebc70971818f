"""The runs of the demo: a parent, the run that fuses, the small model, and the twin."""

import dataclasses
import statistics
import time
from typing import Any

import keras
import tqdm

import keras_fusion
from keras_fusion.demo.planning import Cost, Plan
from keras_fusion.demo.settings import Settings
from keras_fusion.models.flops import training_step_flops
from keras_fusion.t5.data import PretrainingData
from keras_fusion.t5.meter import FlopsMeter, Point
from keras_fusion.t5.model import Architecture, build
from keras_fusion.t5.rate import WarmupStableDecay

TIMED_STEPS = 12


@dataclasses.dataclass(frozen=True)
class Run:
    """The outcome of one `fit`.

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
        data: `PretrainingData`.
    """

    def __init__(self, settings: Settings, data: PretrainingData):
        self.settings, self.data = settings, data
        self.wide = settings.architecture(data.vocabulary.size)
        self.batch = data.batches(0)(0)

    def cost(self, architecture: Architecture, *, timed: bool) -> Cost:
        """The cost of a training step.

        Args:
            architecture: `Architecture` of the model.
            timed: bool. Whether to measure the seconds too, on a throw-away model;
                otherwise they are 0.
        """
        model = compiled(build(architecture, seed=0), self.settings.twin_rate)
        flops = training_step_flops(model, self.batch)
        if not timed:
            return Cost(flops, 0.0)
        model.train_on_batch(*self.batch)  # builds the graph
        seconds = []
        for _ in range(TIMED_STEPS):
            began = time.perf_counter()
            model.train_on_batch(*self.batch)
            seconds.append(time.perf_counter() - began)
        return Cost(flops, statistics.median(seconds))

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

    def fused(
        self, plan: Plan, partner: keras.Model, *, seed: int, title: str
    ) -> tuple[Run, Point]:
        """Trains the other parent, fuses it with its partner inside `fit`, goes on.

        Args:
            plan: `Plan`.
            partner: the model of `parent`.
            seed: int. Seeds the weights, the data and the fusion.
            title: string.

        Returns:
            Tuple of the `Run`, the parent's part included, and a `Point` of the mean of
            both parents' logits.
        """
        partner_weights = partner.get_weights()  # A growth may free the partner's.
        growth = keras_fusion.DeepFusion(
            at_step=plan.parent_steps,
            partners=[partner],
            learning_rate_factor=self.settings.growth_factor,
            rewarmup_steps=self.settings.rewarmup_steps,
            seed=seed,
        )
        model = self._half_wide(plan, seed)
        steps = plan.parent_steps + plan.wide_steps
        kept = WeightsAt(plan.parent_steps)
        run = self._fit(model, title, plan, steps, seed, growth, kept)
        flops = next(p.flops for p in run.points if p.step == plan.parent_steps)
        return run, self._ensemble(plan, [kept.weights, partner_weights], flops)

    def _ensemble(self, plan, weights, flops):
        """The mean of the logits of small models, each trained for so many FLOPs."""
        members = [build(self.wide.halved(), seed=0) for _ in weights]
        for i, (member, values) in enumerate(zip(members, weights, strict=True)):
            member.set_weights(values)
            member.name = f"member_{i}"
        inputs = members[0].input
        logits = keras.layers.Average()([member(inputs) for member in members])
        mean = keras.Model(inputs, logits)
        model: Any = compiled(mean, self.settings.parent_rate)
        found = model.evaluate(self.data.validation, verbose=0, return_dict=True)
        return Point(
            plan.parent_steps,
            len(weights) * flops,
            model.count_params(),
            float(found["loss"]),
            found["accuracy"],
        )

    def small(self, plan: Plan, *, seed: int, title: str) -> Run:
        """Trains a model like a parent with all FLOPs, on the twin's course of the rate.

        Args:
            plan: `Plan`.
            seed: int. Seeds its weights and its data.
            title: string.

        Returns:
            The `Run`.
        """
        peak, warmup = self.settings.parent_rate, self.settings.parent_warmup_steps
        rate = WarmupStableDecay(peak, warmup, warmup, plan.small_steps)
        return self._alone(self.wide.halved(), rate, plan, seed, title)

    def twin(self, plan: Plan, *, seed: int, title: str) -> Run:
        """Trains a model of the fused one's architecture from scratch.

        Args:
            plan: `Plan`.
            seed: int. Seeds its weights and its data.
            title: string.

        Returns:
            The `Run`.
        """
        peak, warmup = self.settings.twin_rate, self.settings.warmup_steps
        rate = WarmupStableDecay(peak, warmup, warmup, plan.twin_steps)
        return self._alone(self.wide, rate, plan, seed, title)

    def _alone(self, architecture, rate, plan, seed, title):
        """A model without any growth, until its rate has fallen."""
        model = compiled(build(architecture, seed=seed), rate)
        return self._fit(model, title, plan, rate.decay_to, seed)

    def _half_wide(self, plan, seed):
        """A fresh parent. Its rate begins to fall at the growth."""
        rate = WarmupStableDecay(
            self.settings.parent_rate,
            self.settings.parent_warmup_steps,
            decay_from=plan.parent_steps,
            decay_to=plan.parent_steps + plan.wide_steps,
        )
        return compiled(build(self.wide.halved(), seed=seed), rate)

    def _fit(self, model, title, plan, steps, seed, growth=None, kept=None):
        meter = FlopsMeter(
            lambda model: training_step_flops(model, self.batch),
            self.data.validation,
            interval=plan.budget // self.settings.evaluations,
            at_steps=[plan.parent_steps] if growth else [],
        )
        begin = time.monotonic()
        model.fit(
            self.data.batches(seed).dataset(),
            steps_per_epoch=steps,
            verbose=0,
            shuffle=False,  # the batches are shuffled already
            callbacks=[meter, Bar(title, meter), *filter(None, [kept, growth])],
        )
        seconds = time.monotonic() - begin
        events = tuple(growth.events) if growth else ()
        return Run(title, tuple(meter.points), seconds, events)


class WeightsAt(keras.callbacks.Callback):
    """Keeps the weights that a model has after a step.

    Put it before the callback that grows the model.

    Args:
        step: int. After how many steps of the run.

    Attributes:
        weights: list of arrays.
    """

    def __init__(self, step: int):
        super().__init__()
        self.step, self.weights, self._done = step, [], 0

    def on_train_batch_end(self, batch, logs=None):
        """Copies them when it is time."""
        self._done += 1
        if self._done == self.step:
            model: Any = self.model
            self.weights = model.get_weights()


class Bar(keras.callbacks.Callback):
    """Shows how far a run is, with its FLOPs and losses.

    Args:
        title: string. The name of the run.
        meter: `FlopsMeter` of the run.
    """

    def __init__(self, title: str, meter: FlopsMeter):
        super().__init__()
        self.title, self.meter = title, meter

    def on_train_begin(self, logs=None):
        """Begins the bar."""
        self._bar = tqdm.tqdm(
            desc=f"{self.title:<18}",
            total=(self.params or {}).get("steps"),
            unit="step",
        )

    def on_train_batch_end(self, batch, logs=None):
        """Moves it by a step."""
        told = {"TFLOP": self.meter.flops / 1e12, "loss": (logs or {}).get("loss")}
        if self.meter.points:
            told["validation"] = self.meter.points[-1].loss
        self._bar.set_postfix(told, refresh=False)
        self._bar.update()

    def on_train_end(self, logs=None):
        """Leaves the last state on the screen."""
        self._bar.close()


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
