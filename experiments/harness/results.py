"""The results of finished runs: a JSON file each."""

import json
from pathlib import Path

from experiments.harness.study import Course, Study, Text
from experiments.harness.text import Tokens
from keras_fusion.training.files import whole

RESULTS = Path(__file__).parents[1] / "results"


class Results:
    """A folder of results.

    Args:
        folder: `Path`.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def read(self, course: Course) -> dict | None:
        """The result of a course, or `None` as long as it is not finished."""
        path = self._path(course)
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def write(self, course: Course, result: dict) -> None:
        """Keeps the result of a course, whole or not at all."""
        with whole(self._path(course)) as path:
            path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

    def _path(self, course):
        return self.folder / f"{course.name}.json"

    def loss(self, course: Course) -> float | None:
        """The loss of a course at its last end, if it is finished."""
        result = self.read(course)
        return None if result is None else result["finals"][-1]["loss"]

    def missing(self, study: Study) -> list[Course]:
        """The runs of a study that can be said so far and have not finished."""
        courses = study.courses(self.loss)
        return [course for course in courses if self.read(course) is None]

    def check_text(self, text: Text, tokens: Tokens) -> None:
        """Makes sure that results on a text can be compared with those that are here.

        Raises:
            ValueError: if they are of another text of that name.
        """
        new = {"course": {"text": {"source": text.source}}, "text": tokens.describe()}
        check_texts([*self.all(), new], self.folder)

    def all(self) -> list[dict]:
        """All results, in the order of their files' names.

        Raises:
            ValueError: if they are of different texts.
        """
        paths = sorted(self.folder.glob("*.json"))
        found = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
        check_texts(found, self.folder)
        return found


def check_texts(found: list[dict], folder: Path) -> None:
    """Makes sure that results can be compared.

    Args:
        found: list of results or of the texts of future ones.
        folder: `Path`, for the message.

    Raises:
        ValueError: if they are of different texts.
    """
    texts = {}
    for result in found:
        source = result.get("course", {}).get("text", {}).get("source")
        texts.setdefault(source, set()).add(result.get("text", {}).get("sha256"))
    for source, checksums in texts.items():
        if len(checksums) > 1:
            raise ValueError(
                f"The results in {str(folder)!r} are of different texts {source!r}, of "
                f"the checksums {sorted(map(str, checksums))}: other packages or other "
                "files were read. Move those of the older text to a folder of their own."
            )
