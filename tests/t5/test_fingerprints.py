"""Data and trainings say what they were made from, and nothing else is taken for them."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from filelock import FileLock, Timeout
from t5_stores import begin, figures, finished_store, write_recipe, write_texts

from keras_fusion.errors import FusionError
from keras_fusion.t5 import __main__ as command_line
from keras_fusion.t5 import (
    corpus,
    data,
    documents,
    fingerprint,
    forest,
    records,
    token_files,
)
from keras_fusion.t5 import recipe as recipes
from keras_fusion.t5.store import Store
from keras_fusion.t5.tree import parse

SMALL = {"vocabulary_size": 50, "byte_fallback": False, "input_length": 20}


@pytest.fixture
def folder(tmp_path):
    return write_texts(tmp_path / "texts")


@pytest.fixture
def scale(tmp_path, folder):
    return write_recipe(tmp_path / "smoke.toml", source=str(folder), **SMALL)


def prepare(scale, store, **options):
    data.prepare(recipes.load(scale), store.data, **options)


@pytest.fixture
def prepared(tmp_path, scale):
    store = Store(tmp_path / "out")
    prepare(scale, store, show=lambda line: None)
    return store


def stamps(folder):
    paths = [path for path in folder.iterdir() if path.suffix != ".lock"]
    return {path.name: path.stat().st_mtime_ns for path in paths}


# Data.


def test_prepared_data_stay_and_tell_what_they_are(scale, prepared, folder):
    before, lines = stamps(prepared.data), []
    prepare(scale, prepared, show=lines.append)
    assert stamps(prepared.data) == before and lines == []
    made = fingerprint.of_data(prepared.data)
    texts = [path.read_bytes() for path in folder.glob("*.txt")]
    assert made["source"]["documents"] == len(texts) == 60
    assert made["source"]["bytes"] == sum(map(len, texts))
    loaded = data.load(recipes.load(scale), prepared.data)
    assert set(loaded.fingerprint) == {"source", "vocabulary"}


def test_a_text_may_move(scale, prepared, folder, tmp_path):
    before = stamps(prepared.data)
    folder.rename(tmp_path / "moved")
    moved = write_recipe(tmp_path / "a.toml", source=str(tmp_path / "moved"), **SMALL)
    prepare(moved, prepared)
    assert stamps(prepared.data) == before


def test_another_text_is_refused(scale, prepared, folder, capsys):
    path = folder / "007.txt"
    changes = (
        lambda: path.write_text(path.read_text().replace("short", "shirt")),
        lambda: path.rename(folder / "seven.txt"),
        path.unlink,
        lambda: (folder / "more.txt").write_text("one more"),
    )
    words = "pretrain", "--scale", scale, "--output", str(prepared.folder)
    for change in changes:
        whole = {p: p.read_bytes() for p in folder.iterdir()}
        before = stamps(prepared.data)
        change()
        assert command_line.main([*words, "--tree", "S"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "was made from something else: source." in line
        assert "Choose another --output" in line
        assert stamps(prepared.data) == before
        shutil.rmtree(folder)
        folder.mkdir()
        for place, content in whole.items():
            place.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocabulary_size": 51}, "vocabulary.size was 50 and is now 51"),
        ({"sentinels": 15}, "vocabulary.sentinels was 16 and is now 15"),
        ({"vocabulary_coverage": 1.0}, "vocabulary.coverage was 0.9995 and is now 1.0"),
        ({"byte_fallback": True}, "byte_fallback was False and is now True"),
        ({"validation_batches": 3}, "validation_tokens was 360 and is now 520"),
        (
            {"source": "standard-library"},
            "kind was 'text folder' and is now 'standard-",
        ),
    ],
)
def test_another_recipe_for_the_data_is_refused(
    prepared, folder, tmp_path, change, message
):
    changed = SMALL | {"source": str(folder)} | change
    other = write_recipe(tmp_path / "other.toml", **changed)
    with pytest.raises(FusionError, match=message):
        prepare(other, prepared)
    # Also where the text is not read.
    with pytest.raises(FusionError, match=message):
        fingerprint.check_text(recipes.load(other), prepared.data)


def test_another_vocabulary_file_is_refused(prepared, folder, tmp_path):
    kept, options = tmp_path / "v.model", SMALL | {"source": str(folder)}
    shutil.copy(prepared.data / "vocabulary.model", kept)
    given = write_recipe(tmp_path / "given.toml", vocabulary=str(kept), **options)
    other = Store(tmp_path / "other")
    prepare(given, other)
    prepare(given, other)
    again = write_recipe(tmp_path / "longer.toml", **options | {"vocabulary_size": 51})
    longer = Store(tmp_path / "longer")
    prepare(again, longer)
    shutil.copy(longer.data / "vocabulary.model", kept)
    with pytest.raises(FusionError, match="vocabulary.sha256 was '.*' and is now '"):
        prepare(given, other)


def test_a_recipe_may_be_mended_while_nothing_is_made(folder, tmp_path):
    options, store = SMALL | {"source": str(folder)}, Store(tmp_path / "out")
    big = write_recipe(tmp_path / "big.toml", **options | {"vocabulary_size": 4000})
    with pytest.raises(FusionError, match="too short for size=4000. It allows at most"):
        prepare(big, store)
    prepare(write_recipe(tmp_path / "right.toml", **options), store)


def test_a_kill_while_the_data_are_made_leaves_no_doubt(scale, prepared):
    # A file that `whole` did not come to rename.
    (prepared.data / "unfinished-7-training-00003.npy").write_bytes(b"half")
    for name in ("vocabulary.json", "training-00003.json", "training-00003.npy"):
        before = stamps(prepared.data)
        (prepared.data / name).unlink()
        if name == "vocabulary.json":  # as if killed before any tokens
            for path in prepared.data.glob("[tv]*-0*"):
                path.unlink()
        prepare(scale, prepared)
        after = stamps(prepared.data)
        assert set(after) == set(before)
        assert after["training-00003.npy"] != before["training-00003.npy"]
    data.load(recipes.load(scale), prepared.data)


def test_two_processes_train_one_vocabulary(scale, prepared, monkeypatch):
    held = []
    train = data.Vocabulary.train

    def train_and_look(*args, **options):
        with pytest.raises(Timeout):
            FileLock(prepared.data / "data.lock", timeout=0).acquire()
        held.append(True)
        return train(*args, **options)

    monkeypatch.setattr(data.Vocabulary, "train", train_and_look)
    for path in prepared.data.glob("*.[njm]*"):
        path.unlink()
    prepare(scale, prepared)
    assert held == [True]


def test_missing_token_files_are_missed(scale, prepared):
    (prepared.data / "training-00003.json").unlink()
    with pytest.raises(FileNotFoundError, match="or not all of them"):
        data.load(recipes.load(scale), prepared.data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 400}, "fewer than batch_size=400. Use more text"),
        ({"input_length": 900, "sentinels": 60}, "in 16 parts, of which none has the"),
    ],
)
def test_a_text_too_short_for_a_batch(folder, tmp_path, change, message):
    options = SMALL | {"source": str(folder)} | change
    options["vocabulary_size"] = 34 + options.get("sentinels", 16)
    scale = write_recipe(tmp_path / "a.toml", **options)
    store = Store(tmp_path / "out")
    prepare(scale, store)
    with pytest.raises(FusionError, match=message):
        data.load(recipes.load(scale), store.data)


def test_hosts_wait_for_each_other(scale, prepared, monkeypatch):
    record = prepared.data / "training-00001.json"
    content, lines = record.read_bytes(), []
    record.unlink()
    monkeypatch.setattr(
        token_files.time, "sleep", lambda _: record.write_bytes(content)
    )
    prepare(scale, prepared, host=0, hosts=2, show=lines.append)
    assert lines == [f"waiting for 1 token files of other hosts in {prepared.data}"]


# Trainings.


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


def test_another_text_or_vocabulary_of_a_node_is_refused(tmp_path, scale, prepared):
    finished_store(prepared.folder, scale, "M(S, S)")
    recipe = recipes.load(scale)
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


# Sources of text.


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Grüße".encode("latin-1"), "has the byte 0xfc at position 2"),
        ("Text".encode("utf-16"), "has the byte 0xff at position 0"),
        ("Text".encode("utf-16-le"), "has a zero byte at position 1"),
        (b"PK\x03\x04\x00\x00", "has a zero byte at position 4"),
        (b"cut off \xd0", "has the byte 0xd0 at position 8"),
    ],
)
def test_a_file_that_is_no_text_in_utf_8(
    scale, folder, tmp_path, capsys, content, message
):
    (folder / "deep").mkdir()
    (folder / "deep" / "bad.txt").write_bytes(content)
    words = "pretrain", "--scale", scale, "--output", str(tmp_path / "out")
    assert command_line.main([*words, "--tree", "S"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "deep/bad.txt' is not text in UTF-8" in line and message in line


def test_files_that_cannot_be_read(folder):
    (folder / "a folder.txt").mkdir()  # is no file, and no error
    assert documents.open_source(str(folder)).identity()["documents"] == 60
    (folder / "link.txt").symlink_to(folder / "nowhere")
    with pytest.raises(FusionError, match="link.txt' cannot be read: No such file"):
        documents.open_source(str(folder)).identity()


def test_sources_tell_themselves_apart():
    library = documents.standard_library()
    (texts,) = library.training
    assert library.identity()["documents"] > len(texts) > 1000
    assert library.identity() is library.identity()  # computed once
    copied = [[*part.items] for part in (*library.training, *library.validation)]
    copied[0][7] += "."
    changed = documents._documented("copied", corpus.Corpus(*map(tuple, copied)))
    assert changed.identity()["sha256"] != library.identity()["sha256"]
