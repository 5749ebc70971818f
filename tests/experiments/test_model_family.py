"""What a family of models by depth costs, against three trainings."""

import pytest
from repository import ROOT

from experiments import model_family
from experiments.harness.results import RESULTS, Results
from experiments.harness.study import Size

S, M, L = (vars(Size.parse(size)) for size in ("64x1", "64x2", "64x4"))


def run(setting, size, finals, growths=(), parents_share=0.0, seed=0):
    """A run with these ends: the share of the steps, FLOPs and loss of each."""
    return {
        "course": {
            "setting": setting,
            "size": size,
            "rate": 0.01,
            "seed": seed,
            "parents": "free",
            "growths": list(growths),
            "model": {"decay": 0.2},
            "budget": {"size": L},
        },
        "parents_share": parents_share,
        "finals": [
            {"budget": budget, "spent": spent, "loss": loss}
            for budget, spent, loss in finals
        ],
        "curve": [],
    }


def family(seed=0, last=3.0):
    first = {"to": M, "at": 1.0}
    return [
        run(model_family.ALONE["S"], S, [(1.0, 0.4, 3.8)], seed=seed),
        run(model_family.ALONE["M"], M, [(1.0, 0.6, 3.5)], seed=seed),
        run("scratch", L, [(0.5, 0.5, 3.3), (1.0, 1.0, 3.0)], seed=seed),
        run(
            model_family.GROWN["M"],
            M,
            [(0.25, 0.55, 3.6), (0.5, 0.7, 3.5)],
            [first],
            0.4,
            seed=seed,
        ),
        run(
            model_family.GROWN["L"],
            S,
            [(0.4, 1.2, last)],
            [first, {"to": L, "at": 1.5}],
            0.7,
            seed=seed,
        ),
    ]


def test_a_family_pays_for_what_is_grown_and_for_what_is_handed_out():
    (found,) = model_family.families(family())
    assert found.separate == {"S": 0.4, "M": 0.6, "L": 1.0}
    assert found.losses == {"S": 3.8, "M": 3.5, "L": 3.0}
    # S falls over a fifth of 0.4; M costs half of 0.6, and falls over a fifth of 0.3.
    expected = {"S": 0.48, "M": 0.36, "L": 0.5}
    assert found.grown == pytest.approx(expected)
    assert found.share == pytest.approx(1.34 / 2)


def test_a_family_that_does_not_come_to_the_losses_has_no_share():
    with pytest.raises(ValueError, match="does not come to 3.000"):
        model_family.families(family(last=3.1))


def test_seeds_without_all_runs_and_those_of_the_choice_are_left_out():
    results = family() + family(seed=1)[:-1] + family(seed=2)
    assert [x.seed for x in model_family.families(results)] == [0, 2]
    assert [x.seed for x in model_family.families(results, (0,))] == [2]


def test_what_the_planner_predicts_is_that_of_the_page():
    results = Results(RESULTS / model_family.STUDY).all()
    page = (ROOT / "docs" / "savings.md").read_text(encoding="utf-8")
    predicted = f"predicts {model_family.predicted(results):.2f} of three trainings"
    assert predicted in " ".join(page.split())


def test_the_table_has_a_row_for_each_seed():
    found = model_family.families(family() + family(seed=1))
    *_, last = model_family.table(found).splitlines()
    assert last.startswith("| 1 | 3.800 |") and last.endswith("| 0.67 |")
    assert f"{model_family.share(found):.2f}" == "0.67 ± 0.00"
