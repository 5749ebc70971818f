"""Runs a course: small models, growths, a trunk at constant rate, and annealed branches."""

import time
from pathlib import Path

import keras
import numpy as np

import keras_fusion
from experiments.harness.annealing import annealing
from experiments.harness.clock import Clock
from experiments.harness.initialization import renew_blocks
from experiments.harness.operators import operator_of
from experiments.harness.outcome import final, outcome
from experiments.harness.study import Course, Growth, Size, digest
from experiments.harness.tasks import Task, parameters
from keras_fusion.t5.meter import FlopsMeter
from keras_fusion.t5.rate import WarmupStableDecay
from keras_fusion.t5.snapshot import restore, snapshot
from keras_fusion.t5.store import Entry

POINTS = 25  # of a curve, over the whole budget
NEVER = 1e9  # a step


class Claimed(Exception):
    """Another process trains this small model right now."""


def staying(peak: float, warmup_steps: int) -> WarmupStableDecay:
    """A rate that stays until `fall` lets it fall, for branches off a trunk."""
    ends = (keras.Variable(i * NEVER, trainable=False) for i in (1, 2))
    return WarmupStableDecay(peak, warmup_steps, *ends)


def fall(model: keras.Model, rate: WarmupStableDecay, begin: float, end: float) -> None:
    """Lets a model's rate fall to zero between two steps."""
    rate.decay_from.assign(begin)
    rate.decay_to.assign(end)
    if keras.config.backend() == "jax":  # It has compiled the values before.
        model.make_train_function(force=True)


class Trunk:
    """A small model of one seed at constant rate, which courses grow from.

    Its states are kept in files, so that it is trained once.

    Args:
        task: `Task`.
        folder: `Path` of all trunks.
        size: `Size`.
        rate: float.
        seed: int.
    """

    def __init__(self, task: Task, folder: Path, size: Size, rate: float, seed: int):
        self.task, self.size, self.seed = task, size, seed
        self.rate = staying(rate, task.settings.warmup_steps)
        self.told = size, rate, seed, task.settings, task.tokens.describe()
        self.folder = folder / f"{size}-seed{seed}-{digest(*self.told)}"

    def state(self, step: int, annealed: bool = False) -> list[np.ndarray]:
        """The state after so many steps, trained now if nobody has.

        Args:
            step: int.
            annealed: bool. Whether the rate falls to zero towards it.

        Raises:
            Claimed: if another process is training it.
        """
        entry = self._entry(step, annealed)
        if (stored := entry.load_state()) is None:
            with Entry(self.folder).claimed() as mine:
                if not mine:
                    raise Claimed(str(self.folder))
                self._train(step, annealed)
            stored = entry.load_state()
        return stored[0]

    def model(self, step: int, annealed: bool = False) -> keras.Model:
        """The model after so many steps, with its optimizer."""
        model = self.task.compiled(self.size, self.seed, self.rate)
        restore(model, self.state(step, annealed))
        return model

    def _entry(self, step, annealed=False):
        return Entry(self.folder / f"step-{step:06}{'-annealed' * annealed}")

    def _train(self, step, annealed):
        """Goes on from the last state before, or from the start."""
        stay = round((1 - self.task.settings.decay) * step) if annealed else step
        known = (int(p.parent.name[5:]) for p in self.folder.glob("step-??????/*.npz"))
        begin = max((s for s in known if s <= stay), default=0)
        model = self.task.compiled(self.size, self.seed, self.rate)
        if begin:
            restore(model, self._entry(begin).load_state()[0])
        for last, falls in ((stay, False), (step, True)):
            if falls:
                fall(model, self.rate, stay, step)
            if begin < last:
                fit(model, self.task, self.seed, begin, last)
                self._entry(last, falls).save_state(snapshot(model), {"step": last})
                begin = last


def fit(model, task, seed, begin, end, callbacks=()) -> None:
    """Trains a model from one step to another."""
    model.fit(
        task.batches(seed, begin),
        steps_per_epoch=end - begin,
        verbose=0,
        shuffle=False,  # the batches are shuffled already
        callbacks=list(callbacks),
    )


