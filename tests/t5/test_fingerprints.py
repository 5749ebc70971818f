"""Trainings say what they were made from, and nothing else is taken for them."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from t5_stores import SMALL, begin, figures, finished_store, write_recipe, write_texts

from keras_fusion.errors import FusionError
from keras_fusion.t5 import __main__ as command_line
from keras_fusion.t5 import data, fingerprint, forest, records
from keras_fusion.t5 import recipe as recipes
from keras_fusion.t5.store import Store
from keras_fusion.t5.tree import parse


@pytest.fixture
def folder(tmp_path):
    return write_texts(tmp_path / "texts")


@pytest.fixture
def scale(tmp_path, folder):
    return write_recipe(tmp_path / "smoke.toml", source=str(folder), **SMALL)


def test_what_a_node_does_not_depend_on_may_change(tmp_path, folder):
    options = SMALL | {"source": str(folder)}
    scale = write_recipe(tmp_path / "a.toml", **options)
    store = finished_store(tmp_path / "out", scale, "M(S, S)")
    other = write_recipe(tmp_path / "b.toml", checkpoint_every=3, seeds=2, **options)
    forest.check([(0, parse("M(S, S)"))], recipes.load(other), store)
    # A rate of fused nodes is nothing to their parents.
    faster = recipes.load(write_recipe(tmp_path / "c.toml", fused_rate=0.7, **options))
    assert fingerprint.check_result(parse("S"), 0, faster, store)
    with pytest.raises(FusionError, match="recipe.rate was 1.0 and is now 0.7"):
        fingerprint.check_result(parse("M(S, S)"), 0, faster, store)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peak_rate": 0.02}, "recipe.peak_rate was 0.03 and is now 0.02"),
        ({"steps": 41}, "recipe.steps was 40 and is now 41"),
        ({"batch_size": 5}, "recipe.batch_size was 4 and is now 5"),
        ({"warmup_steps": 49}, "recipe.warmup_steps was 50 and is now 49"),
        ({"constant_steps": 99}, "recipe.constant_steps was 100 and is now 99"),
        ({"evaluate_every": 9}, "recipe.evaluate_every was 10 and is now 9"),
        ({"noise_density": 0.2}, "recipe.noise_density was 0.15 and is now 0.2"),
        ({"mean_span_length": 2.0}, "recipe.mean_span_length was 3.0 and is now 2.0"),
        ({"num_layers": 3}, "recipe.num_layers was 2 and is now 3"),
    ],
)
def test_another_recipe_is_refused(tmp_path, scale, folder, capsys, change, message):
    """By every command that would take a result of the first one for its own."""
    store = finished_store(tmp_path / "out", scale, "M(S, S)")
    changed = SMALL | {"source": str(folder)} | change
    other = write_recipe(tmp_path / "other.toml", **changed)
    for command in ("pretrain", "finetune", "table"):
        words = command, "--scale", other, "--output", str(store.folder)
        assert command_line.main(list(words)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line and "Choose another --output" in line
    dry = "pretrain", "--scale", other, "--output", str(store.folder), "--dry-run"
    assert command_line.main(list(dry)) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"norms": "block"},
        {"off_diagonal": "random"},
        {"self_off_diagonal": "zeros"},
        {"optimizer_state": "reset"},
    ],
)
def test_another_fusion_is_refused(tmp_path, scale, folder, change):
    store = finished_store(tmp_path / "out", scale, "M(S, S)", "M(2*S)")
    changed = SMALL | {"source": str(folder)} | change
    other = recipes.load(write_recipe(tmp_path / "other.toml", **changed))
    assert fingerprint.check_result(parse("S"), 0, other, store)
    root = parse("M(2*S)" if "self_off_diagonal" in change else "M(S, S)")
    ((name, value),) = change.items()
    with pytest.raises(
        FusionError, match=f"{name.removeprefix('self_')} was .*{value}"
    ):
        fingerprint.check_result(root, 0, other, store)


def test_many_differences_are_cut(tmp_path, scale, folder):
    store = finished_store(tmp_path / "out", scale, "S")
    changes = {k: 9 for k in ("steps", "evaluate_every", "batch_size", "warmup_steps")}
    changed = SMALL | {"source": str(folder), "input_length": 21} | changes
    other = recipes.load(write_recipe(tmp_path / "other.toml", **changed))
    with pytest.raises(FusionError, match="; and 1 more. Choose another"):
        fingerprint.check_result(parse("S"), 0, other, store)


def test_another_text_or_vocabulary_of_a_node_is_refused(tmp_path, scale):
    prepared, recipe = Store(tmp_path / "out"), recipes.load(scale)
    data.prepare(recipe, prepared.data)
    finished_store(prepared.folder, scale, "M(S, S)")
    assert fingerprint.check_result(parse("M(S, S)"), 0, recipe, prepared)
    path = prepared.data / "fingerprint.json"
    made = fingerprint.of_data(prepared.data)
    made["source"]["sha256"] = "other"
    records.write(path, {"fingerprint": made})
    with pytest.raises(FusionError, match="source.sha256 was '.*' and is now 'other'"):
        fingerprint.check_result(parse("S"), 0, recipe, prepared)
    records.write(prepared.data / "vocabulary.json", {"fingerprint": {"sha256": "v"}})
    with pytest.raises(FusionError, match="vocabulary.sha256 was '.*' and is now 'v'"):
        fingerprint.check_result(parse("S"), 0, recipe, prepared)


def test_other_parents_are_refused(tmp_path, scale, folder):
    """Of a child whose own recipe says the same."""
    tree = "M[steps=7](S, S)"
    store = finished_store(tmp_path / "out", scale, tree)
    changed = SMALL | {"source": str(folder), "steps": 50}
    other = write_recipe(tmp_path / "other.toml", **changed)
    for name in ("S1", "S2"):
        shutil.rmtree(store.entry(0, parse(name)).folder)
    finished_store(store.folder, other, "S1", "S2")
    with pytest.raises(FusionError, match="parents.S1 was '.*' and is now '"):
        fingerprint.check_result(parse(tree), 0, recipes.load(other), store)


def test_an_unfinished_training_of_another_recipe_is_refused(
    tmp_path, scale, folder, capsys
):
    store = Store(tmp_path / "out")
    begin(store, scale, "S")
    recipe = recipes.load(scale)
    forest.check([(0, parse("S"))], recipe, store)
    changed = SMALL | {"source": str(folder), "peak_rate": 0.01}
    other = write_recipe(tmp_path / "other.toml", **changed)
    words = "pretrain", "--scale", other, "--output", str(store.folder), "--tree", "S"
    assert command_line.main(list(words)) == 2
    line = capsys.readouterr().err
    assert (
        "unfinished training" in line and "peak_rate was 0.03 and is now 0.01" in line
    )


def test_a_folder_in_the_wrong_place_is_refused(tmp_path, scale):
    recipe = recipes.load(scale)
    store = finished_store(tmp_path / "out", scale, "S1")
    source, seven = (store.entry(0, parse(name)) for name in ("S1", "S7"))
    shutil.copytree(source.folder, seven.folder)
    with pytest.raises(FusionError, match="node was 'S1' and is now 'S7'"):
        fingerprint.check_result(parse("S7"), 0, recipe, store)
    shutil.copytree(source.folder, store.entry(1, parse("S1")).folder)
    with pytest.raises(FusionError, match="seed was 0 and is now 1"):
        fingerprint.check_result(parse("S1"), 1, recipe, store)


def test_a_root_without_its_parents_can_be_checked(tmp_path, scale):
    store = finished_store(tmp_path / "out", scale, "M(S, S)")
    for name in ("S1", "S2"):
        shutil.rmtree(store.entry(0, parse(name)).folder)
    assert fingerprint.check_result(parse("M(S, S)"), 0, recipes.load(scale), store)


# Fine-tuning.


def test_another_fine_tuning_is_refused(tmp_path, scale, folder, capsys):
    store = finished_store(tmp_path / "out", scale, "M")
    entry, recipe = store.entry(0, parse("M")), recipes.load(scale)
    scores = {"validation": {"accuracy": 0.5}}
    known = {"model": "m", "text": "t"}
    content = {"metrics": scores, "majority": scores, "flops": 3, "seconds": 1.0}
    content["fingerprint"] = {
        "recipe": fingerprint.of_finetuning("builtin", recipe)
    } | known
    entry.write("finetuned-builtin", content)
    fingerprint.check_scores("builtin", recipe, entry, **known)
    for name in known:
        with pytest.raises(FusionError, match=f"{name} was '.' and is now 'other'"):
            fingerprint.check_scores("builtin", recipe, entry, **{name: "other"})
    tuning = dataclasses.replace(recipe.finetuning, rate=0.5)
    other = dataclasses.replace(recipe, finetuning=tuning)
    with pytest.raises(FusionError, match="rate was 0.01 and is now 0.5. Remove the"):
        fingerprint.check_scores("builtin", other, entry)
    # Other tasks are no other fine-tuning of this one.
    tuning = dataclasses.replace(recipe.finetuning, tasks=("builtin", "cola"))
    other = dataclasses.replace(recipe, finetuning=tuning)
    fingerprint.check_scores("builtin", other, entry)


# What earlier versions left.


@pytest.fixture
def earlier(tmp_path, scale):
    """A folder as version 0.1.0 wrote it: no records, fingerprints and checksums."""
    store = Store(tmp_path / "earlier")
    store.data.mkdir(parents=True)
    (store.data / "vocabulary.model").write_bytes(b"a model")
    np.save(store.data / "training-00000.npy", np.arange(100, dtype="uint16"))
    for name in ("M1", "S1", "S2", "M(S1,S2)"):
        node = parse(name)
        folder = store.entry(0, node).folder
        folder.mkdir(parents=True)
        content = figures() | {"node": name, "seed": 0}
        content["start"] = {"mean_change": 0.1} if node.parents else {}
        (folder / "result.json").write_text(json.dumps(content, indent=1) + "\n")
    return store


def test_earlier_results_make_tables_and_curves(earlier, scale, capsys):
    words = "--scale", scale, "--output", str(earlier.folder)
    assert command_line.main(["table", *words]) == 0
    shown = capsys.readouterr()
    assert "| fused, fusion property kept | `M(S1,S2)` | 1 |" in shown.out
    (line,) = shown.err.splitlines()
    assert "earlier version made 2 of these" in line and "M1 of seed 0" in line
    # Also from the JSON that version 0.1.0 wrote.
    path = earlier.folder / "t5_smoke.json"
    gathered = json.loads(path.read_text())
    del gathered["sha256"]
    path.write_text(json.dumps(gathered))
    assert command_line.main(["plot", *words]) == 0
    assert (earlier.folder / "t5_smoke_T5-M.png").exists()


def test_earlier_data_and_trainings_are_not_trained_on(earlier, scale, capsys):
    words = "pretrain", "--scale", scale, "--output", str(earlier.folder), "--tree"
    assert command_line.main([*words, "M(S, S)"]) == 2
    assert "of an earlier version, which did not record" in capsys.readouterr().err
    assert command_line.main([*words, "S7"]) == 2  # of which nothing is there
    (line,) = capsys.readouterr().err.splitlines()
    assert "The data in" in line and "to train, choose another --output" in line
    state = earlier.entry(0, parse("S7"))
    state.save_state([np.zeros(3)], {"step": 3})
    assert command_line.main([*words, "S7"]) == 2
    assert "it is of an earlier version" in capsys.readouterr().err
