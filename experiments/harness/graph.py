"""What has to be done for the courses of a study, where all that they share is done once.

Initial values, stretches of steps, growths and final losses, each when what it needs is
there.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras

from experiments.harness.clock import Clock
from experiments.harness.study import Course, Model, Size
from experiments.harness.tasks import Task

ALONE = ("weight_decay", "beta_2")  # settings of an optimizer that each training has


def alone(model: Model) -> dict[str, float]:
    """What each training has for itself.

    Args:
        model: `study.Model`.

    Raises:
        ValueError: if it is no decoder, or its optimizer has no such settings.
    """
    options = dict(model.optimizer)
    optimizer = getattr(keras.optimizers, options.pop("name"))(**options)
    found = {name: getattr(optimizer, name, None) for name in ALONE}
    if model.kind != "decoder" or None in found.values():
        raise ValueError(
            f"Decoders whose optimizer has {ALONE} train together, such as AdamW. "
            f"Received: {model.kind!r}, {model.optimizer}. `run` trains any, one by one."
        )
    return found


@dataclasses.dataclass(eq=False)
class Node:
    """Something to do once.

    Attributes:
        kind: string: `"fresh"`, `"train"` or `"grow"`.
        size: `Size` of the state that comes out.
        needs: list of nodes.
        arguments: what it takes besides.
        validated: bool. Whether the final loss is wanted.
        priority: int. The least of the courses that want it.
    """

    kind: str
    size: Size
    needs: list["Node"]
    arguments: dict
    validated: bool = False
    priority: int = 10**9
    state: Any = None
    loss: float | None = None
    losses: list = dataclasses.field(default_factory=list)
    told: dict = dataclasses.field(default_factory=dict)
    wanted_by: list["Node"] = dataclasses.field(default_factory=list)
    done: bool = False


class Line:
    """A training at constant rate that courses share: where it begins, and its stops.

    Args:
        key: tuple that only this one has.
        task: `Task`, with the data.
        size: `Size`.
        settings: dict with rate and `ALONE`.
        seed: int. Of the data.
        begin: int. Its first step.
    """

    def __init__(self, key, task, size, settings, seed, begin):
        self.key, self.task, self.size, self.settings = key, task, size, settings
        self.seed, self.begin = seed, begin
        self.stops: set[int] = set()
        self.origin: Node | None = None


class Graph:
    """What has to be done for some courses.

    Args:
        courses: list of `Course`.
        task_of: function from a `Course` to its `Task`.
    """

    def __init__(self, courses: list[Course], task_of: Callable[[Course], Task]):
        self.nodes: dict[tuple, Node] = {}
        self.ends: dict[int, list[Node]] = {}
        self.paths: dict[int, list[Node]] = {}
        self.grown: dict[int, list[Node]] = {}
        self._lines: dict[tuple, Line] = {}
        self._task_of = task_of
        self.clocks = [Clock(c, task_of(c).steps(c), task_of(c).cost) for c in courses]
        for collect in (True, False):  # All stops must be known before the stretches.
            for number, course in enumerate(courses):
                self._course(number, course, collect)

    def _course(self, number, course, collect):
        clock, task = self.clocks[number], self._task_of(course)
        line, path = self._first(course, 0, task), []
        grown = []
        for index, growth in enumerate(course.growths):
            begin = clock.phases[index + 1].begin
            others = [
                self._first(course, other, task) for other in range(1, growth.parents)
            ]
            stay = begin
            if growth.annealed:
                stay = max(round((1 - course.model.decay) * begin), line.begin)
            parents = [line, *others]
            for parent in parents:
                parent.stops.add(stay)
            key = (*line.key, begin, repr(growth), *(o.key for o in others))
            rate = growth.training.get("learning_rate_factor", 1.0)
            settings = line.settings | {"rate": line.settings["rate"] * rate}
            new = self._line(key, task, growth.to, settings, course.seed, begin)
            if not collect:
                states = [
                    self._fall(parent, stay, begin, number)
                    if growth.annealed
                    else self._state(parent, stay, number)
                    for parent in parents
                ]
                path += self._stretches(line, stay, number)
                arguments = {
                    "vocabulary": task.tokens.vocabulary.size,
                    "settings": task.settings,
                    "course": course,
                    "number": index,
                }
                node = self._node(
                    ("grow", key), "grow", growth.to, states, arguments, number
                )
                for one in (*states, node):
                    one.validated = True
                new.origin = node
                grown.append(node)
            line = new
        ends = []
        for branch in clock.branches:
            line.stops.add(branch.begin)
            if not collect:
                end = self._fall(line, branch.begin, branch.end, number)
                end.validated = True
                ends.append(end)
        if not collect:
            path += self._stretches(line, clock.branches[-1].begin, number)
            self.ends[number], self.paths[number] = ends, path
            self.grown[number] = grown

    def _first(self, course, other, task):
        """The line of a small model, or of another parent."""
        seed = course.seed + 100 * other
        settings = {"rate": course.rate, **alone(course.model)}
        key = ("line", id(task), str(course.size), seed, *settings.values())
        line = self._line(key, task, course.size, settings, seed, 0)
        if line.origin is None:
            arguments = {
                "vocabulary": task.tokens.vocabulary.size,
                "settings": task.settings,
                "size": course.size,
                "seed": seed,
            }
            key = ("fresh", id(task), str(course.size), seed)
            line.origin = self._node(key, "fresh", course.size, [], arguments, 10**9)
        return line

    def _line(self, key, *more):
        if key not in self._lines:
            self._lines[key] = Line(key, *more)
        return self._lines[key]

    def _stretches(self, line, stop, number):
        """The nodes that train a line up to one of its stops."""
        found, last, begin = [], line.origin, line.begin
        for end in sorted(s for s in line.stops if line.begin < s <= stop):
            last = self._train(
                ("stay", *line.key), line, last, begin, end, None, number
            )
            begin = end
            found.append(last)
        return found

    def _state(self, line, stop, number):
        return (self._stretches(line, stop, number) or [line.origin])[-1]

    def _fall(self, line, begin, end, number):
        last = self._state(line, begin, number)
        fall = (begin, end)
        return self._train(("fall", *line.key), line, last, begin, end, fall, number)

    def _train(self, key, line, last, begin, end, fall, number):
        rate = line.settings["rate"]
        own = {name: line.settings[name] for name in ALONE}
        arguments = {
            "task": line.task,
            "seed": line.seed,
            "begin": begin,
            "end": end,
            "rate": rate,
            "fall": fall,
            "alone": own,
        }
        return self._node(
            (*key, begin, end), "train", line.size, [last], arguments, number
        )

    def _node(self, key, kind, size, needs, arguments, priority):
        if key not in self.nodes:
            node = self.nodes[key] = Node(kind, size, needs, arguments)
            for need in needs:
                need.wanted_by.append(node)
        node = self.nodes[key]
        for one in (node, *needs):
            one.priority = min(one.priority, priority)
        return node
