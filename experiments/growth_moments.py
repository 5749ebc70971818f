"""Draws the pictures of docs/growth_moments.md from the results of that study.

python -m experiments.growth_moments

The study is concluded: what trained its models is in revision b30562e. Drawn are the final
losses of one task over the moment of the growth, and over the effect that the bracket of
`keras_fusion.dynamics` predicted.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from keras_fusion.analysis.plotting import figure, methods

ROOT = Path(__file__).parent
TASKS = ("narrow", "decoder", "t5")
BESIDE = 0.01  # between dots, in shares of the budget
STAR = {"marker": "*", "color": figure.INK, "markersize": 11, "linestyle": "none"}


def sweep(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs, without those that only a planner asked for."""
    asked = {results["planner"], results["schedule"]} - set(results["moments"])
    runs = [run for run in results["runs"].values() if run["step"] not in asked]
    return sorted(runs, key=lambda run: (run["factor"], run["step"]))


def predicted(results: dict[str, Any], run: dict[str, Any]) -> float:
    """The bracket's effect on the loss of a run, in nats, for optimizers such as Adam."""
    field, rate = results["bracket"][str(run["step"])]["sign"], results["rate"]
    small, big = run["step"] * rate, run["grown_steps"] * run["factor"] * rate
    effect = small * field["along_small"] + big * field["along_big"]
    return -small * big / 2 * effect


def draw(results: dict[str, Any], path: Path) -> None:
    """Draws the sweep of one task."""
    drawn = figure.new_figure(10, 4.8)
    left, right = drawn.subplots(1, 2, sharey=True)
    runs = sweep(results)
    factors = sorted({run["factor"] for run in runs})
    names = {factor: f"self-fused, rate x {factor:g}" for factor in factors}
    styles = methods.styles(names.values())
    # Nothing is nearer to zero than the smallest, so each power gets no room there.
    smallest = min(abs(predicted(results, run)) for run in runs)
    right.set_xscale("symlog", linthresh=10.0 ** np.floor(np.log10(smallest)))
    for number, (factor, name) in enumerate(names.items()):
        own = [run for run in runs if run["factor"] == factor]
        losses = [run["loss"] for run in own]
        style = styles[name] | {"label": name}
        # Those that grow at one moment stand beside each other.
        shares = [_share(results, run["step"]) + BESIDE * number for run in own]
        left.plot(shares, losses, **style)
        style["linestyle"] = "none"
        right.plot([predicted(results, run) for run in own], losses, **style)
    _draw_rivals(left, results)
    left.set_title("By the moment of the growth")
    right.set_title("By the prediction of backward error analysis")
    left.set_xlabel("FLOPs before the growth (share of the budget)")
    left.set_ylabel("final validation loss (nats per token)")
    right.xaxis.get_major_locator().set_params(numticks=7)
    right.set_xlabel("bracket's effect on the loss, as predicted (nats)")
    for axes in (left, right):
        figure.tidy(axes)
    handles, labels = left.get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    figure.save(drawn, str(path))


def _draw_rivals(axes: Any, results: dict[str, Any]) -> None:
    """Training from scratch, and what was proposed before the sweep."""
    scratch = methods.styles(["from scratch"])["from scratch"]
    axes.axhline(
        results["scratch"][-1][1],
        color=scratch["color"],
        linestyle=":",
        label="from scratch, for the same FLOPs",
    )
    for name, key, dashes in (
        ("propose", "planner", "--"),
        ("WhenItPays", "schedule", "-."),
    ):
        step = results[key]
        if not step:
            continue
        share = _share(results, step)
        axes.axvline(
            share, color=figure.GREY, linestyle=dashes, label=f"moment chosen by {name}"
        )
        own = [run["loss"] for run in results["runs"].values() if run["step"] == step]
        if own:
            axes.plot(share, min(own), **STAR)
    axes.plot([], [], label="best run of a chosen moment", **STAR)


def _share(results: dict[str, Any], step: int) -> float:
    return step * results["small_cost"] / results["budget"]


def main() -> None:
    """Draws all tasks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=ROOT.parent / "docs")
    folder = parser.parse_args().folder
    for task in TASKS:
        source = ROOT / "results" / f"growth_moments_{task}.json"
        draw(json.loads(source.read_text()), folder / f"growth_moments_{task}.png")


if __name__ == "__main__":
    main()
