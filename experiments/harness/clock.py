"""When things happen in a run, and what has been spent by then."""

import dataclasses
from collections.abc import Callable

from experiments.harness.study import Course, Size


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stretch at one size.

    Attributes:
        size: `Size`.
        cost: int. FLOPs of a step.
        begin: int. The step at which it begins.
        spent: int. The FLOPs spent by then, all parents' included.
        own: int. Those of the live model alone, and of what it has become.
        time: float. What the budget's clock shows: FLOPs or steps.
    """

    size: Size
    cost: int
    begin: int = 0
    spent: int = 0
    own: int = 0
    time: float = 0.0


@dataclasses.dataclass(frozen=True)
class Branch:
    """The end of a run: from `begin` on its rate falls to zero at `end`.

    Attributes:
        budget: float. The share of the budget at its end.
        begin: int. A step.
        end: int. A step.
    """

    budget: float
    begin: int
    end: int


class Clock:
    """The phases and the ends of a course.

    Args:
        course: `Course`.
        steps: int. Of the budget's run from scratch.
        cost: function from a `Size` to the FLOPs of a step.

    Attributes:
        budget: int. The FLOPs of the run from scratch.
        phases: list of `Phase`, the first one of a parent.
        branches: list of `Branch`, one for each budget that is not spent when the last
            growth comes.
    """

    def __init__(self, course: Course, steps: int, cost: Callable[[Size], int]):
        self.course = course
        self._in_flops = course.budget.clock == "flops"
        self.budget = steps * cost(course.budget.size)
        self._length = self.budget if self._in_flops else steps
        self.phases = self._phases(cost)
        self.branches = list(self._branches())

    def _phases(self, cost):
        course, found = self.course, [Phase(self.course.size, cost(self.course.size))]
        for growth in course.growths:
            last, many = found[-1], growth.parents
            # FLOPs that count are those of all parents, who have equal parts of them.
            shared = many if self._in_flops and course.parents == "counted" else 1
            left = growth.at * self._length / shared - last.time
            steps = max(round(left / self._pace(last)), 1)
            found.append(
                Phase(
                    growth.to,
                    cost(growth.to),
                    last.begin + steps,
                    many * (last.spent + steps * last.cost),
                    last.own + steps * last.cost,
                    shared * (last.time + steps * self._pace(last)),
                )
            )
        if course.parents == "free":
            found[-1] = dataclasses.replace(found[-1], time=0.0)
        return found

    def _pace(self, phase):
        """How far the clock goes in a step."""
        return phase.cost if self._in_flops else 1

    def _branches(self):
        last = self.phases[-1]
        for budget in sorted(self.course.budgets):
            end = self._step_at(budget)
            if end > last.begin:
                stay = (1 - self.course.model.decay) * budget
                yield Branch(budget, max(self._step_at(stay), last.begin), end)

    def _step_at(self, share):
        """The step of the last phase at which a share of the budget is spent."""
        last = self.phases[-1]
        return last.begin + round((share * self._length - last.time) / self._pace(last))

    def spent(self, step: int) -> float:
        """What is spent by a step, as a share of the run from scratch's FLOPs."""
        phase = [p for p in self.phases if p.begin <= step][-1]
        return (phase.spent + (step - phase.begin) * phase.cost) / self.budget
