"""Studies as data, and a tiny one from end to end."""

import dataclasses
import json
import re

import numpy as np
import pytest
from repository import ROOT
from studies import TINY, course, prose

pytest.importorskip("keras_hub")
pytest.importorskip("sentencepiece")

import experiments.__main__ as command_line  # noqa: E402
from experiments.harness import study, study_files  # noqa: E402
from experiments.harness.results import Results  # noqa: E402


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
