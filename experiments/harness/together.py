"""Runs the courses of a study together: fleets on the accelerator, growths on the CPU."""

import collections
import concurrent.futures
import dataclasses
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from experiments.harness import jobs, text
from experiments.harness.fleet import Fleet, Stretch, Text
from experiments.harness.graph import ALONE, Graph, Node
from experiments.harness.outcome import final, outcome
from experiments.harness.results import Results
from experiments.harness.study import Course, Model, Size, Study
from experiments.harness.tasks import Task, Tasks

LOAD = 2**14  # lanes x width x layers of a fleet that keeps the accelerator busy
LEAST_LANES, MOST_LANES = 8, 64
PAUSE = 20.0  # seconds between two lines about what is going on


def run(
    studies: list[tuple[Study, Results]], folder: Path, seconds: float, processes: int
) -> None:
    """Trains what is missing of some studies, as far as the time suffices.

    Args:
        studies: list of pairs of a `Study` and its `Results`; the first comes first.
        folder: `Path` of the tokens.
        seconds: float.
        processes: int. How many grow models.
    """
    end = time.monotonic() + seconds
    tasks = Tasks(lambda t: text.prepare(t, folder / "tokens"))

    def task_of(course):
        return tasks(course, _shared(course.model))

    def missing():
        return [
            (c, results) for study, results in studies for c in results.missing(study)
        ]

    with Machine(processes) as machine:
        while time.monotonic() < end and (courses := missing()):
            for source, results in {(c.text, r) for c, r in courses}:
                results.check_text(source, tasks.tokens(source))
            graph = Graph([course for course, _ in courses], task_of)
            report = _Report(graph, courses, task_of)
            machine.run(graph, end, report)
            report.rest()
            if machine.failed:
                break


def _shared(model: Model) -> Model:
    """The settings without those that every training has for itself."""
    return dataclasses.replace(
        model, optimizer=model.optimizer | dict.fromkeys(ALONE, 0.5)
    )


class _Report:
    """Writes the result of a course once all of its ends are there."""

    def __init__(
        self,
        graph: Graph,
        courses: list[tuple[Course, Results]],
        task_of: Callable[[Course], Task],
    ):
        self.graph, self.courses, self.task_of = graph, courses, task_of
        self.began = time.monotonic()
        self._left = {
            number: {id(node) for node in (*ends, *graph.grown[number])}
            for number, ends in graph.ends.items()
        }

    def __call__(self, node: Node) -> None:
        """Takes note of a node that is done."""
        for number, left in list(self._left.items()):
            left.discard(id(node))
            if not left:
                del self._left[number]
                self._write(number)

    def rest(self) -> None:
        """Writes what there is of courses that have not come to their ends, apart."""
        for number in self._left:
            if any(node.done for node in self.graph.ends[number]):
                self._write(number, Results(self.courses[number][1].folder / "cut_off"))

    def _write(self, number, results=None):
        course, whole = self.courses[number]
        results = results or whole
        clock = self.graph.clocks[number]
        ends = zip(clock.branches, self.graph.ends[number], strict=True)
        result = outcome(
            course,
            self.task_of(course),
            clock,
            events=[node.told for node in self.graph.grown[number]],
            curve=[
                [clock.spent(step), loss]
                for node in self.graph.paths[number]
                for step, loss in node.losses
            ],
            finals=[
                final(clock, branch, node.loss) for branch, node in ends if node.done
            ],
            seconds=time.monotonic() - self.began,
            device=jax.devices()[0].device_kind,
        )
        results.write(course, result)
        ends = ", ".join(f"{f['spent']:.2f}: {f['loss']:.4f}" for f in result["finals"])
        name = f"{course.setting} (rate {course.rate:g}, seed {course.seed})"
        print(f"  {name} {ends}", flush=True)


