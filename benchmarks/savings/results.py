"""The results of finished runs, a JSON file each, and the work on those that are not."""

import json
from pathlib import Path

from benchmarks.savings.courses import Course
from keras_fusion.training.files import whole


class Results:
    """A folder of results.

    Args:
        folder: `Path`.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, course: Course) -> Path:
        """Where the result of a course is."""
        return self.folder / course.task / f"{course.name}.json"

    def read(self, course: Course) -> dict | None:
        """The result of a course, or `None` as long as it is not finished."""
        path = self.path(course)
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def write(self, course: Course, result: dict) -> None:
        """Keeps the result of a course, whole or not at all."""
        with whole(self.path(course)) as path:
            path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

    def loss(self, course: Course, budget: float) -> float | None:
        """The final loss of a course at one of its budgets, if it is finished."""
        if (result := self.read(course)) is None:
            return None
        (loss,) = [f["loss"] for f in result["finals"] if f["budget"] == budget]
        return loss

    def best(self, courses: list[Course], budget: float) -> Course | None:
        """The course that ends lowest, once all are finished."""
        losses = [self.loss(course, budget) for course in courses]
        if None in losses:
            return None
        return courses[losses.index(min(losses))]

    def turn(self, courses: list[Course], budget: float) -> Course | None:
        """The best rate of a sweep, once the rates on both sides of it end higher.

        Args:
            courses: list of `Course` that differ in their rates.
            budget: float.

        Returns:
            `None` as long as the best so far may not be the best: a rate next to it has
            not been tried.
        """
        courses = sorted(courses, key=lambda course: course.rate)
        losses = [self.loss(course, budget) for course in courses]
        tried = [loss for loss in losses if loss is not None]
        if not tried:
            return None
        place = losses.index(min(tried))
        beside = losses[max(place - 1, 0) : place + 2]
        return None if None in beside else courses[place]
