"""Pictures of results: losses against FLOPs."""

from pathlib import Path

import numpy as np

from experiments.harness import analysis
from experiments.harness.study import Case
from keras_fusion.analysis.plotting import methods

DRAWN = 6  # grown settings in a picture, those with the most seeds first
OFFSET = 0.013  # between dots, in shares of the longest run: as wide as they are
# Dots nearer than this, in shares of the FLOPs and in nats, lie on each other.
BESIDE, NEAR = 0.014, 0.005
Settings = dict[str, list[dict]]  # the runs of each setting, by its name


def draw(settings: Settings, scratch: list[dict], path: Path) -> None:
    """Draws curves at constant rate, and the ends of the finished runs as dots.

    Args:
        settings: the runs of each setting.
        scratch: list of the runs from scratch that came to the end of the budget.
        path: `Path` of the picture.
    """
    from matplotlib.figure import Figure

    grown = [name for name, runs in settings.items() if analysis.is_grown(runs)]
    grown.sort(key=lambda name: (-len(settings[name]), _lowest(settings[name])))
    drawn = grown[:DRAWN]
    names = [n for n in ("scratch", "small alone", *drawn) if n in settings]
    figure = Figure(figsize=(9, 5.2), dpi=120, layout="constrained")
    axes, ends = figure.subplots(), []
    shifts = _side_by_side(drawn, [run for name in names for run in settings[name]])
    for name, style in methods.styles(names).items():
        runs = settings[name]
        colour = style["color"]
        axes.plot(*analysis.curve(runs), color=colour, linewidth=1.2, alpha=0.6)
        points = [end for run in runs for end in analysis.ends(run)]
        ends += [loss for _, loss in points]
        places = [(spent + shifts.get(name, 0.0), loss) for spent, loss in points]
        style = style | {"linestyle": "none", "ms": 5, "label": name}
        axes.plot(*zip(*places, strict=True), **style)
    spread = max(ends) - min(ends)
    axes.set_ylim(min(ends) - 0.1 * spread, max(ends) + 1.0 * spread)
    lowest = min(analysis.final(run) for run in scratch)
    axes.axhline(lowest, color="#000000", lw=0.6, ls=":", label="scratch, best end")
    axes.set_xlabel("FLOPs, the parents' included (share of the run from scratch)")
    axes.set_ylabel("loss (nats per token)")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="upper right")
    # Runs that are trained many at a time have no other losses along their way.
    axes.set_title(
        "Dots, side by side: validation loss of finished runs. "
        "Lines: at constant rate, of validation or training batches.",
        fontsize=10,
    )
    figure.savefig(path)


def _side_by_side(names, runs):
    """Shifts of settings that may end after as many FLOPs, so that each is seen.

    None has the shift zero, at which the settings stand that are not grown.
    """
    longest = max(spent for run in runs for spent, _ in analysis.ends(run))
    left = len(names) // 2
    places = [*range(-left, 0), *range(1, len(names) - left + 1)]
    return {
        n: OFFSET * max(longest, 1.0) * p for n, p in zip(names, places, strict=True)
    }


def _lowest(runs):
    return min(f["loss"] for r in runs for f in r["finals"])


def draw_case(settings: Settings, case: Case, path: Path) -> None:
    """Draws the finished runs of a case, of those from scratch, and of the small ones.

    Args:
        settings: the runs of each setting.
        case: `Case`.
        path: `Path` of the picture.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.2), dpi=120, layout="constrained")
    axes = figure.subplots()
    styles = methods.styles([*case.settings, *case.beside])
    placed = []
    for name in case.settings:
        placed += _line(axes, settings[name], name, styles[name], case.parents, placed)
    low, high = axes.get_ylim()
    left, _ = axes.get_xlim()
    for name in case.beside:
        _line(axes, settings[name], name, styles[name] | {"marker": "."})
        high = max(high, min(end["loss"] for end in settings[name][0]["finals"]))
    axes.set_ylim(low - 0.1 * (high - low), high + 0.4 * (high - low))
    axes.set_xlim(left * 0.8, 1.6)
    axes.set_xscale("log")
    ticks = [t for t in (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5) if t > left * 0.8]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    which = {
        "counted": "the parents' included",
        "free": "without the parents'",
        "parallel": "the longest way, parents in parallel",
    }[case.parents]
    axes.set_xlabel(f"FLOPs, {which} (share of the run from scratch)")
    axes.set_ylabel("final validation loss (nats per token)")
    axes.set_title(case.title)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(path)


def _line(axes, runs, name, style, parents="counted", placed=()):
    """Draws the means of the finished runs, with the range of the seeds.

    Args:
        axes: matplotlib's.
        runs: list of results of a setting.
        name: string, for the legend.
        style: dict, see `methods.styles`.
        parents: string, see `analysis.ends`.
        placed: list of points that are drawn already. A setting of which one would
            hide it stands a little further to the right.

    Returns:
        List of its points.
    """
    ends = np.array([analysis.ends(run, parents=parents) for run in runs])
    spent, losses = ends[:, :, 0].mean(0), ends[:, :, 1]
    mean = losses.mean(0)
    while any(_hides(p, q) for p in placed for q in zip(spent, mean, strict=True)):
        spent = spent * (1 + BESIDE)
    seeds = f" ({len(runs)} seed{'s' * (len(runs) > 1)})"
    error = np.abs([losses.min(0) - mean, losses.max(0) - mean])
    error = error if len(runs) > 1 else None
    axes.errorbar(spent, mean, error, label=name + seeds, lw=1.4, ms=6, **style)
    return list(zip(spent, mean, strict=True))


def _hides(one, other):
    """Whether two points of losses after FLOPs lie on each other in a picture."""
    return abs(one[0] / other[0] - 1) < BESIDE and abs(one[1] - other[1]) < NEAR
