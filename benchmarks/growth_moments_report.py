"""Writes the results of `growth_moments.py` as a table, a picture and rank correlations."""

import numpy as np
from matplotlib.figure import Figure

HEADER = """# When to grow, and at which learning rate

Written by `python benchmarks/growth_moments.py` (and `--task decoder`, `--task t5`) from
[its results](../benchmarks/results). A small model of half the width is trained on the
docstrings of Python's standard library with Adam at a constant rate of 3e-3, fused with
itself (paired noise of 0.1, optimizer state carried) at one of several steps, and trained
further at that rate times a factor until the budget of FLOPs is spent, the small model's
included; the rate decays over the last fifth. One seed. Validation losses are in nats per
token.
"""
VERDICT = """
The bracket does not predict which growth step and learning rate end lower. Its predicted
effect ranks the runs one way in two tasks and the other way in the third, and is thousands
of times as large as the loss itself: over a whole run the leading order is far outside its
range of validity. Its norm times both training times says little that those times alone do
not. What matters is which of the two models makes better use of the FLOPs. Where the small
one does to the end (the decoder and T5, on these budgets), later growth is better, and the
planner recommends not to grow. Where the wide one does (the narrow decoder), growth at a
tenth to a fifth of the budget is best, and the planner waits too long, at a small cost. A
quarter of the rate is never the best; whether half of it (`BracketRate`'s factor is close
to that) or the full rate is better depends on the growth step.
"""
SUMMARY = {
    "its effect": "bracket's effect on the loss (sign)",
    "its norm by both times": "norm of the bracket, by both times (sign)",
    "both times alone": "both times alone",
}
TITLES = {
    "narrow": "A narrow decoder (Llama, 48 to 96 wide, next tokens)",
    "decoder": "A decoder (Llama, 96 to 192 wide, next tokens)",
    "t5": "T5 (the demo's, 96 to 192 wide, span corruption)",
}


def write(results: dict[str, dict], folder) -> None:
    """Writes growth_moments.md and a picture for each task.

    Args:
        results: dict from a task's name to its results.
        folder: `Path` of the docs.
    """
    # A task with fewer moments has only just begun.
    results = {
        name: found
        for name, found in results.items()
        if len({run["step"] for run in sweep(found)}) >= 3
    }
    parts = [HEADER.rstrip(), _summary(results)]
    for name, found in results.items():
        picture = f"growth_moments_{name}.png"
        _draw(found, folder / picture)
        parts.append(f"## {TITLES[name]}\n\n![The sweep]({picture})")
        parts += [_sweep_table(found), _planner_text(found), _correlation_table(found)]
    (folder / "growth_moments.md").write_text("\n\n".join(parts) + "\n")


def sweep(results: dict) -> list[dict]:
    """The runs so far, without those that only a planner asked for."""
    asked = {results["planner"], results["schedule"]} - set(results["moments"])
    runs = [run for run in results["runs"].values() if run["step"] not in asked]
    return sorted(runs, key=lambda run: (run["step"], run["factor"]))


def _summary(results):
    """One row a task: the best of the sweep, the planner's, and rank correlations."""
    lines = ["## Results", VERDICT]
    lines.append(
        "| | best of the sweep | `propose` | `WhenItPays` | bracket: "
        + " | ".join(SUMMARY)
        + " |"
    )
    lines.append("|---" * (4 + len(SUMMARY)) + "|")
    for name, found in results.items():
        runs, known = sweep(found), predictors(found)
        best = min(run["loss"] for run in runs)
        cells = [TITLES[name].split(" (")[0], f"{best:.3f}"]
        for planner in ("planner", "schedule"):
            own = _best_at(found, found[planner])
            missing = "not run" if found[planner] else "no growth"
            cells.append(f"{own['loss'] / best - 1:+.1%}" if own else missing)
        losses = [run["loss"] for run in runs]
        cells += [_signed(rank_correlation(known[k], losses)) for k in SUMMARY.values()]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "Last three columns: rank correlations with the final loss, as below.",
    ]
    return "\n".join(lines)


def _best_at(results, step):
    """The best run that grew after a step, or `None`."""
    own = [run for run in results["runs"].values() if run["step"] == step]
    return min(own, key=lambda run: run["loss"], default=None)


def _signed(correlation):
    return "one rate only" if correlation is None else f"{correlation:+.2f}"


def _share(results, step):
    return step * results["small_cost"] / results["budget"]


def _scratch(results):
    return results["scratch"][-1][1]


def _sweep_table(results):
    runs = sweep(results)
    factors = sorted({run["factor"] for run in runs})
    lines = ["| growth after | of the FLOPs | small model's loss |"]
    lines[0] += "".join(f" rate x {f:g} |" for f in factors)
    lines.append("|---" * (3 + len(factors)) + "|")
    for step in sorted({run["step"] for run in runs}):
        at = results["bracket"][str(step)]["gradient"]["loss"]
        cells = [f"step {step}", f"{_share(results, step):.0%}", f"{at:.3f}"]
        by_factor = {r["factor"]: f"{r['loss']:.3f}" for r in runs if r["step"] == step}
        cells += [by_factor.get(factor, "") for factor in factors]
        lines.append("| " + " | ".join(cells) + " |")
    lines.append("")
    lines.append(
        f"Budget {results['budget'] / 1e12:.2f} TFLOP; from scratch, at the same rate "
        f"and FLOPs: {_scratch(results):.3f}. The small "
        "model's loss is measured on the analysis batch, at the growth."
    )
    return "\n".join(lines)


