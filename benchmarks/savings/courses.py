"""What a run does: from which small model, grown when and how, trained to which budgets.

A course is data, and its result is kept under a name made of it. Shares are of the
task's budget, the FLOPs of the run from scratch that is to be matched.
"""

import dataclasses
import hashlib
import json

import keras_fusion
from benchmarks.savings.tasks import Size, Task

DECAY = 0.2  # the last share of every run, over which the rate falls
OPERATORS = {
    "fusion": keras_fusion.FusionOperator,
    "DepthStacking": keras_fusion.DepthStacking,
    "HyperCloning": keras_fusion.HyperCloning,
    "Lemon": keras_fusion.Lemon,
    "Net2Net": keras_fusion.Net2Net,
    "StagedTraining": keras_fusion.StagedTraining,
    "ZeroPadding": keras_fusion.ZeroPadding,
}
UNSEEDED = {"DepthStacking", "ZeroPadding"}


@dataclasses.dataclass(frozen=True)
class Growth:
    """One growth of a course.

    Args:
        to: `Size` after it.
        at: float. The share of the budget that is spent before it, parents included.
        operator: string, a key of `OPERATORS`.
        options: dict for the operator.
        parents: int. How many distinct models are fused. Defaults to 1.
        training: dict of arguments of `GrowModel`, such as `learning_rate_factor`.
    """

    to: Size
    at: float
    operator: str = "fusion"
    options: dict = dataclasses.field(default_factory=dict)
    parents: int = 1
    training: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Course:
    """A run.

    Args:
        setting: string. What is tried, in words; the same for all seeds.
        task: string, a key of `TASKS`.
        size: `Size` at the start.
        rate: float. The constant learning rate at the start.
        growths: tuple of `Growth`.
        budgets: tuple of floats. Shares at which a branch with falling rate ends.
        seed: int. Of weights, data and growths.
    """

    setting: str
    task: str
    size: Size
    rate: float
    growths: tuple[Growth, ...] = ()
    budgets: tuple[float, ...] = (1.0,)
    seed: int = 0

    def to_dict(self) -> dict:
        """The course as plain data."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @property
    def name(self) -> str:
        """A file's name of its own."""
        told = json.dumps(self.to_dict(), sort_keys=True)
        digest = hashlib.sha256(told.encode()).hexdigest()[:8]
        words = "".join(c if c.isalnum() or c == "." else "-" for c in self.setting)
        return f"{words}-seed{self.seed}-{digest}"


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stretch at one size.

    Attributes:
        size: `Size`.
        cost: int. FLOPs of a step.
        begin: int. The step at which it begins.
        spent: int. The FLOPs spent by then, all parents' included.
        own: int. Those of the live model alone, and of what it has become.
    """

    size: Size
    cost: int
    begin: int
    spent: int
    own: int


def phases(course: Course, task: Task) -> list[Phase]:
    """The stretches of a course, the first one of a parent."""
    found = [Phase(course.size, task.cost(course.size), 0, 0, 0)]
    for growth in course.growths:
        last = found[-1]
        # The share is that of all parents, and each has an equal part of it.
        flops = growth.at * task.budget / growth.parents - last.spent
        steps = max(round(flops / last.cost), 1)
        spent = growth.parents * (last.spent + steps * last.cost)
        own = last.own + steps * last.cost
        cost = task.cost(growth.to)
        found.append(Phase(growth.to, cost, last.begin + steps, spent, own))
    return found


def step_at(found: list[Phase], flops: float) -> int:
    """The step at which so many FLOPs are spent."""
    phase = [p for p in found if p.spent <= flops][-1]
    return phase.begin + round((flops - phase.spent) / phase.cost)


def spent_at(found: list[Phase], step: int) -> int:
    """The FLOPs spent by a step."""
    phase = [p for p in found if p.begin <= step][-1]
    return phase.spent + (step - phase.begin) * phase.cost


@dataclasses.dataclass(frozen=True)
class Branch:
    """The end of a run: from `begin` on its rate falls to zero at `end`.

    Attributes:
        budget: float, the share that it spends.
        begin: int, a step.
        end: int, a step.
    """

    budget: float
    begin: int
    end: int


def branches(course: Course, task: Task) -> list[Branch]:
    """The ends of a course, for each of its budgets; growths come before the fall.

    A budget that is spent when the last growth comes has no end.
    """
    found = phases(course, task)
    ends = []
    for budget in sorted(course.budgets):
        if step_at(found, budget * task.budget) <= found[-1].begin and course.growths:
            continue
        fall = (1 - DECAY) * budget * task.budget
        begin = step_at(found, max(fall, found[-1].spent))
        ends.append(Branch(budget, begin, step_at(found, budget * task.budget)))
    return ends
