"""The T5 command line: a whole tree, real kills, and what comes of it."""

import json
import os
import re
import signal
import subprocess
import sys

import keras
import pytest
from t5_stores import begin, write_recipe

from keras_fusion.t5 import __main__ as command_line
from keras_fusion.t5.data import prepare
from keras_fusion.t5.recipe import load
from keras_fusion.t5.store import Store

# The tree of the recipe's table.
SELF_FUSED = "M[rate=0.7](2*S1)"
TREES = ["--tree", "M(S, S)", "--tree", SELF_FUSED]


@pytest.fixture(scope="module")
def scale(tmp_path_factory):
    """The tiny recipe with smaller numbers."""
    return write_recipe(tmp_path_factory.mktemp("recipe") / "smoke.toml", num_layers=1)


def run(*words):
    return command_line.main([*map(str, words)])


def start(*words):
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "keras_fusion.t5", *map(str, words)]
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def finish(process):
    """Waits for a process, and returns what it showed."""
    shown, _ = process.communicate()
    assert process.returncode == 0
    return shown


def kill_at(pattern, *words):
    """Starts a process and kills it when it shows a line."""
    process = start(*words)
    for line in process.stdout:
        if re.search(pattern, line):
            os.kill(process.pid, signal.SIGKILL)
            break
    process.stdout.close()
    return process.wait()


def losses(folder):
    found = {}
    for path in folder.glob("seed-*/*/result.json"):
        result = json.loads(path.read_text())
        found[result["node"]] = [(p["step"], p["loss"]) for p in result["points"]]
    return found


@pytest.mark.slow
def test_a_killed_tree_ends_as_one_that_ran_through(tmp_path, scale, capsys):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    words = "pretrain", "--scale", scale, "--tree", "M(2*S)", "--output"
    through = start(*words, whole)  # at the same time, in a process of its own
    # In the middle of a fused training, between two states.
    assert kill_at(r"M\(2\*S1\) +step +30/40", *words, killed) == -signal.SIGKILL
    assert "M(2*S1)" in finish(start(*words, killed))
    finish(through)
    expected, found = losses(whole), losses(killed)
    assert set(found) == set(expected) == {"S1", "M(2*S1)"}
    for node, points in expected.items():
        assert dict(found[node]) == pytest.approx(dict(points), abs=1e-6)
        assert points[-1][1] < points[0][1]
    assert run(*words, killed) == 0
    assert capsys.readouterr().out == ""  # nothing is run again


@pytest.mark.slow
def test_a_state_of_another_model_is_refused(tmp_path, scale, capsys):
    words = "pretrain", "--scale", scale, "--output", tmp_path / "out", "--tree", "S"
    prepare(load(scale), tmp_path / "out" / "data")
    entry = begin(Store(tmp_path / "out"), scale, "S")  # arrays of its own
    assert run(*words) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "state.npz' cannot be used: ValueError" in line and "Remove it" in line
    assert not entry.finished


@pytest.mark.slow
def test_a_fusion_can_begin_with_a_new_optimizer(tmp_path):
    options = {"optimizer_state": "reset", "norms": "calibrated", "steps": 4}
    options |= {"num_layers": 1, "evaluate_every": 2}
    scale = write_recipe(tmp_path / "smoke.toml", **options)
    out = tmp_path / "out"
    assert run("pretrain", "--scale", scale, "--output", out, "--tree", "M(S, S)") == 0
    assert [step for step, _ in losses(out)["M(S1,S2)"]] == [0, 2, 4]


@pytest.mark.slow
def test_from_a_tree_to_tables_and_curves(tmp_path, scale, capsys):
    output = "--scale", scale, "--output", tmp_path / "out"
    assert run("pretrain", *output, "--tree", "M(S2, S1)", "--only") == 2
    assert "starts from 'S2', which has not finished" in capsys.readouterr().err
    assert run("pretrain", *output, "--tree", "M(S, S)", "--dry-run") == 0
    assert "to do           40 steps  M(S1,S2)" in capsys.readouterr().out
    assert run("pretrain", *output, *TREES) == 0
    assert run("finetune", *output, "--tree", "M(S, S)") == 0
    # A second time there is nothing to do; with another rate it would be another tuning.
    capsys.readouterr()
    assert run("finetune", *output, "--tree", "M(S, S)") == 0
    assert capsys.readouterr().out == ""
    page = tmp_path / "page.md"
    page.write_text("<!-- tables begin -->\n<!-- tables end -->\n")
    assert run("table", *output, "--docs", page) == 0
    text = page.read_text()
    assert f"| self-fused | `{SELF_FUSED}` | 1 |" in text
    assert "builtin validation, accuracy" in text
    assert run("plot", *output) == 0
    assert (tmp_path / "out" / "t5_smoke_T5-M.png").stat().st_size > 10_000
    results = {
        result["node"]: result
        for path in (tmp_path / "out" / "seed-0").glob("*/result.json")
        if (result := json.loads(path.read_text()))
    }
    # Distinct parents start at their ensemble, and a self-fusion where its parent ended.
    fused, copies = results["M(S1,S2)"], results[SELF_FUSED]
    assert fused["points"][0]["loss"] == pytest.approx(
        fused["start"]["ensemble_loss"], abs=1e-4
    )
    assert copies["points"][0]["loss"] == pytest.approx(
        results["S1"]["points"][-1]["loss"], abs=1e-4
    )
    # A self-fusion keeps the function; and the file loads as any other.
    (folder,) = (tmp_path / "out" / "seed-0").glob("M*2-S1-*")
    result = json.loads((folder / "result.json").read_text())
    assert result["start"]["largest_change"] < 1e-5
    assert result["fingerprint"]["recipe"]["steps"] == 40
    assert set(result["fingerprint"]["parents"]) == {"S1"}
    model = keras.saving.load_model(folder / "model.keras", compile=False)
    assert model.count_params() == result["parameters"]
