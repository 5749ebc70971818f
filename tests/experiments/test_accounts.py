"""FLOPs of a course: what a clock plans, and what results mean."""

import numpy as np
import pytest
from studies import LARGE, STEPS, cost, course

from experiments.harness import analysis, study
from experiments.harness.analysis import Interval, Reached, reached
from experiments.harness.clock import Clock
from experiments.harness.study import Growth

# What a clock plans.


@pytest.mark.parametrize("parents", [1, 2])
@pytest.mark.parametrize("at", [0.1, 0.35])
def test_all_flops_are_counted_once(parents, at):
    growth = Growth(LARGE, at, parents=parents)
    clock = Clock(course(growth, budgets=(0.5, 0.9)), STEPS, cost)
    _, after = clock.phases
    assert clock.budget == 230 * STEPS
    assert after.spent == parents * after.begin * 70
    assert after.own == after.begin * 70
    assert clock.spent(after.begin) == pytest.approx(at, abs=0.003)
    for branch, budget in zip(clock.branches, (0.5, 0.9), strict=True):
        assert branch.budget == budget
        assert clock.spent(branch.end) == pytest.approx(budget, abs=0.003)
        fall = (branch.end - branch.begin) * 230 / clock.budget
        assert fall == pytest.approx(0.2 * budget, abs=0.006)


def test_a_clock_of_steps_counts_the_live_models():
    growth = Growth(LARGE, 0.4, parents=3)
    clock = Clock(course(growth, clock="steps"), STEPS, cost)
    assert clock.phases[1].begin == 0.4 * STEPS
    (branch,) = clock.branches
    assert (branch.begin, branch.end) == (0.8 * STEPS, STEPS)
    expected = (3 * 200 * 70 + 300 * 230) / (STEPS * 230)
    assert clock.spent(STEPS) == pytest.approx(expected)


@pytest.mark.parametrize("clock", study.CLOCKS)
def test_free_parents_leave_the_whole_budget(clock):
    growth = Growth(LARGE, 1.0, parents=2)
    planned = course(growth, clock=clock, parents="free", budgets=(0.25, 1.0))
    clock = Clock(planned, STEPS, cost)
    _, after = clock.phases
    for branch in clock.branches:
        assert branch.end - after.begin == branch.budget * STEPS
    assert after.spent == 2 * after.begin * 70


def test_a_late_growth_comes_before_the_fall():
    clock = Clock(course(Growth(LARGE, 0.48), budgets=(0.3, 0.48, 0.5)), STEPS, cost)
    (branch,) = clock.branches  # A budget that the small model has spent has no end.
    assert branch.budget == 0.5 and branch.begin == clock.phases[1].begin


# What results mean.


def test_interpolation_finds_a_power_law_between_two_ends():
    # A loss that is linear in the logarithm of the FLOPs is met exactly.
    shares = [0.3, 0.5, 0.8]
    ends = [(share, 3 - np.log(share)) for share in shares]
    for share in (0.31, 0.5, 0.66):
        found = reached(ends[::-1], 3 - np.log(share))
        assert found.share == pytest.approx(share) and not found.bound
    assert reached(ends, 3 - np.log(0.9)) is None
    assert reached(ends, 9.0) == Reached(0.3, "≤")


def run(seed, losses, *, setting="x", rate=1.0, parents=0.0):
    finals = [{"budget": s, "spent": s, "loss": loss} for s, loss in losses.items()]
    told = {"setting": setting, "seed": seed, "rate": rate, "growths": []}
    return {"course": told, "parents_share": parents, "finals": finals}


def law(seed, offset, *shares, **options):
    return run(seed, {s: offset - np.log(s) for s in shares}, **options)


def test_savings_are_compared_seed_by_seed():
    offsets = {0: 3.0, 1: 3.1}
    scratch = [law(seed, offset, 1.0) for seed, offset in offsets.items()]
    runs = [
        law(seed, offset + np.log(0.5), 0.2, 0.4, 0.8, parents=0.1)
        for seed, offset in offsets.items()
    ]
    found = analysis.saving([*runs, law(7, 9.0, 0.2)], scratch, parents="counted")
    assert found.share.mean == pytest.approx(0.5) and found.missed == 0
    assert found.share.half == pytest.approx(0.0, abs=1e-6)
    without = analysis.saving(runs, scratch, parents="free")
    assert 0.35 < without.share.mean < 0.42
    late = analysis.saving([law(0, 9.0, 0.2)], scratch, parents="counted")
    assert late.text() == "not reached"


def test_parents_in_parallel_count_once():
    shown = law(0, 3.0, 0.4, 0.8, parents=0.2)
    shown["course"]["growths"] = [{"parents": 4}]
    spent = {
        how: [round(x, 3) for x, _ in analysis.ends(shown, parents=how)]
        for how in ("counted", "parallel", "free")
    }
    assert spent["counted"] == [0.4, 0.8]
    assert spent["parallel"] == [0.25, 0.65]
    assert spent["free"] == [0.2, 0.6]


def test_a_run_is_held_against_the_frontier_of_others():
    others = [law(0, 3.0, 0.3, 0.6, 1.0), law(0, 9.0, 0.5, 0.9), law(1, 3.0, 0.3)]
    found = analysis.against([law(0, 3.0 + np.log(0.4), 0.2)], others)
    assert found.text() == "0.40"
    # Others have done better for less, or would need more than they had.
    assert analysis.against([law(0, 9.0, 0.6)], others).text() == "≥ 2.00"
    assert analysis.against([law(0, 1.0, 0.5)], others).text() == "≤ 0.50"
    assert analysis.frontier([(3, 1), (1, 2), (2, 2), (4, 1)]) == [(1, 2), (3, 1)]


def test_settings_are_compared_seed_by_seed_at_their_best_rates():
    others = [run(seed, {0.6: 3.0 + seed}) for seed in range(3)]
    runs = [run(seed, {0.6: 3.5 + seed}) for seed in (1, 2, 7)]
    assert f"{analysis.above(runs, others, 0.6):+.2f}" == "+0.50 ± 0.00"
    assert f"{analysis.above(others[1:2], runs, 0.6):+.2f}" == "-0.50"
    assert analysis.above(others[:1], runs, 0.6) is None
    assert analysis.above(runs, others, 1.0) is None
    worse = [run(0, {0.6: 4.0}, rate=2.0), run(1, {0.6: 2.0}, rate=2.0)]
    assert analysis.settings([*worse, *others]) == {"x": others}


def test_interval_holds_the_mean_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(size=(2000, 3))
    found = [Interval.of(list(values)) for values in draws]
    held = np.mean([abs(i.mean) <= i.half for i in found])
    assert held == pytest.approx(0.95, abs=0.015)