class Run:
    """The live model of one course, and what it has come to.

    Args:
        course: `Course`.
        task: `Task`.
        folder: `Path` of the trunks.

    Raises:
        ValueError: for a growth that only `together` knows; and for several ends of a
            run whose norms are annealed, since its model is another at each.
    """

    def __init__(self, course: Course, task: Task, folder: Path):
        if any(growth.new_features == "random" for growth in course.growths):
            raise ValueError(
                f"The run {course.setting!r} has new_features='random', which `together` "
                "knows alone. Train the study by that."
            )
        if len(course.budgets) > 1 and any(g.anneal_steps for g in course.growths):
            raise ValueError(f"{course.setting!r} anneals norms: give it one end.")
        self.course, self.task, self.folder = course, task, folder
        self.annealing = []
        self.clock = Clock(course, task.steps(course), task.cost)
        self.rate = staying(course.rate, task.settings.warmup_steps)
        self.model = task.compiled(course.size, course.seed, self.rate)
        self.events, self.curve, self.step = [], [], 0

    def __call__(self) -> dict:
        """Runs the course.

        Returns:
            The result as plain data: the losses of the branches, the curve of the trunk,
            and what was spent.
        """
        began = time.monotonic()
        for number, growth in enumerate(self.course.growths):
            self._grow(growth, self.clock.phases[number + 1].begin, first=not number)
        snapshots = {}
        for begin in sorted({branch.begin for branch in self.clock.branches}):
            self._train(begin)
            snapshots[begin] = snapshot(self.model)
        finals = [self._branch(b, snapshots[b.begin]) for b in self.clock.branches]
        return outcome(
            self.course,
            self.task,
            self.clock,
            events=[event.to_dict() for event in self.events],
            curve=self.curve,
            finals=finals,
            seconds=time.monotonic() - began,
        )

    def _trunk(self, number=0):
        """The small model, or another parent of the first growth."""
        course = self.course
        seed = course.seed + 100 * number
        return Trunk(self.task, self.folder, course.size, course.rate, seed)

    def _grow(self, growth, begin, first):
        """Trains up to a growth, which happens inside `fit`, after one step more."""
        if first:
            self.step = begin - 1
            if self.step:
                restore(self.model, self._trunk().state(self.step, growth.annealed))
            if growth.annealed:
                fall(self.model, self.rate, 0, 0)  # It has fallen.
        callback = keras_fusion.GrowModel(
            self._operator(growth, begin),
            keras_fusion.AtStep(begin),
            verbose=0,
            **growth.training,
        )
        self.annealing += annealing(growth)
        if growth.new_blocks == "random":
            callback.watchers.append(_NewBlocks(self, growth))
        self._train(begin, [callback])
        self.events += callback.events
        if growth.annealed:
            fall(self.model, self.rate, NEVER, 2 * NEVER)

    def _operator(self, growth, begin):
        partners = [
            self._trunk(other).model(begin, growth.annealed)
            for other in range(1, growth.parents)
        ]
        more = {}
        if growth.options.get("norms") == "calibrated":
            more["probe"] = next(iter(self.task.glance))[0]
        return operator_of(growth, self.course.seed, partners, **more)

    def _train(self, end, callbacks=()):
        """Trains the trunk, and adds to its curve."""
        if end > self.step:
            meter = FlopsMeter(
                self._cost, self.task.glance, self.clock.budget // POINTS
            )
            spent = self.clock.spent(self.step)
            fit(
                self.model,
                self.task,
                self.course.seed,
                self.step,
                end,
                [meter, *callbacks, *self.annealing],
            )
            self.curve += [
                [spent + p.flops / self.clock.budget, p.loss] for p in meter.points
            ]
            self.step = end

    def _cost(self, model):
        """The FLOPs of a step, without counting them again."""
        params = parameters(model)
        for phase in self.clock.phases:
            if self.task.parameters(phase.size) == params:
                return phase.cost
        raise ValueError(
            f"{self.course.setting!r} has grown to {params:,} parameters, which is none "
            f"of its sizes {[str(p.size) for p in self.clock.phases]}. Mend `to`, or the "
            "operator's options."
        )

    def _branch(self, branch, values):
        """Lets the rate fall from a state on, and measures the final loss."""
        restore(self.model, values)
        fall(self.model, self.rate, branch.begin, branch.end)
        course = self.model, self.task, self.course.seed, branch.begin, branch.end
        fit(*course, self.annealing)
        found = self.model.evaluate(self.task.validation, verbose=0, return_dict=True)
        return final(self.clock, branch, float(found["loss"]))


class _NewBlocks:
    """A watcher of a growth that gives the blocks which it adds fresh values."""

    def __init__(self, run: Run, growth: Growth):
        self.run, self.growth = run, growth

    def before_growth(self, callback):
        sizes = [phase.size for phase in self.run.clock.phases]
        self._layers = sizes[sizes.index(self.growth.to) - 1].layers

    def after_growth(self, callback):
        fresh = self.run.task.fresh(self.growth.to, self.run.course.seed + 1)
        renew_blocks(callback.model, callback.model.optimizer, fresh, self._layers)
