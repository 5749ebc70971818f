"""The figures of the pages and of the recipes are those of the committed results."""

import pytest
from repository import ROOT

import keras_fusion
from experiments import growth_limit
from experiments.harness import analysis, study_files, tables
from experiments.harness.results import RESULTS, Results


def cells(text):
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]


def tables_and_page(name, page):
    """A study's tables, which are in the page, and the page."""
    text = tables.text(study_files.load(name), RESULTS)
    page = (ROOT / "docs" / page).read_text(encoding="utf-8")
    inside = page.split("<!-- tables begin -->")[1].split("<!-- tables end -->")[0]
    assert cells(inside) == cells(text)
    return text, page


# What docs/savings.md says of a setting; the parents' FLOPs may be left out in the first.
STATED = {
    ("decoder_128x4", "savings.md"): {
        "fuse the two, half the rate": ("two parents", True),
        "new random features, half the rate": ("one parent, new features", True),
        "fuse the four (three seeds)": ("four parents", True),
        "one layer of four: new blocks after 45% of the steps": (
            "depth 1 to 4, new blocks, at 0.45",
            False,
        ),
        "one layer, half as wide: grow in width, then in depth": (
            "width then depth: 64x1, 128x1, 128x4",
            False,
        ),
        "two models of half the width, fused early": (
            "two parents, counted, at 0.3",
            False,
        ),
        "one model of half the width, grown early": (
            "width 64 to 128, new features, at 0.3",
            False,
        ),
    },
    ("decoder_96x8", "savings_depth.md"): {
        "[stack it on itself](savings_depth.md), half the rate (three seeds)": (
            "four layers that exist, copies",
            True,
        ),
        "[two layers of eight: stack them](savings_depth.md) after half of the steps "
        "(three seeds)": (
            "depth 2 to 8, copies",
            False,
        ),
    },
}


@pytest.mark.parametrize(("study", "page"), STATED)
def test_the_cases_are_those_of_the_page(study, page):
    text, _ = tables_and_page(study, page)
    shares = {row[0]: row[3:] for row in cells(text) if len(row) == 6}
    savings = (ROOT / "docs" / "savings.md").read_text(encoding="utf-8")
    stated = {row[1]: row[2:] for row in cells(savings) if len(row) == 5}
    for words, (setting, is_free) in STATED[study, page].items():
        free, *counted = [cell.strip("*") for cell in stated[words]]
        assert counted == [shares[setting][0], shares[setting][2]], words
        assert free == (shares[setting][1] if is_free else ""), words


def test_the_recipes_have_the_figures_of_the_studies():
    for figure in keras_fusion.recipes.FIGURES.values():
        results = Results(RESULTS / figure.study).all()
        planned = study_files.load(figure.study)
        settings = analysis.settings(results, planned.chosen_on)
        runs = settings[figure.setting]
        assert len(runs) == figure.seeds
        if figure.share is not None:
            parents = runs[0]["course"]["parents"]
            others = analysis.reference(results, runs)
            found = analysis.against(runs, others, parents=parents)
            assert f"{found.share.mean:.2f}" == f"{figure.share:.2f}"
        else:
            pairs = zip(runs, settings["scratch"], strict=True)
            below = [
                analysis.final(other) - analysis.final(run, 0.02)
                for run, other in pairs
            ]
            words = f"{min(below):.3f} to {max(below):.3f} nats below"
            assert words in " ".join(figure.text.split())


def test_over_trained_parents_need_what_the_pages_say():
    results = Results(RESULTS / "decoder_64x4").all()
    chosen_on = study_files.load("decoder_64x4").chosen_on
    settings = analysis.settings(results, chosen_on)
    runs = settings["two over-trained parents, a quarter of the rate"]
    scratch = analysis.reference(results, runs)
    better = [x for x in results if x["course"]["setting"].endswith("initial values")]

    def needed(run, others):
        """The share of the FLOPs until what others of the same seed end at."""
        own = [x for x in others if x["course"]["seed"] == run["course"]["seed"]]
        last = min(loss for x in own for at, loss in analysis.ends(x) if at == 1.0)
        return analysis.reached(analysis.ends(run, parents="free"), last).share

    page = " ".join((ROOT / "docs" / "savings.md").read_text(encoding="utf-8").split())
    shares = [needed(run, scratch) for run in runs]
    mean = f"{analysis.Interval.of(shares):.2f}"
    each = "{:.2f}, {:.2f} and {:.2f}"
    assert f"after {each.format(*shares)} of its FLOPs, so {mean}." in page
    # The best run from scratch of that size has other initial values.
    assert each.format(*(needed(run, better) for run in runs)) in page


def test_the_savings_are_those_of_the_page():
    text, page = tables_and_page("savings", "savings_first_study.md")
    for heading, model, rate in (
        ("The default: decoder", "decoder", ("0.45 ± 0.11", "0.20 ± 0.10")),
        ("The default: T5", "T5", ("0.44 ± 0.02", "0.19 ± 0.01")),
    ):
        part = text.split(f"### {heading}\n")[1].split("###")[0]
        (row,) = [r for r in cells(part) if r[0] == "self-fusion, noise 0.25"]
        assert tuple(row[-2:]) == rate
        # What the page states, from the same figures.
        stated = [r for r in cells(page) if r[0].startswith(f"{model}, 1.05M")]
        shares = {share.split(" ")[0] for share in rate}
        assert len(stated) == 1 and shares <= set(stated[0])


def test_the_limit_of_a_growth_is_that_of_the_law():
    law, ratio, tokens = (0.34, 0.28), 3.0, 0.7
    skipped = growth_limit.skipped(law, ratio, tokens)

    def loss(parameters, tokens):
        # At N = D = 1 the model is compute-optimal.
        return law[1] * parameters ** -law[0] + law[0] * tokens ** -law[1]

    assert loss(1.0, skipped) == pytest.approx(loss(1 / ratio, tokens))
    around = [loss(c, 1 / c) for c in (0.98, 1.0, 1.02)]
    assert min(around) == around[1]
    # Whatever the moment, no growth is cheaper.
    for read in (0.1, 0.5, 2.0):
        left = max(1.0 - growth_limit.skipped(law, ratio, read), 0.0)
        assert growth_limit.counted(law, 1.0) <= read / ratio + left + 1e-4
    assert growth_limit.free(law, ratio) > growth_limit.free(law, ratio, 10.0)


def test_the_limit_is_that_of_the_page():
    page = (ROOT / "docs" / "savings.md").read_text(encoding="utf-8")
    assert growth_limit.text().strip() in page
