"""Results as curves: validation loss against training FLOPs."""

import math
from pathlib import Path

import numpy as np

from keras_fusion.analysis.plotting import methods
from keras_fusion.errors import FusionError
from keras_fusion.t5.results import settings_with_runs


def draw(results: dict, folder: Path) -> list[Path]:
    """Draws a picture for each table.

    On the left the FLOPs of a tree's root count alone; on the right its parents' come
    first. The line is the mean over the seeds, the band their range.

    Args:
        results: what `results.collect` returns.
        folder: `Path`. Gets `t5_SCALE_TABLE.png`.

    Returns:
        List of the `Path`s that were written; empty if nothing has been trained.

    Raises:
        FusionError: if the seeds of a setting were evaluated after different steps.
    """
    paths = []
    for name, table in results["tables"].items():
        if list(settings_with_runs(table)):
            paths.append(folder / f"t5_{results['scale']}_{name}.png")
            _draw(f"{name}, {results['scale']} scale", table, paths[-1])
    return paths


def _draw(title, table, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.2), dpi=120, layout="constrained")
    sides = figure.subplots(1, 2, sharey=True)
    for axes, with_parents in zip(sides, (False, True), strict=True):
        settings = dict(settings_with_runs(table))
        for name, style in methods.styles(settings).items():
            _curve(axes, name, settings[name]["runs"], style, with_parents)
        axes.set_xlabel(
            "training TFLOP, "
            + ("those of the parents first" if with_parents else "without the parents'")
        )
        axes.set_xlim(left=0)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    sides[0].set_ylabel("validation loss (nats per token)")
    sides[0].set_ylim(*_limits(table))
    handles = sides[1].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _curve(axes, name, runs, style, with_parents):
    if len({tuple(p["step"] for p in run["points"]) for run in runs}) > 1:
        raise FusionError(
            f"The seeds of {name!r} were evaluated after different steps, so they have no "
            "mean curve. Train them with one recipe, or leave the setting out of it."
        )
    losses = np.array([[p["loss"] for p in run["points"]] for run in runs])
    steps = np.array([p["step"] for p in runs[0]["points"]])
    cost = runs[0]["cost"]
    before = (cost["flops"] - cost["own_flops"]) * with_parents
    flops = (before + steps * runs[0]["step_flops"]) / 1e12
    style = {key: style[key] for key in ("color", "linestyle")}
    axes.plot(flops, losses.mean(axis=0), label=name, linewidth=1.6, **style)
    band = losses.min(axis=0), losses.max(axis=0)
    axes.fill_between(flops, *band, color=style["color"], alpha=0.15)


def _limits(table):
    """Limits without the first fall of trainings from scratch, which dwarfs the rest."""
    runs = [run for _, s in settings_with_runs(table) for run in s["runs"]]
    ends = [run["loss"] for run in runs]
    starts = [run["points"][0]["loss"] for run in runs if run["start"]]
    shown = [loss for loss in (*ends, *starts) if math.isfinite(loss)]
    if not shown:  # all of them diverged
        return None, None
    lowest, upper = min(shown), max(shown)
    spread = upper - lowest or 1.0  # of a single run
    return lowest - 0.05 * spread, upper + 0.15 * spread
