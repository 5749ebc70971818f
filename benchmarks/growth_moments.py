"""When to grow, and with which rate: a sweep, and what foretells its outcome.

python benchmarks/growth_moments.py           # trains what is missing, then writes
python benchmarks/growth_moments.py --write   # only writes docs/growth_moments.*

A small model (growth_tasks.py) is trained at a constant rate. From each of several moments
it is fused with itself and trained on, with several rates, to the same FLOPs in all. Each
run is written to benchmarks/results when it is done, and not done again. Some twenty
minutes a task on two cores; the others are `--task decoder` and `--task t5`.
"""

import argparse
import itertools
import json
import pathlib
import time

import growth_moments_report
import growth_tasks
import keras
import numpy as np

import keras_fusion
from keras_fusion.demo.training import Trapezoid, compiled
from keras_fusion.dynamics import Bracket, LossCurve, WhenItPays, propose, rate_factor
from keras_fusion.flops import training_step_flops

ROOT = pathlib.Path(__file__).parents[1]
MOMENTS = (0.05, 0.1, 0.2, 0.45, 0.6, 0.75)  # shares of the budget
PLANNED_FACTOR = 0.5  # on the small model's rate
RATE = 3e-3  # of the small model, and of the big one from scratch
FALL = 0.8  # share of the budget from which on the rate falls
POINTS = 30  # evaluations of the small model's curve
SEED = 0


