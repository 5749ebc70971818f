"""Results as tables in Markdown."""

from collections.abc import Sequence

from keras_fusion.t5.markdown import table as written
from keras_fusion.t5.results import Statistics, flops_to_reach, settings_with_runs


def markdown(results: dict) -> str:
    """All tables of a recipe's results.

    Args:
        results: what `results.collect` returns.

    Returns:
        Text in Markdown, with a heading for each table.
    """
    parts = []
    for name, table in results["tables"].items():
        if not list(settings_with_runs(table)):
            continue
        parts += [f"### {name}: pre-training", pretraining(table)]
        parts += [f"### {name}: cost", costs(table)]
        finetuned = finetuning(table)
        if finetuned:
            parts += [f"### {name}: fine-tuning", finetuned]
    return "\n\n".join(parts) + "\n"


def pretraining(table: dict) -> str:
    """Validation loss and token accuracy of each setting, and the change by its fusion.

    Args:
        table: one of `results["tables"]`.
    """
    rows = []
    for name, setting in settings_with_runs(table):
        runs = setting["runs"]
        starts = [run["points"][0]["loss"] for run in runs]
        changes = [r["start"]["mean_change"] for r in runs if r["start"]]
        ensembles = [
            r["start"]["ensemble_loss"] for r in runs if "ensemble_loss" in r["start"]
        ]
        rows.append(
            (
                name,
                f"`{setting['tree']}`",
                str(len(runs)),
                _of(ensembles, 3) if ensembles else "",
                _of(starts, 3) if changes else "",
                f"{max(changes):.0e}" if changes else "",
                _of([run["loss"] for run in runs], 3),
                _of([100 * run["accuracy"] for run in runs], 2),
            )
        )
    head = (
        "setting",
        "tree",
        "seeds",
        "parents' ensemble",
        "loss after the fusion",
        "mean change by it",
        "validation loss",
        "token accuracy, %",
    )
    return written(head, rows)


def costs(table: dict) -> str:
    """Cost of each setting, with its parents and without.

    Args:
        table: one of `results["tables"]`.
    """
    baseline = table["settings"][table["baseline"]]["runs"]
    rows = []
    for name, setting in settings_with_runs(table):
        cost = [run["cost"] for run in setting["runs"]]
        rows.append(
            (
                name,
                f"{cost[0]['flops'] / 1e12:.2f}",
                f"{cost[0]['own_flops'] / 1e12:.2f}",
                *_shares(setting["runs"], baseline),
                _of([60 * c["accelerator_hours"] for c in cost], 1),
                _of([60 * c["own_accelerator_hours"] for c in cost], 1),
                _of([60 * c["hours_in_series"] for c in cost], 1),
                _of([60 * c["hours_in_parallel"] for c in cost], 1),
            )
        )
    head = (
        "setting",
        "TFLOP",
        "without parents",
        "to the baseline's loss",
        "without parents",
        "device minutes",
        "without parents",
        "wall minutes, in series",
        "in parallel",
    )
    return written(head, rows)


def finetuning(table: dict) -> str:
    """Scores of each setting's model on the tasks that it was fine-tuned on.

    Args:
        table: one of `results["tables"]`.

    Returns:
        Text, empty if nothing was fine-tuned.
    """
    columns, majority = {}, {}
    for name, setting in settings_with_runs(table):
        for run in setting["runs"]:
            for task, scores in run["finetuned"].items():
                for part, metrics in scores["metrics"].items():
                    for metric, value in metrics.items():
                        key = f"{task} {part}, {metric}"
                        columns.setdefault(key, {}).setdefault(name, []).append(value)
                        majority[key] = scores["majority"][part][metric]
    if not columns:
        return ""
    rows = [
        (name, *(_of(values.get(name, []), 3) for values in columns.values()))
        for name, _ in settings_with_runs(table)
    ]
    rows.append(("most frequent answer", *(f"{majority[key]:.3f}" for key in columns)))
    return written(("setting", *columns), rows)


def _of(values, digits):
    return Statistics.of(values).text(digits) if values else ""


def _shares(runs, baseline):
    """The FLOPs to the baseline's loss, with those of the parents and without."""
    if not baseline:
        return "", ""
    loss = Statistics.of([run["loss"] for run in baseline]).mean
    whole = baseline[0]["cost"]["flops"]
    reached = [flops_to_reach(run, loss) for run in runs]
    return tuple(
        _share([flops and flops[part] for flops in reached], whole) for part in (0, 1)
    )


def _share(flops: Sequence[int | None], whole: int) -> str:
    """The mean share of the baseline's FLOPs, and how many runs never got there."""
    found = [f for f in flops if f is not None]
    if not found:
        return "never"
    text = f"{sum(found) / len(found) / whole:.0%}"
    missing = len(flops) - len(found)
    return text + (f" ({missing} of {len(flops)} never)" if missing else "")
