"""Trains what is missing of a study, run by run, alone or beside other processes."""

import time
from pathlib import Path

from experiments.harness import text
from experiments.harness.results import Results
from experiments.harness.study import Course, Study, Text
from experiments.harness.tasks import Tasks
from experiments.harness.training import Claimed, Run
from keras_fusion.t5.store import Entry

PATIENCE = 15  # seconds until looking again for work that others do not have


class Worker:
    """A process that trains the runs of a study.

    Args:
        study: `Study`.
        results: `Results`.
        folder: `Path` of tokens, small models' states and locks.
        open_text: function from a `study.Text` to its `Tokens`. Defaults to reading it.
    """

    def __init__(self, study: Study, results: Results, folder: Path, open_text=None):
        self.study, self.results, self.folder = study, results, folder
        self._tasks = Tasks(open_text or (lambda t: text.prepare(t, folder / "tokens")))
        self._checked: set[Text] = set()

    def missing(self) -> list[Course]:
        """The runs that can be said so far and have not finished."""
        return self.results.missing(self.study)

    def work(self, runs: float = float("inf"), hours: float = float("inf")) -> int:
        """Trains what no other process is training, until nothing is missing.

        Args:
            runs: int. The most runs to train. Defaults to all.
            hours: float. No run begins later. Defaults to never.

        Returns:
            int. How many runs this process has finished.
        """
        end, done = time.monotonic() + 3600 * hours, 0
        while done < runs and time.monotonic() < end and (missing := self.missing()):
            for course in missing:
                if self._train(course):
                    done += 1
                    break
            else:
                time.sleep(PATIENCE)
        return done

    def _train(self, course):
        """Trains a run unless another process has it, or what it needs."""
        lock = self.folder / "locks" / self.study.name / course.name
        with Entry(lock).claimed() as mine:
            if not mine or self.results.read(course) is not None:
                return False
            try:
                result = Run(course, self._task(course), self.folder / "trunks")()
            except Claimed:
                return False
            self.results.write(course, result)
        ends = ", ".join(f"{f['budget']:g}: {f['loss']:.4f}" for f in result["finals"])
        print(
            f"{course.setting} (rate {course.rate:g}, seed {course.seed}) {ends} "
            f"({result['seconds']:.0f} s)",
            flush=True,
        )
        return True

    def _task(self, course):
        """The task of a course, whose text is that of the results so far."""
        if course.text not in self._checked:
            self._checked.add(course.text)
            self.results.check_text(course.text, self._tasks.tokens(course.text))
        return self._tasks(course, course.model)
