"""The studies' harness: its accounts, its tables, and a tiny study from end to end."""

import dataclasses
import json
import re
import types

import keras
import numpy as np
import pytest
from repository import ROOT
from studies import TINY, prose

pytest.importorskip("keras_hub")
pytest.importorskip("sentencepiece")

import experiments.__main__ as command_line  # noqa: E402
import keras_fusion  # noqa: E402
from experiments import growth_limit  # noqa: E402
from experiments.harness import (  # noqa: E402
    analysis,
    initialization,
    study,
    study_files,
    tables,
)
from experiments.harness.analysis import Interval, Reached, reached  # noqa: E402
from experiments.harness.clock import Clock  # noqa: E402
from experiments.harness.results import RESULTS, Results  # noqa: E402
from experiments.harness.study import Budget, Course, Growth, Model, Size  # noqa: E402
from experiments.harness.tasks import Decoder  # noqa: E402

SMALL, LARGE = Size(8, 1), Size(16, 1)
STEPS = 500


def cost(size):
    return {SMALL: 70, LARGE: 230}[size]


def course(*growths, size=SMALL, clock="flops", **options):
    model = Model("decoder", {"name": "Adam"})
    budget = Budget(LARGE, STEPS, clock=clock)
    text = study.Text("somewhere")
    return Course("x", size, 1e-3, text, model, budget, growths, **options)


# Accounts.


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


# Studies as data.


def test_the_first_seed_chooses_the_rate_for_the_others():
    sweep = study.Sweep(course(), (1.0, 2.0), (5, 6, 7))
    planned = study.Study("x", "x", (sweep,), {})
    losses = {}

    def runs():
        found = planned.courses(lambda c: losses.get((c.seed, c.rate)))
        return [(c.seed, c.rate) for c in found]

    assert runs() == [(5, 1.0), (5, 2.0)]
    losses[5, 1.0] = 3.0
    assert runs() == [(5, 1.0), (5, 2.0)]
    losses[5, 2.0] = 2.0
    assert runs() == [(5, 1.0), (5, 2.0), (6, 2.0), (7, 2.0)]


def test_a_courses_name_stays_when_options_are_added():
    first = course()
    assert dataclasses.replace(first, parents="counted").name == first.name
    assert dataclasses.replace(first, parents="free").name != first.name
    assert dataclasses.replace(first, rate=2e-3).name != first.name


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('to = "16x1"', 'to = "16"', "'64x4'. Received: '16'"),
        ("operator", "operater", "'operater'"),
        ("steps = 24", "", "`steps` or `tokens_per_parameter`"),
        ('title = "', 'titel = "', "'title'"),
        ('new_blocks = "random"', 'new_blocks = "new"', "Received: 'new'"),
    ],
)
def test_a_study_that_cannot_be_read_says_why(tmp_path, old, new, message):
    path = tmp_path / "wrong.toml"
    assert old in TINY
    path.write_text(TINY.replace(old, new, 1))
    with pytest.raises(ValueError, match=f"wrong.toml.*{re.escape(message)}"):
        study_files.load(str(path))


@pytest.mark.parametrize(
    "path", sorted(study_files.STUDIES.glob("*.toml")), ids=lambda p: p.stem
)
def test_every_study_of_the_repository_can_be_read(path):
    planned = study_files.load(path.stem)
    names = [c.name for c in planned.courses(lambda c: c.rate)]
    assert len(set(names)) == len(names)
    assert bool(names) != bool(planned.tables.keys() - {""})  # concluded, or to be run


def test_the_example_of_the_readme_is_a_study(tmp_path):
    text = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    path = tmp_path / "example.toml"
    path.write_text(example)
    found = list(study_files.load(str(path)).courses(lambda c: c.rate))
    assert [c.setting for c in found] == 2 * ["scratch"] + [
        "two parents that exist",
        *(2 * ["scratch"]),  # the other seeds
    ]
    optimizers = [c.model.optimizer for c in found[1:3]]
    assert [o.pop("weight_decay") for o in optimizers] == [0.1, 1.0]
    assert optimizers[0] == optimizers[1]


# Initial values.


def decoder(**options):
    settings = Model("decoder", {"name": "Adam"}, initialization=options)
    vocabulary = types.SimpleNamespace(size=600)
    return Decoder(settings, types.SimpleNamespace(vocabulary=vocabulary))


def by_name(model):
    return {v.path: keras.ops.convert_to_numpy(v) for v in model.weights}