class Machine:
    """The fleets, one per size, and the processes that grow models.

    Args:
        processes: int.
    """

    def __init__(self, processes: int):
        jax.devices()  # This process has its device; the others get the CPU.
        os.environ["JAX_PLATFORMS"] = "cpu"
        self.pool = concurrent.futures.ProcessPoolExecutor(
            processes, multiprocessing.get_context("spawn")
        )
        self.jobs: dict[concurrent.futures.Future, Node] = {}
        self.fleets: dict[Size, Fleet] = {}
        self.threads = concurrent.futures.ThreadPoolExecutor()
        self.compiled: dict[Fleet, concurrent.futures.Future] = {}
        self.failed = False
        self.began = self.spoke = time.monotonic()

    def __enter__(self) -> "Machine":
        return self

    def __exit__(self, *error) -> None:
        self.threads.shutdown(wait=False, cancel_futures=True)
        self.pool.shutdown(wait=False, cancel_futures=True)

    def run(self, graph: Graph, end: float, finished: Callable[[Node], None]) -> None:
        """Does what a graph says until all is done or the time is over.

        Args:
            graph: `Graph`.
            end: float, of `time.monotonic()`.
            finished: function that is called with each node that is done.
        """
        self.finished = finished
        for node in graph.nodes.values():
            if not node.needs:
                self._start(node)
        self._open(graph)
        while time.monotonic() < end and (self.jobs or self._busy()):
            self._work()
            if time.monotonic() - self.spoke > PAUSE:
                self._say("; ".join(map(str, self.fleets.values())))

    def _busy(self):
        """The fleets that have something to do, the fullest first.

        A call takes as long for few trainings as for many, so that those of which there
        are few wait until there are more, or nothing else is left.
        """
        busy = [fleet for fleet in self.fleets.values() if fleet.busy]
        return sorted(busy, key=lambda f: (-round(2 * f.fullness), f.urgency))

    def _work(self):
        for job in [job for job in self.jobs if job.done()]:
            node = self.jobs.pop(job)
            try:
                node.state, node.told = job.result()
            except Exception as error:  # Of what depends on it nothing is done.
                self.failed = True
                self._say(f"{node.kind} {node.size} failed: {error!r}"[:400])
            else:
                self._done(node)
        if ready := [fleet for fleet in self._busy() if self.compiled[fleet].done()]:
            self.compiled[ready[0]].result()  # Raises what has failed in its thread.
            for stretch, state in ready[0].advance():
                stretch.tag.state, stretch.tag.losses = state, stretch.losses
                self._done(stretch.tag)
        else:
            time.sleep(0.1)

    def _open(self, graph):
        """Builds fleets of sizes that have none, and lets threads compile them."""
        counts, work, tasks = collections.Counter(), collections.Counter(), {}
        for node in graph.nodes.values():
            if node.kind == "train":
                counts[node.size] += 1
                steps = node.arguments["end"] - node.arguments["begin"]
                work[node.size] += steps * node.size.width * node.size.layers
                tasks[node.size] = node.arguments["task"]
        new = []
        # What has the most to do is built and compiled first.
        for size in sorted(counts.keys() - self.fleets.keys(), key=lambda s: -work[s]):
            most = max(LOAD // (size.width * size.layers), LEAST_LANES)
            lanes = min(most, MOST_LANES, counts[size])
            task = tasks[size]
            fleet = self.fleets[size] = Fleet(task, size, lanes, _text(task))
            # While the next one is built.
            self.compiled[fleet] = self.threads.submit(fleet.compile)
            new.append(fleet)
        for fleet in new:  # Until these are there, few trainings take a call for many.
            self.threads.submit(fleet.compile_fewer).add_done_callback(self._failed)
        self._say(f"{len(new)} fleets are built")

    def _failed(self, compiling):
        """Tells of what could not be compiled; the call for many does its work."""
        if error := compiling.exception():
            self._say(f"The smaller call is missing: {error!r}")

    def _say(self, words):
        self.spoke = time.monotonic()
        print(f"{self.spoke - self.began:6.1f} s  {words}", flush=True)

    def _start(self, node):
        if node.kind == "train":
            stretch = Stretch(state=node.needs[0].state, tag=node, **node.arguments)
            self.fleets[node.size].ask(node.priority, stretch)
            return
        states = [jax.tree.map(np.asarray, tuple(n.state)) for n in node.needs]
        job = self.pool.submit(
            getattr(jobs, node.kind), **node.arguments, states=states
        )
        self.jobs[job] = node

    def _done(self, node):
        if node.validated:
            fleet = self.fleets[node.size]
            self.compiled[fleet].result()
            node.loss = fleet.validate(node.state)
        node.done = True
        self.finished(node)
        for other in node.wanted_by:
            if all(need.done for need in other.needs):
                self._start(other)
        for one in (node, *node.needs):
            if all(other.done for other in one.wanted_by):
                one.state = None  # Nobody needs it any more.


_TEXTS: dict[str, Text] = {}


def _text(task):
    """The text on the accelerator, once."""
    checksum = task.tokens.checksum
    if checksum not in _TEXTS:
        _TEXTS[checksum] = Text.of(task)
    return _TEXTS[checksum]
