"""The fit of a scaling law to a study's results, and what it predicts."""

import dataclasses
import re

import numpy as np
import pytest
from repository import ROOT

from experiments import law
from experiments.harness.results import RESULTS, Results
from experiments.harness.study import Size
from keras_fusion import ScalingLaw

TRUE = ScalingLaw(3.3, 5700.0, 0.8, 1000.0, 0.5)
PARAMS = {"32x4": 110_000, "64x4": 330_000, "96x4": 660_000}
TOKENS = 3200 * 2048
SIZES = {name: dataclasses.asdict(Size.parse(name)) for name in PARAMS}


def run(setting, size, ends, growths=(), seed=0, parents="counted"):
    """A run whose losses are those of the law."""
    costs = {name: 1e4 * n for name, n in PARAMS.items()}
    finals = []
    for end in ends:
        spent, worth = end * PARAMS[size] / PARAMS["64x4"], end * TOKENS
        last = size
        for growth in growths:
            last = law.size_name(growth["to"])
            loss = TRUE.loss(PARAMS[size], growth["at"] * TOKENS)
            kept = TRUE.tokens(PARAMS[last], loss)
            kept += MIXING * (growth["at"] * TOKENS - kept)
            rest = end if parents == "free" else end - growth["at"]
            spent = growth["at"] * PARAMS[size] / PARAMS["64x4"] + rest
            worth = kept + rest * TOKENS
        loss = float(TRUE.loss(PARAMS[last], worth))
        finals.append({"budget": end, "spent": spent, "loss": loss})
    own = growths[0]["at"] * PARAMS[size] / PARAMS["64x4"] if growths else 0.0
    return {
        "course": {
            "setting": setting,
            "size": SIZES[size],
            "rate": 0.01,
            "seed": seed,
            "parents": parents,
            "growths": list(growths),
            "model": {"batch_size": 32, "row_length": 64},
            "budget": {"size": SIZES["64x4"]},
        },
        "budget": 3200 * costs["64x4"],
        "costs": costs,
        "params": PARAMS[law.size_name(growths[0]["to"]) if growths else size],
        "parents_share": own,
        "finals": finals,
        "curve": [],
    }


MIXING = 0.1
GROWTH = {"to": SIZES["64x4"], "at": 0.5}
EXISTING = {"to": SIZES["64x4"], "at": 1.0}


def results():
    ends = np.geomspace(0.05, 1.6, 24).tolist()
    found = []
    for seed in (0, 1):
        found += [
            run("scratch", "64x4", ends, seed=seed),
            run("small alone", "32x4", ends, seed=seed),
            run("bigger", "96x4", ends, seed=seed),
            run("grown", "32x4", (0.8, 1.0), [GROWTH], seed),
            run("parent", "32x4", (0.3, 0.6), [EXISTING], seed, "free"),
        ]
    return found


def test_law_and_mixing_of_runs_that_follow_them_are_found():
    found = results()
    scale = law.units(found)
    assert scale.tokens == TOKENS and scale.params == PARAMS
    fitted = law.fitted(found, [0], scale)
    assert fitted.loss(2e5, 1e6) == pytest.approx(TRUE.loss(2e5, 1e6), abs=1e-3)
    cases = law.cases(found, scale)
    assert len(cases) == 8 and {case.name for case in cases} == {"grown", "parent"}
    chosen = law.mixings(cases, fitted, scale, [0])
    for case in cases:
        assert chosen[case.kind] == pytest.approx(MIXING, abs=0.021)
        predicted = law.predicted(case, fitted, scale, chosen[case.kind])
        assert predicted == pytest.approx(case.measured, abs=0.03)
    text = law.text(found, [0])
    assert text.count("| held out") == text.count("| fitted") == 4
    assert "Within 0.05 are 4 of 4 held-out ends: 2 of 2 from trained models" in text
    assert law.text(found, [0], found).count("| held out") == 8


def test_a_way_of_growing_has_one_mixing_whoever_pays_for_the_parents():
    free = [run for run in results() if run["course"]["setting"] != "grown"]
    chosen = law.chosen_mixings(free, [0])
    assert list(chosen) == ["copies, free"]
    text = law.text(results(), [0], free)
    assert "Within 0.05 are 8 of 8 held-out ends: 4 of 4 from trained models" in text
    others = chosen | {"copies, counted": 0.5, "copied blocks, free": -0.5}
    assert law._of_kind(others, "copies, counted") == 0.5
    assert law._of_kind(others, "new blocks, free") is None


def test_what_the_planner_predicts_is_that_of_the_page():
    ours, other = (
        Results(RESULTS / name).all() for name in ("decoder_128x4", "decoder_64x4")
    )
    page = (ROOT / "docs" / "savings.md").read_text(encoding="utf-8")
    assert law.text(ours, [0], other).strip() in page
    near, free, nothing = re.search(
        r"are (\S+ of \S+) held-out ends: (.+) from trained models, and (.+) from noth",
        page,
    ).groups()
    assert f"{near} such" in " ".join(page.split())
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    said = f"{near} such figures within 0.05: {free} from trained models, but only"
    assert f"{said} {nothing} from nothing" in " ".join(readme.split())
