"""Fits the scaling law to a study, and compares what it predicts with what was measured.

python -m experiments.law decoder_64x4                      # prints the tables
python -m experiments.law decoder_128x4 --mixing decoder_64x4 --page docs/savings.md

The law is fitted to the annealed runs without growth of some seeds, each setting at its
best rate. A run with one growth is predicted by `keras_fusion.plan_growth`'s assumption:
the grown model goes on along its own curve from where that has the small model's loss,
and of the tokens that are lost by this a share, `mixing`, counts nevertheless. `mixing`
is chosen for each way of growing on the seeds of the fit, by the setting that ends
lowest; or on another study, and then no grown run of this one has been seen before.
Where that one has a growth only with its parents' FLOPs counted, or only without, its
constant serves both.
"""

import argparse
import dataclasses
from pathlib import Path

import numpy as np

from experiments.harness import analysis, study, study_files
from experiments.harness.results import Results
from keras_fusion import ScalingLaw
from keras_fusion.analysis.growth_plan import worth
from keras_fusion.t5 import markdown

RESULTS = Path(__file__).parent / "results"
NEAR = 0.05  # what is predicted and what is measured, as shares
MIXINGS = np.round(np.arange(-0.5, 1.0, 0.02), 2)


@dataclasses.dataclass(frozen=True)
class Units:
    """What steps and sizes are in tokens and parameters.

    Args:
        tokens: float. Tokens of the budget.
        params: dict from sizes to parameters.
        costs: dict from sizes to FLOPs of a step.
    """

    tokens: float
    params: dict[str, int]
    costs: dict[str, float]


def units(results: list[dict]) -> Units:
    """The units of a study, from its runs."""
    params, costs = {}, {}
    for run in results:
        costs |= run["costs"]
        last = run["course"]["growths"][-1:] or [{"to": run["course"]["size"]}]
        params[size_name(last[0]["to"])] = run["params"]
    course = results[0]["course"]
    batch = course["model"]["batch_size"] * course["model"]["row_length"]
    steps = results[0]["budget"] / costs[size_name(course["budget"]["size"])]
    return Units(steps * batch, params, costs)


def fitted(results: list[dict], seeds: list[int], scale: Units) -> ScalingLaw:
    """The law of the runs without growth of some seeds, at the best rate for each end."""
    best = {}
    for run in analysis.merged(results):
        course = run["course"]
        if not course["growths"] and course["seed"] in seeds and _is_usual(course):
            for end in run["finals"]:
                key = course["seed"], size_name(course["size"]), end["budget"]
                best[key] = min(end["loss"], best.get(key, end["loss"]))
    params = [scale.params[size] for _, size, _ in best]
    tokens = [budget * scale.tokens for _, _, budget in best]
    return ScalingLaw.fit(params, tokens, list(best.values()))


def _is_usual(course):
    """Whether a run has the settings of the study, not those of a grid or another fall."""
    return course["setting"] == "scratch" or not course["setting"].startswith(
        ("scratch, falling", "grid")
    )


@dataclasses.dataclass(frozen=True)
class Case:
    """One end of a run that grew once.

    Args:
        name: string, the setting.
        kind: string, the way of growing.
        seed: int.
        sizes: pair of strings, before and after.
        small: float. Tokens of the small model.
        rest: float. Tokens of the grown one.
        spent: float. Its FLOPs, as a share of the budget; without the parents' if these
            are free.
        loss: float. What it ended at.
        measured: float. `spent` over the FLOPs after which the run from scratch of the
            same seed ends at that loss.
    """

    name: str
    kind: str
    seed: int
    sizes: tuple[str, str]
    small: float
    rest: float
    spent: float
    loss: float
    measured: float


def cases(results: list[dict], scale: Units) -> list[Case]:
    """All ends of runs with one growth whose loss the run from scratch comes to."""
    settings, found = analysis.settings(results), []
    for name, runs in settings.items():
        scratch = {}
        for other in analysis.reference(results, runs):
            scratch.setdefault(other["course"]["seed"], []).extend(analysis.ends(other))
        for run in (r for r in runs if len(r["course"]["growths"]) == 1):
            course, growth = run["course"], run["course"]["growths"][0]
            sizes = size_name(course["size"]), size_name(growth["to"])
            if not scale.params.keys() >= set(sizes):
                continue  # No run of the small model alone tells its parameters yet.
            if growth["to"] != course["budget"]["size"]:
                continue  # A smaller model of a family.
            parents = course["parents"]
            for end, (spent, loss) in zip(
                run["finals"], analysis.ends(run, parents=parents), strict=True
            ):
                known = analysis.frontier(scratch.get(course["seed"], []))
                there = analysis.reached(known, loss)
                if there is None or there.bound:
                    continue
                rest = end["budget"] - (0.0 if parents == "free" else growth["at"])
                found.append(
                    Case(
                        name,
                        _kind(course),
                        course["seed"],
                        sizes,
                        growth["at"] * scale.tokens,
                        rest * scale.tokens,
                        spent,
                        loss,
                        spent / there.share,
                    )
                )
    return found


