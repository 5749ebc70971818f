"""What results mean: FLOPs until a loss, and how sure that is.

All FLOPs here are shares of the budget, what the run from scratch has spent.
"""

import dataclasses
import math
import statistics
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean and the half width of its 95% confidence interval.

    Attributes:
        mean: float.
        half: float; `None` for a single value.
    """

    mean: float
    half: float | None

    @classmethod
    def of(cls, values: list[float]) -> "Interval":
        """Student's interval of some values."""
        from scipy import stats  # Only the tables need it.

        mean, count = statistics.fmean(values), len(values)
        if count == 1:
            return cls(mean, None)
        error = statistics.stdev(values) / math.sqrt(count)
        return cls(mean, float(stats.t.ppf(0.975, count - 1)) * error)

    def __format__(self, spec: str) -> str:
        """Such as `0.612 ± 0.034`; the format is that of the mean."""
        half = "" if self.half is None else f" ± {self.half:{spec.lstrip('+')}}"
        return f"{self.mean:{spec}}{half}"


@dataclasses.dataclass(frozen=True)
class Reached:
    """When a loss was reached.

    Attributes:
        share: float. FLOPs.
        bound: string. `"≤"` or `"≥"` if it is only a bound, since no more was tried.
    """

    share: float
    bound: str = ""


def reached(ends: list[tuple[float, float]], target: float) -> Reached | None:
    """Interpolates the FLOPs after which a finished run ends at a loss.

    Args:
        ends: list of pairs of the FLOPs of a finished run (its rate fallen to zero) and
            its final loss.
        target: float. A loss.

    Returns:
        `Reached`, linear in the FLOPs' logarithm between the first two ends of which
        one lies above and the next below; `None` if no end is below.

    Example:

    >>> from experiments.harness.analysis import reached
    >>> reached([(0.25, 4.0), (1.0, 3.0)], 3.5)
    Reached(share=0.5, bound='')
    """
    ends = sorted(ends)
    if ends and ends[0][1] <= target:
        return Reached(ends[0][0], "≤")
    for (before, high), (after, low) in zip(ends, ends[1:], strict=False):
        if low <= target:
            way = (high - target) / (high - low)
            return Reached(before * (after / before) ** way)
    return None


def ends(result: dict, *, parents: str = "counted") -> list[tuple[float, float]]:
    """The finished runs of a result: FLOPs and final losses.

    Args:
        result: dict, as `training.Run` returns it.
        parents: string. `"counted"`: the small models' FLOPs are part of it; `"free"`:
            they are not; `"parallel"`: those of one of several equal parents are, which
            are trained at the same time. Defaults to `"counted"`.
    """
    without = {"counted": 0.0, "free": 1.0, "parallel": _at_the_same_time(result)}
    left_out = without[parents] * result["parents_share"]
    return [(final["spent"] - left_out, final["loss"]) for final in result["finals"]]


def _at_the_same_time(result):
    """The share of the parents' FLOPs that other workers spend."""
    growths = result["course"]["growths"]
    count = growths[0].get("parents", 1) if len(growths) == 1 else 1
    return 1 - 1 / count


def final(result: dict, budget: float = 1.0) -> float | None:
    """The final loss of a result at one of its budgets, if it has that one."""
    found = [f["loss"] for f in result["finals"] if f["budget"] == budget]
    return found[0] if found else None


def merged(results: list[dict]) -> list[dict]:
    """Joins the results of one setting and seed that differ in their budgets."""
    by_run = {}
    for result in results:
        course = {k: v for k, v in result["course"].items() if k != "budgets"}
        other = by_run.setdefault(str(sorted(course.items())), result)
        if other is not result:
            known = {f["budget"] for f in other["finals"]}
            new = [f for f in result["finals"] if f["budget"] not in known]
            longer = max(other, result, key=lambda r: len(r["curve"]))
            joined = sorted(other["finals"] + new, key=lambda f: f["budget"])
            by_run[str(sorted(course.items()))] = longer | {"finals": joined}
    return list(by_run.values())


def settings(
    results: list[dict], chosen_on: Sequence[int] = ()
) -> dict[str, list[dict]]:
    """The runs of each setting at its best rate, by seeds.

    Args:
        results: list of results.
        chosen_on: seeds that rates and the like were chosen on. They are left out of a
            setting that has others. Defaults to none.
    """
    found = {}
    for result in sorted(merged(results), key=_seed):
        found.setdefault(result["course"]["setting"], []).append(result)
    best = {name: tuned(runs) for name, runs in found.items()}
    return {
        name: [run for run in runs if _seed(run) not in chosen_on] or runs
        for name, runs in best.items()
    }


def tuned(runs: list[dict]) -> list[dict]:
    """Of runs at several rates and the like those at the best, by the first seed.

    Args:
        runs: list of results of one setting.
    """
    first, least = min(map(_seed, runs)), {}
    for run in runs:
        if _seed(run) == first:
            for end in run["finals"]:
                least.setdefault(end["budget"], []).append((end["loss"], choice(run)))
    # At the largest of the budgets that most of them have been tried at.
    tried = max(least, key=lambda b: (len({choice for _, choice in least[b]}), b))
    best = min(least[tried])[1]
    return [run for run in runs if choice(run) == best]