def _planner_text(results):
    runs = sweep(results)
    best = min(runs, key=lambda run: run["loss"])
    lines = ["### The planner", "", f"> {results['reason']}", ""]
    names = {
        "planner": "`propose`, with both models' curves",
        "schedule": "`WhenItPays`, from the small model's losses so far alone",
    }
    for name, title in names.items():
        step = results[name]
        if not step:
            lines.append(f"- {title}: no growth.")
            continue
        moment = f"growth after step {step} ({_share(results, step):.0%} of the FLOPs)"
        if _share(results, step) > 0.99:
            moment += ", that is, the small model alone"
        run = _best_at(results, step)
        if run is None:
            lines.append(f"- {title}: {moment}; not run.")
            continue
        gap = run["loss"] / best["loss"] - 1
        lines.append(
            f"- {title}: {moment}, rate x {run['factor']:g}; final loss "
            f"{run['loss']:.3f}, {gap:+.1%} relative to the sweep's best "
            f"({best['loss']:.3f}: step {best['step']}, rate x {best['factor']:g})."
        )
    return "\n".join(lines)


def predictors(results: dict) -> dict[str, list[float]]:
    """What could foretell the final loss of each run of the sweep."""
    found = {}

    def add(name, value):
        found.setdefault(name, []).append(value)

    for run in sweep(results):
        fields = results["bracket"][str(run["step"])]
        rate = results["rate"]
        small, big = run["step"] * rate, run["grown_steps"] * run["factor"] * rate
        for name in ("gradient", "sign"):
            field = fields[name]
            effect = small * field["along_small"] + big * field["along_big"]
            add(f"bracket's effect on the loss ({name})", -small * big / 2 * effect)
            add(f"norm of the bracket ({name})", field["bracket_norm"])
            add(
                f"norm of the bracket, by both times ({name})",
                small * big / 2 * field["bracket_norm"],
            )
        distance = abs(np.log(run["factor"] / fields["sign"]["rate_factor"]))
        # Without any field: what the bracket must do better than.
        add("both times alone", small * big)
        add("distance of the rate from `BracketRate`'s", float(distance))
        add("rate after the growth", run["factor"])
        add("moment of the growth", float(run["step"]))
        add("loss at the growth", fields["gradient"]["loss"])
    return found


def rank_correlation(a, b) -> float | None:
    """Spearman's: the correlation of the ranks, equal values sharing theirs.

    `None` where one of the two has a single value, which ranks nothing.
    """
    if len(set(a)) < 2 or len(set(b)) < 2:
        return None
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def _ranks(values):
    values = np.asarray(values)
    below = (values[None, :] < values[:, None]).sum(axis=1)
    equal = (values[None, :] == values[:, None]).sum(axis=1)
    return below + (equal - 1) / 2


def _correlation_table(results):
    losses = [run["loss"] for run in sweep(results)]
    factors = [run["factor"] for run in sweep(results)]
    lines = [
        "### What predicts the final loss",
        "",
        "Spearman's rank correlation with the final loss, over all runs of the sweep and "
        "over the growth steps alone (the mean over the rates): 1 if a larger value goes "
        "with a higher final loss. The fields are measured right after the growth, "
        "`gradient` for gradient descent and `sign` for optimizers such as Adam.",
        "",
        "| | all runs | moments |",
        "|---|---|---|",
    ]
    for name, values in predictors(results).items():
        within = []
        for factor in sorted(set(factors)):
            rows = [i for i, f in enumerate(factors) if f == factor]
            chosen = [values[i] for i in rows]
            within.append(rank_correlation(chosen, [losses[i] for i in rows]))
        within = [value for value in within if value is not None]
        cell = f"{np.mean(within):+.2f}" if within else "same for all"
        every = _signed(rank_correlation(values, losses))
        lines.append(f"| {name} | {every} | {cell} |")
    rows = [
        f"| step {step} | {found['sign']['rate_factor']:.2f} | "
        f"{found['gradient']['bracket_norm']:.3g} | "
        f"{found['gradient']['alignment']:.0e} |"
        for step, found in sorted(results["bracket"].items(), key=lambda i: int(i[0]))
    ]
    lines += [
        "",
        "| growth after | `BracketRate`'s factor, for Adam | norm of the bracket | its "
        "cosine with the descent |",
        "|---|---|---|---|",
        *rows,
    ]
    return "\n".join(lines)


def _draw(results, path):
    figure = Figure(figsize=(10, 4.5), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    runs = sweep(results)
    effect = predictors(results)["bracket's effect on the loss (sign)"]
    for factor in sorted({run["factor"] for run in runs}):
        rows = [i for i, run in enumerate(runs) if run["factor"] == factor]
        losses = [runs[i]["loss"] for i in rows]
        shares = [_share(results, runs[i]["step"]) for i in rows]
        left.plot(shares, losses, marker="o", label=f"rate x {factor:g}")
        right.plot([effect[i] for i in rows], losses, "o", label=f"rate x {factor:g}")
    left.axhline(_scratch(results), color="0.4", linestyle=":", label="from scratch")
    for name, style in (("planner", "--"), ("schedule", "-.")):
        if results[name]:
            share = _share(results, results[name])
            left.axvline(share, color="0.6", linestyle=style, label=name)
            if run := _best_at(results, results[name]):
                left.plot(share, run["loss"], marker="*", color="0.3", markersize=10)
    left.set_xlabel("share of the FLOPs before the growth")
    left.set_ylabel("final validation loss")
    # Nothing lies nearer to zero than the smallest, and each power has no room.
    smallest = 10.0 ** np.floor(np.log10(np.min(np.abs(effect))))
    right.set_xscale("symlog", linthresh=smallest)
    right.xaxis.get_major_locator().set_params(numticks=7)
    right.set_xlabel("bracket's effect on the loss (sign field)")
    left.legend()
    right.legend()
    figure.savefig(path)
