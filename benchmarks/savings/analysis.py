"""What results mean: FLOPs until the loss of the run from scratch, and how sure that is.

All FLOPs here are shares of the budget, what the run from scratch has spent.
"""

import dataclasses
import math
import statistics

import numpy as np

# Student's t, the quantile of a two-sided 95% interval by the degrees of freedom.
_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean and the half width of its 95% confidence interval.

    Attributes:
        mean: float.
        half: float; `None` for a single value.
        count: int. How many values.
    """

    mean: float
    half: float | None
    count: int

    @classmethod
    def of(cls, values: list[float]) -> "Interval":
        """Student's interval of some values, ten at most."""
        mean, count = statistics.fmean(values), len(values)
        if count == 1:
            return cls(mean, None, 1)
        error = statistics.stdev(values) / math.sqrt(count)
        return cls(mean, _QUANTILES[count - 2] * error, count)

    def __format__(self, spec: str) -> str:
        """Such as `0.612 ± 0.034`; the format is that of the mean."""
        half = "" if self.half is None else f" ± {self.half:{spec.lstrip('+')}}"
        return f"{self.mean:{spec}}{half}"


@dataclasses.dataclass(frozen=True)
class Reached:
    """When a loss was reached.

    Attributes:
        share: float. FLOPs; an upper bound if `bound`, since less was not tried.
        bound: bool.
    """

    share: float
    bound: bool = False


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

    >>> from benchmarks.savings.analysis import reached
    >>> reached([(0.25, 4.0), (1.0, 3.0)], 3.5)
    Reached(share=0.5, bound=False)
    """
    ends = sorted(ends)
    if ends[0][1] <= target:
        return Reached(ends[0][0], bound=True)
    for (before, high), (after, low) in zip(ends, ends[1:], strict=False):
        if low <= target:
            way = (high - target) / (high - low)
            return Reached(before * (after / before) ** way)
    return None


def ends(result: dict, *, parents: bool) -> list[tuple[float, float]]:
    """The finished runs of a result: FLOPs and final losses.

    Args:
        result: dict, as `running.Runner` returns it.
        parents: bool. Whether the FLOPs of the small models count.
    """
    free = 0.0 if parents else result["parents_share"]
    return [(final["spent"] - free, final["loss"]) for final in result["finals"]]


def final(result: dict, budget: float = 1.0) -> float | None:
    """The final loss of a result at one of its budgets, if it has that one."""
    found = [f["loss"] for f in result["finals"] if f["budget"] == budget]
    return found[0] if found else None


def merged(results: list[dict]) -> list[dict]:
    """Joins the results of one setting and seed that differ in their budgets."""
    by_run = {}
    for result in results:
        course = {k: v for k, v in result["course"].items() if k != "budgets"}
        key = str(sorted(course.items()))
        if key in by_run:
            known = {f["budget"] for f in by_run[key]["finals"]}
            new = [f for f in result["finals"] if f["budget"] not in known]
            longer = max(by_run[key], result, key=lambda r: len(r["curve"]))
            joined = sorted(by_run[key]["finals"] + new, key=lambda f: f["budget"])
            by_run[key] = longer | {"finals": joined}
        else:
            by_run[key] = result
    return list(by_run.values())


@dataclasses.dataclass(frozen=True)
class Saving:
    """The FLOPs of a setting until the final loss of scratch, over seeds.

    Attributes:
        share: `Interval` of the shares of scratch's FLOPs.
        bound: bool. Whether some seed was there at its lowest budget already, so that
            the share is at most this.
        missed: int. How many seeds did not come there.
    """

    share: Interval | None
    bound: bool
    missed: int

    def text(self) -> str:
        """Such as `≤ 0.41 ± 0.03`."""
        if self.share is None:
            return "not reached"
        text = ("≤ " if self.bound else "") + f"{self.share:.2f}"
        return text + (f" ({self.missed} not)" if self.missed else "")


def saving(runs: list[dict], scratch: dict[int, float], *, parents: bool) -> Saving:
    """Compares runs of a setting, seed by seed, with those from scratch.

    Args:
        runs: list of results.
        scratch: dict from a seed to the final loss from scratch.
        parents: bool. Whether the FLOPs of the small models count.

    Returns:
        A `Saving`.
    """
    found = [
        reached(ends(run, parents=parents), scratch[run["course"]["seed"]])
        for run in runs
        if run["course"]["seed"] in scratch
    ]
    there = [r for r in found if r is not None]
    shares = [r.share for r in there]
    return Saving(
        Interval.of(shares) if shares else None,
        any(r.bound for r in there),
        len(found) - len(there),
    )


def above(runs: list[dict], others: list[dict], budget: float) -> Interval | None:
    """By how much runs end above others of the same seeds, at equal FLOPs.

    Args:
        runs: list of results of a setting.
        others: list of results of another.
        budget: float.

    Returns:
        `Interval` of the differences, seed by seed; `None` if they share no seed.
    """
    theirs = {run["course"]["seed"]: final(run, budget) for run in others}
    pairs = [(final(run, budget), theirs.get(run["course"]["seed"])) for run in runs]
    found = [end - other for end, other in pairs if None not in (end, other)]
    return Interval.of(found) if found else None


def curve(runs: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """The mean curve of some runs at constant rate: FLOPs and losses."""
    points = [dict(map(tuple, run["curve"])) for run in runs]
    shares = sorted(set(points[0]).intersection(*points[1:]))
    losses = np.mean([[p[share] for share in shares] for p in points], axis=0)
    return np.array(shares), losses