def test_initial_values_are_those_that_the_study_names():
    values = by_name(decoder().fresh(Size(64, 2), 0))
    options = {"kernels": "fan_in", "residual": "by_depth", "embeddings": 0.3}
    drawn = by_name(decoder(**options).fresh(Size(64, 2), 0))
    block = "transformer_layer_1/"
    for name, expected in {
        "token_embedding/embeddings": 0.3,
        "token_embedding/reverse_embeddings": 1 / 8,
        f"{block}self_attention/query/kernel": 1 / 8,
        f"{block}self_attention/attention_output/kernel": 1 / 8 / 2,
        f"{block}feedforward_gate_dense/kernel": 1 / 8,
        f"{block}feedforward_output_dense/kernel": 1 / np.sqrt(170) / 2,
    }.items():
        assert np.std(drawn[name]) == pytest.approx(expected, rel=0.05)
        assert np.std(values[name]) < 0.03
    norm = f"{block}feedforward_layernorm/scale"
    np.testing.assert_array_equal(drawn[norm], values[norm])
    with pytest.raises(ValueError, match="'kernels': 'fanin'"):
        decoder(kernels="fanin").fresh(Size(32, 1), 0)


def test_only_new_blocks_are_renewed():
    task = decoder()
    model, fresh = task.compiled(Size(32, 3), 0, 1e-3), task.fresh(Size(32, 3), 1)
    model.optimizer.build(model.trainable_variables)
    for slot in model.optimizer.variables[2:]:
        slot.assign(keras.ops.ones(slot.shape, slot.dtype))
    before, new = by_name(model), by_name(fresh)
    initialization.renew_blocks(model, model.optimizer, fresh, old_layers=1)
    for name, value in by_name(model).items():
        renewed = "transformer_layer_1/" in name or "transformer_layer_2/" in name
        np.testing.assert_array_equal(value, (new if renewed else before)[name])
    for slot in model.optimizer.variables[2:]:
        renewed = "layer_1_" in slot.path or "layer_2_" in slot.path
        expected = 0.0 if renewed and slot.path.endswith("momentum") else 1.0
        assert np.all(keras.ops.convert_to_numpy(slot) == expected), slot.path
    with pytest.raises(ValueError, match="behind the first 3"):
        initialization.renew_blocks(model, model.optimizer, fresh, old_layers=3)


# The concluded study.


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
        "[stack it on itself](savings_depth.md), half the rate": (
            "four layers that exist, copies",
            True,
        ),
        "[two layers of eight: stack them](savings_depth.md) after half of the steps": (
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


# A study from end to end.


@pytest.mark.slow
def test_a_tiny_study_goes_on_after_a_stop(tmp_path, capsys):
    path = tmp_path / "tiny.toml"
    path.write_text(TINY.replace("TEXT", str(prose(tmp_path))))
    folder = tmp_path / "results" / "tiny"

    def command(name, *options):
        places = (
            "--work",
            str(tmp_path / "work"),
            "--results",
            str(tmp_path / "results"),
        )
        assert command_line.main([name, str(path), *places, *options]) == 0
        return capsys.readouterr().out

    # Stopped between two runs: the first is kept, and not done again.
    assert command("status").count("to do") == 3
    assert command("run", "--runs", "1").count("finished") == 1
    (first,) = folder.glob("*.json")
    before = first.read_bytes(), first.stat().st_mtime_ns
    shown = command("run")
    assert shown.count("finished") == 3 and "to do" not in shown
    assert (first.read_bytes(), first.stat().st_mtime_ns) == before
    assert command("run").count("seed") == 3  # Nothing is left to do.

    results = {result["course"]["setting"]: result for result in Results(folder).all()}
    scratch, fused, grown = (
        results[name]
        for name in ("scratch", "two parents, annealed, free", "width, then depth")
    )
    assert scratch["text"]["sha256"] == grown["text"]["sha256"]
    assert [f["budget"] for f in scratch["finals"]] == [0.5, 1.0]
    assert all(f["loss"] < np.log(400) for r in results.values() for f in r["finals"])

    assert fused["parents_share"] == pytest.approx(2 * fused["own_share"])
    assert fused["params"] == scratch["params"] == fused["events"][0]["params_after"]
    spent = fused["finals"][0]["spent"] - fused["parents_share"]
    assert spent == pytest.approx(0.5)

    width, depth = grown["events"]
    assert (
        width["operator"].startswith("HyperCloning") and width["function_change"] < 1e-4
    )
    assert (width["step"], depth["step"]) == (6, 12)
    text = command("table")
    assert "of scratch's FLOPs at this loss" in text and "| width, then depth" in text


def test_results_of_different_texts_are_not_mixed(tmp_path):
    for name, checksum in (("a", "12"), ("b", "34")):
        result = {
            "course": {"text": {"source": "novels"}},
            "text": {"sha256": checksum},
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    with pytest.raises(ValueError, match=r"different texts 'novels'.*'12', '34'"):
        Results(tmp_path).all()


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
