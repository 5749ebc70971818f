"""The study for one card, at its smallest scale."""

import json

import keras
import numpy as np
import pytest
from studies import prose

from experiments.one_card import scales
from experiments.one_card.__main__ import main
from experiments.one_card.packed_text import Batches, PackedText


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """The documentation as one file of tokens, packed by the command."""
    folder = tmp_path_factory.mktemp("one_card")
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    main(["--pack", "text.npz", "--source", str(prose(folder))])
    patch.undo()
    return folder / "text.npz"


@pytest.mark.core
@pytest.mark.slow
@pytest.mark.skipif(
    keras.config.backend() != "jax", reason="the command's backend is JAX"
)
def test_study_tells_of_all_runs(packed, tmp_path, monkeypatch):
    path = tmp_path / "card.json"
    arguments = ["--text", str(packed), "--scale", "tiny", "--results", str(path)]
    main(arguments)
    found = json.loads(path.read_text())
    (pair,) = scales.TINY.pairs
    kinds = (
        "small alone",
        "scratch, rate 0.004",
        "grown at 30%",
        "small alone, then grown",
    )
    runs = {kind: found["runs"][f"{pair}: {kind}"] for kind in kinds}
    assert found["complete"] and found["policy"] == "mixed_bfloat16"
    steps = runs["scratch, rate 0.004"]["steps"]
    assert {run["steps"] for run in runs.values()} == {steps, round(steps / 2)}
    assert runs["small alone"]["flops"] < runs["grown at 30%"]["flops"]
    assert runs["grown at 30%"]["flops"] < runs["scratch, rate 0.004"]["flops"]
    for run in runs.values():
        assert np.isfinite(run["loss"]) and run["seconds"] > 0
    event = runs["grown at 30%"]["growth"]
    assert event["step"] == round(0.3 * steps)
    assert event["params_after"] > event["params_before"]
    # A second call finds all done, and trains nothing.
    monkeypatch.setattr(keras.Model, "fit", None)
    main(arguments)
    assert json.loads(path.read_text())["runs"] == found["runs"]


def test_study_ends_when_its_time_is_over(packed, tmp_path):
    path = tmp_path / "card.json"
    arguments = ["--text", str(packed), "--scale", "tiny", "--results", str(path)]
    main([*arguments, "--minutes", "0"])
    found = json.loads(path.read_text())
    assert not found["complete"] and not found["runs"]


def test_batches_are_determined_by_seed_and_step(packed):
    text = PackedText.read(packed)
    first, again, other = (
        Batches(text, lambda rows: rows, 3, 4, 9, seed) for seed in (0, 0, 1)
    )
    assert first[1].shape == (4, 9)
    np.testing.assert_array_equal(first[1], again[1])
    assert (first[1] != other[1]).any() and (first[1] != first[2]).any()
