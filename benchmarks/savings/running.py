"""Runs a course: small model, growths, trunk at constant rate, and a branch a budget."""

import time

import keras

import keras_fusion
from benchmarks.savings import courses
from benchmarks.savings.courses import Course
from benchmarks.savings.rate import Rate
from benchmarks.savings.tasks import Task
from benchmarks.savings.trunks import Trunk, restore, snapshot

POINTS = 25  # of a curve, over the whole budget


class Runner:
    """Runs the courses of a task.

    Args:
        task: `Task`.
        folder: `Path` of the small models' states, which courses share.
    """

    def __init__(self, task: Task, folder):
        self.task, self.folder = task, folder

    def trunk(self, course: Course, number: int = 0) -> Trunk:
        """Where the small model of a course is kept, or that of another parent of it."""
        seed = course.seed + 100 * number
        return Trunk(self.task, self.folder, course.size, course.rate, seed)

    def __call__(self, course: Course) -> dict:
        """Runs a course.

        Args:
            course: `Course`.

        Returns:
            The result as plain data: the losses of the branches, the curve of the trunk,
            and what was spent.
        """
        began = time.monotonic()
        run = _Run(self, course)
        run.train_trunk()
        finals = run.train_branches()
        return {
            "course": course.to_dict(),
            "budget": self.task.budget,
            "costs": {f"{p.size.times}x{p.size.layers}": p.cost for p in run.phases},
            "parents_share": run.phases[-1].spent / self.task.budget,
            "own_share": run.phases[-1].own / self.task.budget,
            "params": run.model.count_params(),
            "events": [event.to_dict() for event in run.events],
            "curve": run.curve,
            "finals": finals,
            "seconds": time.monotonic() - began,
        }


class _Run:
    """The live model of one course, and what it has come to."""

    def __init__(self, runner, course):
        self.runner, self.course, self.task = runner, course, runner.task
        self.phases = courses.phases(course, self.task)
        self.branches = courses.branches(course, self.task)
        self.rate = Rate(course.rate, self.task.warmup_steps)
        self.model = self.task.compiled(
            course.size,
            course.seed,
            self.rate,
            jit_compile=not course.growths and course.size != self.task.full,
        )
        self.events, self.curve, self.snapshots = [], [], {}
        self.step = 0

    def train_trunk(self):
        """Trains at constant rate through all growths, as far as branches need it."""
        if self.course.growths:
            # Growth happens inside fit, after one more step of the small model.
            self.step = self.phases[1].begin - 1
            restore(self.model, self.runner.trunk(self.course).state(self.step))
            self.curve += self.runner.trunk(self.course).curve(self.step)
        for number, growth in enumerate(self.course.growths):
            callback = self._growth(number, growth)
            self._fit(self.phases[number + 1].begin, [callback])
            self.events += callback.events
            self._look()
        for begin in sorted({branch.begin for branch in self.branches}):
            self._fit(begin)
            self.snapshots[begin] = snapshot(self.model)

    def _growth(self, number, growth):
        course, begin = self.course, self.phases[number + 1].begin
        options = dict(growth.options)
        if growth.operator == "fusion":
            options = {"off_diagonal_scale": 0.1} | options  # The default in its time.
        if growth.operator not in courses.UNSEEDED:
            options["seed"] = course.seed
        if growth.parents > 1:
            options["partners"] = [
                self.runner.trunk(course, other).model(begin)
                for other in range(1, growth.parents)
            ]
        if options.get("norms") == "calibrated":
            options["batch"] = next(iter(self.task.glance))[0]
        return keras_fusion.GrowModel(
            courses.OPERATORS[growth.operator](**options),
            keras_fusion.AtStep(begin),
            verbose=0,
            **growth.training,
        )

    def train_branches(self):
        """Lets the rate fall from each branch on, and measures the final losses."""
        finals = []
        for branch in self.branches:
            restore(self.model, self.snapshots[branch.begin])
            self.rate.fall(branch.begin, branch.end)
            self.step = branch.begin
            self._fit(branch.end, watched=False)
            loss = evaluate(self.model, self.task.validation)
            spent = courses.spent_at(self.phases, branch.end) / self.task.budget
            finals.append({"budget": branch.budget, "spent": spent, "loss": loss})
        return finals

    def _fit(self, end, callbacks=(), watched=True):
        """Trains from the present step to another one."""
        if end <= self.step:
            return
        self.model.fit(
            self.task.batches(self.course.seed, self.step),
            steps_per_epoch=end - self.step,
            verbose=0,
            shuffle=False,
            callbacks=[*callbacks, *([_Watch(self)] if watched else [])],
        )
        self.step = end

    def _look(self, step=None):
        """Adds a point to the curve."""
        step = self.step if step is None else step
        spent = courses.spent_at(self.phases, step) / self.task.budget
        self.curve.append([spent, evaluate(self.model, self.task.glance)])


class _Watch(keras.callbacks.Callback):
    """Looks at the validation loss at equal shares of the budget."""

    def __init__(self, run):
        super().__init__()
        self.run, self.begin = run, run.step
        self.done = self._number(run.step)

    def _number(self, step):
        spent = courses.spent_at(self.run.phases, step)
        return int(spent / self.run.task.budget * POINTS)

    def on_train_batch_end(self, batch, logs=None):
        number = self._number(self.begin + batch + 1)
        if number > self.done:
            self.done = number
            self.run._look(self.begin + batch + 1)


def evaluate(model: keras.Model, validation) -> float:
    """The mean loss a token."""
    return float(model.evaluate(validation, verbose=0, return_dict=True)["loss"])
