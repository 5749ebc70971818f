"""Results as tables, with a picture for each."""

from pathlib import Path

import numpy as np

from experiments.harness import analysis, figures
from experiments.harness.analysis import Interval
from experiments.harness.results import Results
from experiments.harness.study import Study
from keras_fusion.t5 import markdown

Settings = dict[str, list[dict]]  # the runs of each setting, by its name


def text(study: Study, folder: Path, pictures: Path | None = None) -> str:
    """All tables of a study.

    Args:
        study: `Study`.
        folder: `Path` of all results.
        pictures: `Path` of a folder to draw a picture for each table into. Defaults to
            none.

    Returns:
        Text in Markdown, with a heading for each folder of results.
    """
    parts = [_case(study, case, folder, pictures) for case in study.cases]
    for heading, name in study.tables.items():
        results = Results(folder / name).all()
        settings = analysis.settings(results, study.chosen_on)
        if not scratch(settings):
            continue
        parts += [f"### {heading}"] * bool(heading)
        # Cases have pictures of their own.
        if pictures is not None and not study.cases:
            picture = pictures / f"{name.replace('/', '_')}.png"
            figures.draw(settings, scratch(settings), picture)
            parts.append(f"![Loss against FLOPs]({picture.name})")
        parts += [summary(settings), rates(results), losses(results, settings, study)]
        if study.sweeps:  # A concluded one keeps the tables that it had.
            parts.append(shares(results, settings))
    return "\n\n".join(parts) + "\n"


def _case(study, case, folder, pictures):
    """A heading, a picture, and the settings of one case side by side."""
    results = Results(folder / study.name).all()
    settings = analysis.settings(results, study.chosen_on)
    parts = [f"### {case.title}"]
    if pictures is not None:
        figures.draw_case(settings, case, pictures / case.picture)
    parts.append(f"![Final loss against FLOPs: {case.title}]({case.picture})")
    rows = []
    for name in case.settings:
        runs = settings[name]
        others = _ended(analysis.reference(results, runs))
        share = analysis.against(runs, others, parents=case.parents)
        envelope = analysis.against(runs, analysis.alone(results), parents=case.parents)
        rows.append(
            (
                name,
                str(len(runs)),
                _ends(runs, case.parents),
                share.text(),
                envelope.text(),
            )
        )
    head = ("setting", "seeds", "loss after FLOPs", "of scratch's", "of the envelope's")
    return "\n\n".join([*parts, markdown.table(head, rows)])


def _ends(runs, parents):
    """The mean final losses after the FLOPs."""
    ends = np.mean([analysis.ends(run, parents=parents) for run in runs], axis=0)
    return ", ".join(f"{loss:.3f} after {spent:.2f}" for spent, loss in ends)


def scratch(settings: Settings) -> list[dict]:
    """The runs from scratch that came to the end of the budget."""
    return _ended(settings.get("scratch", []))


def _ended(runs):
    return [run for run in runs if analysis.final(run) is not None]


def summary(settings: Settings) -> str:
    """A sentence on what all of them have in common."""
    runs = scratch(settings)
    ends = Interval.of([analysis.final(run) for run in runs])
    costs = ", ".join(f"{cost / 1e9:.2f}" for cost in runs[0]["costs"].values())
    return (
        f"{runs[0]['params']:,} parameters grown; {costs} GFLOP a step; a budget of "
        f"{runs[0]['budget'] / 1e12:.1f} TFLOP, after which the run from scratch ends at "
        f"{ends:.3f} (seeds: {len(runs)})."
    )


def rates(results: list[dict]) -> str:
    """The sweep of rates of the runs that do not grow, of one seed."""
    decays = len({analysis.weight_decay(run) for run in results}) > 1
    rows = []
    for run in sorted(analysis.merged(results), key=_by_rate):
        course = run["course"]
        if not course["growths"] and course["seed"] == 0:
            first = course["setting"], f"{course['rate']:g}"
            first += (f"{analysis.weight_decay(run):g}",) * decays
            rows += [
                (*first, f"{end['spent']:.2g}", f"{end['loss']:.3f}")
                for end in run["finals"]
            ]
    head = "no growth", "rate", *("weight decay",) * decays, "FLOPs", "final loss"
    return markdown.table(head, rows)


def _by_rate(run):
    course = run["course"]
    return course["setting"], course["rate"], analysis.weight_decay(run)


def losses(results: list[dict], settings: Settings, study: Study) -> str:
    """Each setting: final losses by budget, and the FLOPs to scratch's final loss.

    Beside them, what it ends above (+) or below (-) the reference at an equal budget,
    seed by seed.

    Args:
        results: list of all results.
        settings: the runs of each setting, see `analysis.settings`.
        study: `Study`, which names the reference.
    """
    reference = next((name for name in study.reference if name in settings), None)
    tuned = [run for runs in settings.values() for run in runs]
    budgets = sorted({f["budget"] for r in tuned for f in r["finals"]})
    head = ["setting", "seeds", "parents' share"]
    head += [f"loss at {budget:g}" for budget in budgets]
    head += [f"to self-fusion at {study.compared_at:g}"] * bool(study.reference)
    head += ["FLOPs to scratch's loss", "without the parents'"]
    rows = []
    for name, runs in sorted(settings.items(), key=lambda item: _order(*item)):
        row = [name, str(len({run["course"]["seed"] for run in runs}))]
        row.append(f"{runs[0]['parents_share']:.2f}")
        for budget in budgets:
            found = [analysis.final(run, budget) for run in runs]
            found = [loss for loss in found if loss is not None]
            row.append(f"{Interval.of(found):.3f}" if found else "")
        if study.reference:
            others = settings.get(reference, [])
            above = analysis.above(runs, others, study.compared_at)
            row.append("" if above is None or name == reference else f"{above:+.3f}")
        rows.append(
            [*row, *_to_scratch(name, runs, _ended(analysis.reference(results, runs)))]
        )
    return markdown.table(head, rows)


def _to_scratch(name, runs, others):
    """The FLOPs to scratch's final loss, with the parents' and without."""
    if name == "scratch":  # What it spends is the unit.
        return "1", ""
    with_parents, without = (
        analysis.saving(runs, others, parents=parents).text()
        for parents in ("counted", "free")
    )
    return with_parents, without if analysis.is_grown(runs) else ""


def shares(results: list[dict], settings: Settings) -> str:
    """Each setting's FLOPs as a share of others' at its own final loss.

    Others are the runs from scratch whose rate falls alike, annealed at several budgets,
    and the envelope of all runs that do not grow, whatever their size and settings.
    """
    rows = []
    for name, runs in sorted(settings.items(), key=lambda item: _order(*item)):
        if name != "scratch":
            ends = [analysis.ends(run)[-1] for run in runs]
            others = _ended(analysis.reference(results, runs))
            rows.append(
                (
                    name,
                    f"{Interval.of([spent for spent, _ in ends]):.2f}",
                    f"{Interval.of([loss for _, loss in ends]):.3f}",
                    analysis.against(runs, others).text(),
                    analysis.against(runs, others, parents="free").text(),
                    analysis.against(runs, analysis.alone(results)).text(),
                )
            )
    head = ("setting", "FLOPs", "final loss", "of scratch's FLOPs at this loss")
    return markdown.table((*head, "without the parents'", "of the envelope's"), rows)


def _order(name, runs):
    """Runs without growth first, then what ends lowest."""
    lowest = min(f["loss"] for r in runs for f in r["finals"])
    return analysis.is_grown(runs), lowest, name