def reference(results: list[dict], runs: list[dict]) -> list[dict]:
    """The runs from scratch that some runs are compared with, at all of their rates.

    At each budget the best of them counts, since a rate that is best at the last one need
    not be so before. They are those of the settings "scratch" and "scratch, ..." of the
    budget's size whose rate falls over the same part of the run; where there are none,
    those of "scratch".

    Args:
        results: list of all results.
        runs: list of results of one setting.
    """
    known = merged(results)
    scratch = [run for run in known if run["course"]["setting"] == "scratch"]
    others = [
        run
        for run in known
        if run["course"]["setting"].startswith("scratch, ")
        and run["course"]["size"] == run["course"]["budget"]["size"]
        and not is_grown([run])
    ]
    alike = [run for run in scratch + others if _fall([run]) == _fall(runs)]
    return alike or scratch


def _fall(runs):
    """The part of the run over which the rate falls."""
    return runs[0]["course"].get("model", {}).get("decay")


def is_grown(runs: list[dict]) -> bool:
    """Whether a setting grows."""
    return bool(runs[0]["course"]["growths"])


def alone(results: list[dict]) -> list[dict]:
    """All runs that do not grow."""
    return [run for run in merged(results) if not is_grown([run])]


def choice(run: dict) -> tuple:
    """A result's rate, weight decay and factors of the rate after each growth."""
    training = [g.get("training", {}) for g in run["course"]["growths"]]
    factors = [t.get("learning_rate_factor", 1.0) for t in training]
    return run["course"]["rate"], weight_decay(run), *factors


def weight_decay(run: dict) -> float:
    """That of a result's optimizer, 0 if it has none."""
    return run["course"].get("model", {}).get("optimizer", {}).get("weight_decay", 0.0)


def _seed(run):
    return run["course"]["seed"]


@dataclasses.dataclass(frozen=True)
class Saving:
    """Shares of FLOPs over seeds.

    Attributes:
        share: `Interval`; `None` if no seed came there.
        bound: string. `"≤"` or `"≥"` if that of some seed is only a bound.
        missed: int. How many seeds did not come there.
    """

    share: Interval | None
    bound: str
    missed: int

    @classmethod
    def of(cls, found: list[Reached | None]) -> "Saving":
        """Of what each seed reached."""
        there = [r for r in found if r is not None]
        share = Interval.of([r.share for r in there]) if there else None
        bound = "".join(sorted({r.bound for r in there}))
        return cls(share, bound, len(found) - len(there))

    def text(self) -> str:
        """Such as `≤ 0.41 ± 0.03`."""
        if self.share is None:
            return "not reached"
        text = f"{self.bound} {self.share:.2f}".strip()
        return text + (f" ({self.missed} not)" if self.missed else "")


def saving(runs: list[dict], scratch: list[dict], *, parents: str) -> Saving:
    """The FLOPs of a setting until scratch's final loss, seed by seed.

    Args:
        runs: list of results.
        scratch: list of results from scratch.
        parents: string, see `ends`.

    Returns:
        A `Saving`.
    """
    targets = {}
    for run in scratch:
        if (loss := final(run)) is not None:
            targets.setdefault(_seed(run), []).append(loss)
    return Saving.of(
        [
            reached(ends(run, parents=parents), min(targets[_seed(run)]))
            for run in runs
            if _seed(run) in targets
        ]
    )


def against(
    runs: list[dict], others: list[dict], *, parents: str = "counted"
) -> Saving:
    """The FLOPs of a setting over those of others at the same loss.

    It is that of the last end whose loss is one of the others', between their lowest and
    highest budget, and where no end is, a bound.

    Args:
        runs: list of results.
        others: list of results that end at several budgets. All of a seed together are
            the frontier: what is dominated by another does not count.
        parents: string, see `ends`. Defaults to `"counted"`.

    Returns:
        A `Saving`; a bound where the others are at the loss at their lowest budget
        already, or not yet at their highest.
    """
    found = []
    for run in runs:
        known = frontier([e for o in others if _seed(o) == _seed(run) for e in ends(o)])
        if known:
            shares = [_over(end, known) for end in ends(run, parents=parents)]
            exact = [share for share in shares if not share.bound]
            found.append((exact or shares)[-1])
    return Saving.of(found)


def _over(end, known):
    """The FLOPs of one end over those of a frontier at its loss."""
    spent, loss = end
    if there := reached(known, loss):
        return Reached(spent / there.share, "≥" if there.bound else "")
    return Reached(spent / known[-1][0], "≤")


def frontier(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no cheaper one is as low as, by FLOPs."""
    kept = []
    for spent, loss in sorted(points):
        if not kept or loss < kept[-1][1]:
            kept.append((spent, loss))
    return kept


def above(runs: list[dict], others: list[dict], budget: float) -> Interval | None:
    """By how much runs end above others of the same seeds, at one budget.

    Args:
        runs: list of results of a setting.
        others: list of results of another.
        budget: float.

    Returns:
        `Interval` of the differences, seed by seed; `None` if they share no seed.
    """
    theirs = {_seed(run): final(run, budget) for run in others}
    pairs = [(final(run, budget), theirs.get(_seed(run))) for run in runs]
    found = [end - other for end, other in pairs if None not in (end, other)]
    return Interval.of(found) if found else None


def curve(runs: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """The mean curve of some runs at constant rate: FLOPs and losses."""
    points = [dict(map(tuple, run["curve"])) for run in runs]
    shares = sorted(set(points[0]).intersection(*points[1:]))
    losses = np.mean([[p[share] for share in shares] for p in points], axis=0)
    return np.array(shares), losses
