"""Compares the savings that were aimed for with the best that were found.

python -m experiments.goals                          # prints the table
python -m experiments.goals --page docs/savings.md   # puts it into the page

For each aim the setting with the lowest share of the FLOPs counts, over the seeds that its
rate was not chosen on where there are such. Growths from nothing count with a million
parameters or more. A setting of each rate, weight decay and factor is one that was tried.
"""

import argparse
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

from experiments import model_family
from experiments.harness import analysis, study_files
from experiments.harness.analysis import Saving
from experiments.harness.results import RESULTS, Results
from keras_fusion.t5 import markdown

STUDIES = ("decoder_128x4", "decoder_96x8", "decoder_256x4", "decoder_64x4")
LARGE = 1_000_000  # parameters
FAMILY = 0.75  # the aim for a family


@dataclasses.dataclass(frozen=True)
class Goal:
    """A share of FLOPs that was aimed for.

    Args:
        name: string.
        aim: float.
        parents: string, see `analysis.ends`.
        fits: function from a result's growths to whether it is one of this goal.
        of: string, `"scratch"` or `"envelope"`: what the share is of.
    """

    name: str
    aim: float
    parents: str
    fits: Callable[[list[dict]], bool]
    of: str = "scratch"

    @property
    def least_params(self) -> int:
        """Smaller models do not count."""
        return LARGE if self.parents == "counted" else 0


def parents(growths: list[dict]) -> int:
    """The number of distinct parents of a course's growths."""
    return max(growth.get("parents", 1) for growth in growths)


def is_width(growths: list[dict]) -> bool:
    """Whether all growths are in width."""
    return all(growth.get("operator") != "DepthStacking" for growth in growths)


GOALS = (
    Goal("from nothing", 0.65, "counted", lambda growths: True),
    Goal(
        "from nothing, of the best run without growth",
        *(0.85, "counted", lambda growths: True, "envelope"),
    ),
    Goal("from nothing, in width", 0.85, "counted", is_width),
    Goal("one parent exists", 0.62, "free", lambda g: parents(g) == 1),
    Goal("two distinct parents exist", 0.50, "free", lambda g: parents(g) == 2),
    Goal("up to four distinct parents exist", 0.42, "free", lambda g: True),
    Goal("a worker for each parent", 0.60, "parallel", lambda g: parents(g) > 1),
)


@dataclasses.dataclass(frozen=True)
class Found:
    """What a setting of a study needs.

    Args:
        study: string.
        setting: string.
        seeds: int.
        saving: `Saving`.
    """

    study: str
    setting: str
    seeds: int
    saving: Saving


def found(goal: Goal, name: str, results: list[dict]) -> Iterator[Found]:
    """Yields the settings of a study that fit a goal and have a share."""
    chosen_on = study_files.load(name).chosen_on
    for setting, runs in analysis.settings(results, chosen_on).items():
        if not _belongs(goal, runs[0]) or runs[0]["params"] < goal.least_params:
            continue
        others = analysis.reference(results, runs)
        if goal.of == "envelope":
            others = analysis.alone(results)
        saving = analysis.against(runs, others, parents=goal.parents)
        if saving.share is not None and not saving.bound:
            yield Found(name, setting, len(runs), saving)


def _belongs(goal, run):
    course = run["course"]
    # Parents that are trained at once may be counted or free otherwise.
    if goal.parents != "parallel" and course["parents"] != goal.parents:
        return False
    growths = course["growths"]
    if not growths or growths[-1]["to"] != course["budget"]["size"]:
        return False  # A smaller model of a family.
    # What exists is one model, or several of a kind, and not grown itself.
    return goal.fits(growths) and (goal.parents != "free" or len(growths) == 1)


def tried(goal: Goal, results: list[dict]) -> int:
    """How many settings of a goal a study has, each rate and the like counted."""
    runs = [run for run in results if _belongs(goal, run)]
    return len({(run["course"]["setting"], analysis.choice(run)) for run in runs})


def table(folder: Path = RESULTS) -> str:
    """All goals in Markdown."""
    known = {name: Results(folder / name).all() for name in STUDIES}
    rows = []
    for goal in GOALS:
        settings = [x for name, res in known.items() for x in found(goal, name, res)]
        best = min(settings, key=lambda x: x.saving.share.mean)  # type: ignore
        rows.append(
            (
                goal.name,
                f"{goal.aim:.2f}",
                best.saving.text(),
                f"{best.setting} (`{best.study}`)",
                str(best.seeds),
                str(sum(tried(goal, res) for res in known.values())),
            )
        )
    family = model_family.measured(known[model_family.STUDY])
    rows.append(
        (
            "a family of three, of three trainings",
            f"{FAMILY:.2f}",
            f"{model_family.share(family):.2f}",
            f"1, 2, 4 layers: copies (`{model_family.STUDY}`)",
            str(len(family)),
            str(model_family.tried(known[model_family.STUDY])),
        )
    )
    head = "case", "aim", "best found", "setting", "seeds", "settings tried"
    return markdown.table(head, rows)


def main() -> None:
    """Prints the table, or puts it into a page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    if options.page:
        markdown.insert(table(), options.page, "goals")
    print(table())


if __name__ == "__main__":
    main()