class Study:
    """The runs of one task, and what is known of them so far."""

    def __init__(self, name):
        self.task = growth_tasks.TASKS[name]()
        self.path = results_path(name)
        self.batch = next(iter(self.task.batches(SEED)))
        self.small_cost, self.big_cost = self._cost(False), self._cost(True)
        self.budget = self.task.wide_steps * self.big_cost
        found = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.results = {"small": [], "scratch": [], "bracket": {}, "runs": {}} | found
        self.results |= {
            "rate": RATE,
            "factors": self.task.factors,
            "curve_from": 2 * self.task.warmup_steps,
            "wide_steps": self.task.wide_steps,
            "budget": self.budget,
            "small_cost": self.small_cost,
            "big_cost": self.big_cost,
        }
        self.states = {}

    def _cost(self, wide):
        return training_step_flops(compiled(self.task.build(wide, 0), RATE), self.batch)

    def save(self):
        """Writes what is known."""
        self.path.parent.mkdir(exist_ok=True)
        self.path.write_text(json.dumps(self.results, indent=1) + "\n")

    def step_at(self, share):
        """The small model's step at which a share of the budget is spent."""
        return round(share * self.budget / self.small_cost)

    def train_small(self, steps):
        """Trains the small model and keeps its state after the given steps."""
        steps = [s for s in steps if s not in self.states]
        if not steps:
            return
        every = self.step_at(max(MOMENTS)) // POINTS
        model = compiled(self.task.build(False, SEED), self._rate(0, 10**9))
        watch = _Keeper(self.states, set(steps), every, self._evaluate)
        self._fit(model, max(steps), 0, [watch])
        if len(watch.points) > len(self.results["small"]):
            self.results["small"] = watch.points
            self.save()

    def train_scratch(self):
        """Trains the big model from the start."""
        if self.results["scratch"]:
            return
        total = self.task.wide_steps
        rate = self._rate(round(FALL * total), total)
        model = compiled(self.task.build(True, SEED), rate)
        watch = _Keeper({}, set(), total // 25, self._evaluate)
        self._fit(model, total, 0, [watch])
        self.results["scratch"] = watch.points
        self.save()

    def train_grown(self, step, factor):
        """Grows the small model after a step, and trains on to the end of the budget."""
        name = f"{step} x{factor}"
        if name in self.results["runs"]:
            return self.results["runs"][name]
        # A growth in the time of the falling rate begins before the fall.
        begin = min(step, self.step_at(FALL))
        self.train_small([begin])
        # Growth happens inside fit, after one more step of the small model.
        small = (step + 1) * self.small_cost
        total = step + 1 + round(max(self.budget - small, 0) / self.big_cost)
        fall = step + 1 + round((FALL * self.budget - small) / self.big_cost)
        rate = self._rate(max(fall, begin), total)
        model = compiled(self.task.build(False, SEED), rate)
        model.optimizer.build(model.trainable_variables)
        _put(model, self.states[begin])
        grow = keras_fusion.DeepFusion(
            at_step=step + 1,
            learning_rate_factor=factor,
            off_diagonal_scale=0.1,
            seed=SEED,
        )
        if str(step) not in self.results["bracket"]:
            grow.watchers.append(_BracketMeter(self, step))
        began = time.monotonic()
        self._fit(model, total - begin, begin, [grow])
        loss = self._evaluate(model)
        self.results["runs"][name] = {
            "step": step,
            "factor": factor,
            "grown_steps": total - step - 1,
            "loss": loss,
        }
        self.save()
        print(f"{name}: {loss:.4f} ({time.monotonic() - began:.0f} s)", flush=True)
        return self.results["runs"][name]

    def _rate(self, start, total):
        return Trapezoid(RATE, self.task.warmup_steps, start, total)

    def _fit(self, model, steps, skipped, callbacks):
        data = self.task.batches(SEED).skip(skipped)
        model.fit(
            data, steps_per_epoch=steps, verbose=0, shuffle=False, callbacks=callbacks
        )

    def _evaluate(self, model):
        found = model.evaluate(self.task.validation, verbose=0, return_dict=True)
        return float(found["loss"])


class _Keeper(keras.callbacks.Callback):
    """Keeps the model's state after given steps, and its curve of validation losses."""

    def __init__(self, states, steps, every, evaluate):
        super().__init__()
        self.states, self.steps, self.every = states, steps, every
        self.evaluate, self.points = evaluate, []

    def on_train_batch_end(self, batch, logs=None):
        step = batch + 1
        if step in self.steps:
            self.states[step] = [_numpy(v) for v in _variables(self.model)]
        if step % self.every == 0:
            self.points.append((step, self.evaluate(self.model)))


class _BracketMeter:
    """Measures the fields right after a growth, on eight batches of training text."""

    def __init__(self, study, step):
        self.study, self.step = study, step

    def before_growth(self, growth):
        """Nothing to do."""

    def after_growth(self, growth):
        """Measures, and writes the figures down."""
        batches = list(self.study.task.batches(SEED + 100).take(8))
        batch = keras.tree.map_structure(lambda *parts: np.concatenate(parts), *batches)
        found = {}
        for name, degree in (("gradient", 1), ("sign", 0)):
            speeds = growth.blocks.speeds(degree)
            bracket = Bracket(growth.model, speeds, normalized=degree == 0)
            field = bracket(*batch)
            found[name] = {
                "loss": field.loss,
                "bracket_norm": field.bracket_norm,
                "small_descent": field.small_descent,
                "big_descent": field.big_descent,
                "small_curvature": field.small_curvature,
                "alignment": field.alignment,
                "rate_factor": rate_factor(field, self.step * RATE),
                # Per unit of both times, for the effect at any rates.
                "along_small": _inner(field.bracket, field.of_small),
                "along_big": _inner(field.bracket, field.of_big),
            }
        self.study.results["bracket"][str(self.step)] = found
        self.study.results["parameters_ratio"] = (
            growth.events[-1].params_after / growth.events[-1].params_before
        )
        self.study.save()


def _inner(a, b):
    return float(sum(np.vdot(u, v) for u, v in zip(a, b, strict=True)))


def _numpy(variable):
    return np.array(keras.ops.convert_to_numpy(variable))


def _variables(model):
    return [*model.weights, *model.optimizer.variables]


def _put(model, values):
    for variable, value in zip(_variables(model), values, strict=True):
        variable.assign(value)


def proposal(results):
    """What the planner says with both models' curves known."""
    small = LossCurve.fit(*zip(*_late(results, "small"), strict=True))
    last = FALL * results["wide_steps"]
    constant = [point for point in _late(results, "scratch") if point[0] <= last]
    return propose(
        results["budget"],
        small=small,
        big=LossCurve.fit(*zip(*constant, strict=True)),
        small_cost=results["small_cost"],
        big_cost=results["big_cost"],
    )


def decision(results):
    """The step at which `WhenItPays` grows, from the small model's losses alone."""
    schedule = WhenItPays(
        results["big_cost"] / results["small_cost"],
        parameters_ratio=results["parameters_ratio"],
    )
    for epoch, (step, loss) in enumerate(_late(results, "small")):
        moment = keras_fusion.Moment(step, epoch, 0, {"val_loss": loss})
        if schedule.should_grow(moment):
            return step
    return None


def _late(results, name):
    """A curve behind the warm-up, where the power law begins."""
    return [tuple(p) for p in results[name] if p[0] >= results["curve_from"]]


def results_path(name):
    """Where a task's results are."""
    return ROOT / "benchmarks" / "results" / f"growth_moments_{name}.json"


def main():
    """Trains what is missing and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=growth_tasks.TASKS, default="narrow")
    parser.add_argument("--write", action="store_true", help="train nothing")
    options = parser.parse_args()
    if not options.write:
        run(Study(options.task))
    paths = {name: results_path(name) for name in growth_tasks.TASKS}
    results = {n: json.loads(p.read_text()) for n, p in paths.items() if p.exists()}
    growth_moments_report.write(results, ROOT / "docs")


def run(study):
    """Trains what is missing; first what the planner and the schedule propose."""
    results, steps = study.results, [study.step_at(share) for share in MOMENTS]
    study.train_scratch()
    if len(results["small"]) < POINTS:
        study.train_small(steps)
    if "parameters_ratio" not in results:
        study.train_grown(steps[0], PLANNED_FACTOR)
    chosen = proposal(results)
    results |= {"reason": chosen.reason, "planner": chosen.step}
    results |= {"schedule": decision(results), "moments": steps}
    study.save()
    planned = [results[k] for k in ("planner", "schedule") if results[k]]
    latest = study.step_at(FALL)
    study.train_small([min(step, latest) for step in [*steps, *planned]])
    for step in planned:
        study.train_grown(step, PLANNED_FACTOR)
    for factor, step in itertools.product(study.task.factors, steps):
        study.train_grown(step, factor)


if __name__ == "__main__":
    main()
