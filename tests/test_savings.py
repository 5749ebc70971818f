"""The study of savings: its accounts, its interpolation, and a whole tiny run of it."""

import dataclasses
import pathlib
import sys

import numpy as np
import pytest
import tensorflow as tf

sys.path.append(str(pathlib.Path(__file__).parents[1]))
pytest.importorskip("keras_hub")
pytest.importorskip("sentencepiece")

from benchmarks.savings import analysis, courses, data, study, tasks  # noqa: E402
from benchmarks.savings.__main__ import RESULTS, TASKS  # noqa: E402
from benchmarks.savings.courses import Course, Growth  # noqa: E402
from benchmarks.savings.results import Results  # noqa: E402
from benchmarks.savings.running import Runner  # noqa: E402
from benchmarks.savings.tasks import Size  # noqa: E402
from keras_fusion.t5 import corpus
from keras_fusion.t5.documents import Source, open_source

SMALL, LARGE = Size(1, 1), Size(2, 1)


class Costs:
    """A task whose steps cost what is said, and nothing else."""

    budget = 100_000

    def cost(self, size):
        return 70 if size == SMALL else 230


@pytest.mark.parametrize("parents", [1, 2])
@pytest.mark.parametrize("at", [0.1, 0.35])
def test_all_flops_are_counted_once(parents, at):
    growth = Growth(LARGE, at, parents=parents)
    course = Course("x", "none", SMALL, 1e-3, (growth,), (0.5, 0.9))
    before, after = found = courses.phases(course, Costs())
    assert after.spent == parents * after.begin * 70
    assert after.own == after.begin * 70
    assert after.spent / Costs.budget == pytest.approx(at, abs=0.003)
    for branch in courses.branches(course, Costs()):
        steps = branch.end - after.begin
        assert courses.spent_at(found, branch.end) == after.spent + steps * 230
        spent = courses.spent_at(found, branch.end) / Costs.budget
        assert spent == pytest.approx(branch.budget, abs=0.003)
        fall = (branch.end - branch.begin) * 230 / Costs.budget
        assert fall == pytest.approx(courses.DECAY * branch.budget, abs=0.006)


def test_a_late_growth_comes_before_the_fall():
    course = Course("x", "none", SMALL, 1e-3, (Growth(LARGE, 0.48),), (0.5,))
    (branch,) = courses.branches(course, Costs())
    assert branch.begin == courses.phases(course, Costs())[-1].begin


def test_a_budget_that_the_small_model_has_spent_has_no_end():
    course = Course("x", "none", SMALL, 1e-3, (Growth(LARGE, 0.48),), (0.3, 0.48, 0.5))
    assert [b.budget for b in courses.branches(course, Costs())] == [0.5]


def test_interpolation_finds_a_power_law_between_two_ends():
    # A loss that is linear in the logarithm of the FLOPs is met exactly.
    shares = [0.3, 0.5, 0.8]
    ends = [(share, 3 - np.log(share)) for share in shares]
    for share in (0.31, 0.5, 0.66):
        found = analysis.reached(ends[::-1], 3 - np.log(share))
        assert found.share == pytest.approx(share) and not found.bound
    assert analysis.reached(ends, 3 - np.log(0.9)) is None
    assert analysis.reached(ends, 9.0) == analysis.Reached(0.3, bound=True)


def test_savings_are_compared_seed_by_seed():
    def run(seed, offset):
        ends = [{"spent": s, "loss": offset - np.log(s)} for s in (0.2, 0.4, 0.8)]
        return {"course": {"seed": seed}, "parents_share": 0.1, "finals": ends}

    scratch = {0: 3.0, 1: 3.1}
    runs = [run(seed, loss + np.log(0.5)) for seed, loss in scratch.items()]
    found = analysis.saving([*runs, run(7, 9.0)], scratch, parents=True)
    assert found.share.mean == pytest.approx(0.5) and found.missed == 0
    assert found.share.half == pytest.approx(0.0, abs=1e-6)
    without = analysis.saving(runs, scratch, parents=False)
    assert 0.35 < without.share.mean < 0.42
    late = analysis.saving([run(0, 9.0)], scratch, parents=True)
    assert late.text() == "not reached"


def test_settings_are_compared_seed_by_seed():
    def run(seed, loss):
        finals = [{"budget": 0.6, "loss": loss}]
        return {"course": {"seed": seed}, "finals": finals}

    others = [run(seed, 3.0 + seed) for seed in range(3)]
    runs = [run(seed, 3.5 + seed) for seed in (1, 2, 7)]
    assert f"{analysis.above(runs, others, 0.6):+.2f}" == "+0.50 ± 0.00"
    assert f"{analysis.above(others[1:2], runs, 0.6):+.2f}" == "-0.50"
    assert analysis.above(others[:1], runs, 0.6) is None
    assert analysis.above(runs, others, 1.0) is None


