"""Writes the study's results as tables and pictures: docs/savings.md."""

from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.savings import analysis
from benchmarks.savings.analysis import Interval
from keras_fusion.t5.tables import insert

TITLES = {
    "decoder-default": "The default: decoder",
    "t5-default": "The default: T5",
    "decoder": "Decoder (Llama, next tokens)",
    "t5": "T5 (span corruption, Adafactor)",
    "decoder-long": "The decoder on four times the budget",
    "t5-adam": "T5 with Adam, which does not train it well",
}
COLOURS = {"scratch": "#000000", "small alone": "#999999"}
# Okabe and Ito's palette, told apart by the colour-blind too.
PALETTE = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
# What the others are compared with: the first of these that was run.
REFERENCES = ("self-fusion, rate x1", "self-fusion, noise 0.25")
COMPARED = 0.6  # of the budget: where all settings were tried
DRAWN = 6  # grown settings in a picture, those with the most seeds first


def write(results: dict[str, list[dict]], page: Path) -> None:
    """Writes the tables into a page and the pictures beside it.

    Args:
        results: dict from a task's name to the results of its runs.
        page: `Path` of a page that has the marks of `keras_fusion.t5.tables`.
    """
    parts = []
    for task, found in results.items():
        found = analysis.merged(found)
        if not any(
            analysis.final(r) is not None for r in _settings(found).get("scratch", [])
        ):
            continue
        picture = f"savings_{task}.png"
        _draw(found, page.parent / picture)
        parts += [f"### {TITLES[task]}", f"![Loss against FLOPs]({picture})"]
        parts += [_summary(found), rates_table(found), settings_table(found)]
    insert("\n\n".join(parts) + "\n", page)


def _settings(results):
    """The runs of each setting at its best rate, in the order of their names."""
    found = {}
    for result in sorted(results, key=lambda r: r["course"]["seed"]):
        found.setdefault(result["course"]["setting"], []).append(result)
    return {name: tuned(runs) for name, runs in found.items()}


def tuned(runs: list[dict]) -> list[dict]:
    """Of runs at several rates those at the best one, by the first seed.

    Args:
        runs: list of results of one setting.
    """
    first = min(run["course"]["seed"] for run in runs)
    least = {}
    for run in runs:
        if run["course"]["seed"] == first:
            for end in run["finals"]:
                least.setdefault(end["budget"], []).append((end["loss"], _rate(run)))
    # At the largest of the budgets that most rates have been tried at.
    tried = max(least, key=lambda b: (len({rate for _, rate in least[b]}), b))
    best = min(least[tried])[1]
    return [run for run in runs if _rate(run) == best]


def _rate(run):
    return run["course"]["rate"]


def _scratch(results):
    return {
        run["course"]["seed"]: analysis.final(run)
        for run in _settings(results)["scratch"]
        if analysis.final(run) is not None
    }


def _summary(results):
    scratch = _scratch(results)
    one = _settings(results)["scratch"][0]
    costs = ", ".join(f"{cost / 1e9:.2f}" for cost in one["costs"].values())
    return (
        f"{one['params']:,} parameters grown; {costs} GFLOP a step; a budget of "
        f"{one['budget'] / 1e12:.1f} TFLOP, after which the run from scratch ends at "
        f"{Interval.of(list(scratch.values())):.3f} (seeds: {len(scratch)})."
    )


def rates_table(results: list[dict]) -> str:
    """The sweep of rates of the runs that do not grow, of one seed.

    Args:
        results: list of results of one task.
    """
    lines = ["| no growth | rate | FLOPs | final loss |", "|---|---|---|---|"]
    for run in sorted(results, key=lambda r: (r["course"]["setting"], _rate(r))):
        if not run["course"]["growths"] and run["course"]["seed"] == 0:
            lines += [
                f"| {run['course']['setting']} | {_rate(run):g} | {end['budget']:g} | "
                f"{end['loss']:.3f} |"
                for end in run["finals"]
            ]
    return "\n".join(lines)


def settings_table(results: list[dict]) -> str:
    """Each setting: final losses by budget, and the FLOPs to scratch's final loss.

    Beside them, what it ends above (+) or below (-) the reference at equal FLOPs, seed by
    seed.

    Args:
        results: list of results of one task.
    """
    settings, scratch = _settings(results), _scratch(results)
    reference = next((name for name in REFERENCES if name in settings), None)
    budgets = sorted({f["budget"] for r in results for f in r["finals"]})
    lines = [
        "| setting | seeds | parents' share | "
        + " | ".join(f"loss at {budget:g}" for budget in budgets)
        + f" | to self-fusion at {COMPARED:g} | FLOPs to scratch's loss "
        "| without the parents' |",
        "|---|---|---|" + "---|" * (len(budgets) + 3),
    ]
    for name, runs in sorted(settings.items(), key=lambda item: _order(*item)):
        row = [name, str(len({run["course"]["seed"] for run in runs}))]
        row.append(f"{runs[0]['parents_share']:.2f}")
        for budget in budgets:
            losses = [analysis.final(run, budget) for run in runs]
            losses = [loss for loss in losses if loss is not None]
            row.append(f"{Interval.of(losses):.3f}" if losses else "")
        above = analysis.above(runs, settings.get(reference, []), COMPARED)
        row.append("" if above is None or name == reference else f"{above:+.3f}")
        for parents in (True, False):
            grown = bool(runs[0]["course"]["growths"])
            text = analysis.saving(runs, scratch, parents=parents).text()
            if not grown:  # What scratch spends is the unit.
                text = ("1" if name == "scratch" else text) * parents
            row.append(text)
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def _order(name, runs):
    """Runs without growth first, then what ends lowest at the budget of the screening."""
    grown = bool(runs[0]["course"]["growths"])
    return grown, min(f["loss"] for r in runs for f in r["finals"]), name


def _draw(results, path):
    """Curves at constant rate, and the ends of the finished runs as dots."""
    settings = _settings(results)
    grown = [name for name in settings if settings[name][0]["course"]["growths"]]
    grown.sort(key=lambda name: (-len(settings[name]), _order(name, settings[name])))
    colours = COLOURS | dict(zip(grown[:DRAWN], PALETTE, strict=False))
    figure = Figure(figsize=(9, 5.2), dpi=120, layout="constrained")
    axes = figure.subplots()
    ends = []
    for name, colour in colours.items():
        if name not in settings:
            continue
        runs = settings[name]
        axes.plot(*analysis.curve(runs), color=colour, linewidth=1.2, alpha=0.6)
        points = [end for run in runs for end in analysis.ends(run, parents=True)]
        ends += [loss for _, loss in points]
        axes.plot(*zip(*points, strict=True), "o", color=colour, ms=5, label=name)
    spread = max(ends) - min(ends)
    axes.set_ylim(min(ends) - 0.1 * spread, max(ends) + 1.0 * spread)
    axes.axhline(min(_scratch(results).values()), color="#000000", lw=0.6, ls=":")
    axes.set_xlabel("FLOPs, the parents' included (share of the run from scratch)")
    axes.set_ylabel("validation loss (nats a token)")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    axes.set_title("Dots: finished runs. Lines: at constant rate.", fontsize=10)
    figure.savefig(path)