def predicted(case: Case, law: ScalingLaw, scale: Units, mixing: float) -> float:
    """The share of the from-scratch FLOPs that a case is predicted to need."""
    small, big = (scale.params[size] for size in case.sizes)
    start = worth(law, big, law.loss(small, case.small), case.small, mixing)
    return case.spent / ((start + case.rest) / scale.tokens)


def _kind(course):
    """The way of growing of a course with one growth, in words."""
    growth = course["growths"][0]
    if growth.get("parents", 1) > 1:
        over = growth["at"] > 1.0  # They have read more than the grown model would.
        kind = "over-trained parents" if over else "distinct parents"
    elif growth.get("operator") == "DepthStacking":
        new = growth.get("new_blocks") == "random"
        kind = "new blocks" if new else "copied blocks"
    else:
        new = growth.get("operator") == "NewFeatures"
        new = new or growth.get("new_features") == "random"
        kind = "new features" if new else "copies"
    return f"{kind}, {course['parents']}"


def mixings(
    found: list[Case], law: ScalingLaw, scale: Units, seeds: list[int]
) -> dict[str, float]:
    """For each way of growing the mixing that predicts some seeds' best setting best."""
    chosen, seen = {}, [case for case in found if case.seed in seeds]
    for kind in dict.fromkeys(case.kind for case in seen):
        own = [case for case in seen if case.kind == kind]
        best = min(own, key=lambda case: case.loss).name
        own = [case for case in own if case.name == best]
        chosen[kind] = min(
            map(float, MIXINGS),
            key=lambda m, own=own: sum(
                abs(predicted(case, law, scale, m) - case.measured) for case in own
            ),
        )
    return chosen


def _of_kind(chosen: dict[str, float], kind: str) -> float | None:
    """The mixing of a kind, or else of the same growth with its parents paid otherwise."""
    growth, parents = kind.rsplit(", ", 1)
    other = "counted" if parents == "free" else "free"
    return chosen.get(kind, chosen.get(f"{growth}, {other}"))


def chosen_mixings(results: list[dict], seeds: list[int]) -> dict[str, float]:
    """The mixings of a study, by its own law."""
    scale = units(results)
    return mixings(cases(results, scale), fitted(results, seeds, scale), scale, seeds)


def text(results: list[dict], seeds: list[int], other: list[dict] | None = None) -> str:
    """The law and the cases, in Markdown.

    Args:
        results: list of results.
        seeds: list of ints. Those that the law is fitted on.
        other: list of results of the study that the mixings are chosen on. Defaults to
            `results`.
    """
    scale = units(results)
    law = fitted(results, seeds, scale)
    chosen = chosen_mixings(other or results, seeds)
    bounds = [
        f"{name} {low:.3g} to {high:.3g}"
        for name, field in (("a", "size_exponent"), ("b", "data_exponent"))
        for low, high in [law.interval(lambda x, f=field: getattr(x, f))]
    ]
    rows, free, nothing = [], [], []  # The latter: whether held-out ends are near.
    for case in cases(results, scale):
        mixing = _of_kind(chosen, case.kind)
        if mixing is not None:
            known = other is None and case.seed in seeds
            share = predicted(case, law, scale, mixing)
            if not known:
                ends = free if case.kind.endswith(", free") else nothing
                ends.append(abs(share - case.measured) <= NEAR)
            rows.append(
                (
                    case.name,
                    str(case.seed),
                    "fitted" if known else "held out",
                    f"{(case.rest + case.small) / scale.tokens:.2f}",
                    f"{case.measured:.2f}",
                    f"{predicted(case, law, scale, 0.0):.2f}",
                    f"{mixing:.2f}",
                    f"{share:.2f}",
                )
            )
    head = "setting", "seed", "", "steps", "measured", "mixing 0", "mixing", "predicted"
    found = f"{law} ({', '.join(bounds)})\n\n{markdown.table(head, rows)}\n"
    if free or nothing:
        found += (
            f"\nWithin {NEAR} are {_near(free + nothing)} held-out ends: {_near(free)} "
            f"from trained models, and {_near(nothing)} from nothing.\n"
        )
    return found


def _near(ends: list[bool]) -> str:
    return f"{sum(ends)} of {len(ends)}"


def size_name(size: dict) -> str:
    """The name of a size, such as `"64x4"`."""
    return str(study.Size(**size))


def _results(name):
    return Results(RESULTS / study_files.load(name).name).all()


def main() -> None:
    """Prints the law and the table, or puts them into a page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="fitted on")
    parser.add_argument("--mixing", help="the study that the mixings are chosen on")
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    other = _results(options.mixing) if options.mixing else None
    found = text(_results(options.study), options.seeds, other)
    if options.page:
        markdown.insert(found, options.page, "law")
    print(found)


if __name__ == "__main__":
    main()