@pytest.mark.parametrize("task", TASKS)
def test_the_committed_study_has_all_its_runs(task):
    results = Results(RESULTS)
    found = study.courses([task], results)
    assert len(found) > 5 and all(results.read(course) for course in found)


def test_a_sweep_ends_where_it_has_turned(tmp_path):
    results = Results(tmp_path)
    sweep = [Course("x", "none", SMALL, rate) for rate in (4.0, 1.0, 2.0, 8.0)]

    def finish(course, loss):
        results.write(course, {"finals": [{"budget": 1.0, "loss": loss}]})

    for course, loss, expected in [
        (sweep[1], 5.0, None),
        (sweep[2], 4.0, None),  # the next higher rate may be better still
        (sweep[0], 3.0, None),
        (sweep[3], 3.5, sweep[0]),
    ]:
        finish(course, loss)
        assert results.turn(sweep, 1.0) == expected
    finish(sweep[1], 1.0)  # The lowest rate has no neighbour below.
    assert results.turn(sweep, 1.0) == results.best(sweep, 1.0) == sweep[1]


def test_interval_holds_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(2000, 3))
    found = [analysis.Interval.of(list(values)) for values in draws]
    held = np.mean([abs(i.mean) <= i.half for i in found])
    assert held == pytest.approx(0.95, abs=0.015)


def test_packages_are_held_out_by_file_and_copies_are_left_out(tmp_path, monkeypatch):
    def write(name, *documents):
        path = tmp_path / name / "module.py"
        path.parent.mkdir(parents=True)
        bodies = (f'def f{i}():\n    """{d}"""\n' for i, d in enumerate(documents))
        path.write_text("\n".join(bodies))

    common = "What two libraries say with few changes. " * 4
    for number in range(60):
        own = f"Number {number} of the packages, in words enough to be kept."
        write(f"package{number:02}", own, common + f"Changed {number}.")
    monkeypatch.setattr(corpus.sysconfig, "get_paths", lambda: {"purelib": tmp_path})
    found = corpus.installed_packages(validation_fraction=0.3)
    every = [*found.training, *found.validation]
    assert len(every) == 61 and sum(common in text for text in every) == 1
    assert 5 < len(found.validation) < 35
    # A file more changes nothing for the others.
    write("another", "One package more, and nothing else is another one now.")
    more = corpus.installed_packages(validation_fraction=0.3)
    assert set(found.validation) - {t for t in every if common in t} <= set(
        more.validation
    )
    source = open_source("installed-packages")
    assert source.name == "installed-packages"
    assert len(list(source.training[0]())) + len(list(source.validation[0]())) == 62


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    documents = corpus.standard_library()
    source = Source(
        "some",
        (lambda: tf.data.Dataset.from_tensor_slices(list(documents.training)),),
        (lambda: tf.data.Dataset.from_tensor_slices(list(documents.validation)),),
    )
    return data.prepare(tmp_path_factory.mktemp("text"), source)


class Tiny(tasks.Decoder):
    """The decoder of the study, with a budget of nothing."""

    full = Size(2, 1)
    scratch_steps, warmup_steps, validation_batches = 24, 4, 1


@pytest.mark.slow
def test_a_course_grows_in_fit_and_finds_the_small_model_again(text, tmp_path):
    task = Tiny(text)
    training = {"learning_rate_factor": 0.5}
    growth = Growth(
        Tiny.full, 0.3, options={"off_diagonal": "zeros"}, training=training
    )
    course = Course("x", "decoder", Size(1, 1), 1e-2, (growth,), (0.6, 1.0))
    runner, results = Runner(task, tmp_path / "trunks"), Results(tmp_path)
    result = runner(course)
    results.write(course, result)
    assert results.read(course) == result
    assert results.read(dataclasses.replace(course, seed=1)) is None
    (event,) = result["events"]
    assert event["params_after"] == result["params"] > event["params_before"]
    assert event["function_change"] < 1e-4
    low, high = (final["loss"] for final in result["finals"])
    assert high < low < np.log(text.vocabulary.size)
    # The small model's training is found in its file, and not done again.
    step = courses.phases(course, task)[1].begin - 1
    states = list((tmp_path / "trunks").rglob("state.npz"))
    assert len(states) == 1 and f"step-{step:06}" in str(states[0])
    before = states[0].stat().st_mtime_ns
    again = runner(course)
    assert states[0].stat().st_mtime_ns == before
    for one, other in zip(result["finals"], again["finals"], strict=True):
        assert other["loss"] == pytest.approx(one["loss"], abs=2e-3)
