"""Damaged files of T5 trainings are refused by name, and never read as something else."""

import json

import keras
import numpy as np
import pytest
from damage import damage_count, damages
from t5_stores import begin, figures, finished_store, write_recipe, write_texts

from keras_fusion.errors import FusionError
from keras_fusion.t5 import __main__ as command_line
from keras_fusion.t5 import data, fingerprint, records, results, store, token_files
from keras_fusion.t5 import recipe as recipes
from keras_fusion.t5.tree import parse
from keras_fusion.t5.vocabulary import Vocabulary

COUNT = damage_count(40)


def all_refused(path, read, same, count=COUNT):
    """No damage to a file is read as other content; most are refused."""
    expected, refused = read(), 0
    for broken in damages(path, count):
        try:
            found = read()
        except FusionError as error:
            assert str(path.name) in str(error) or path.stem in str(error)
            refused += 1
        else:
            assert same(found, expected), broken[:200]
    assert same(read(), expected)  # the file is whole again
    assert refused > 0.9 * count


def equal(a, b):
    return a == b


@pytest.fixture
def scale(tmp_path):
    return write_recipe(tmp_path / "smoke.toml")


def test_result(tmp_path, scale):
    entry = finished_store(tmp_path, scale, "S").entry(0, parse("S"))
    all_refused(entry.folder / "result.json", entry.result, equal)


def test_scores(tmp_path, scale):
    entry = finished_store(tmp_path, scale, "S").entry(0, parse("S"))
    scores = {"validation": {"accuracy": 0.5}}
    content = {"metrics": scores, "majority": scores, "flops": 3, "seconds": 1.0}
    entry.write("finetuned-builtin", content | {"fingerprint": {"model": "m"}})
    path = entry.folder / "finetuned-builtin.json"
    all_refused(path, lambda: entry.scores("builtin"), equal)


def test_state(tmp_path, scale):
    entry = begin(store.Store(tmp_path), scale, "S")

    def same(found, expected):
        arrays, numbers = (list(part) for part in zip(found, expected, strict=True))
        return numbers[0] == numbers[1] and all(
            np.array_equal(a, b) for a, b in zip(*arrays, strict=True)
        )

    # An archive repeats itself: a damage to a date of it is none to its content.
    expected, refused = entry.load_state(), 0
    for _ in damages(entry.folder / "state.npz", 5 * COUNT):
        try:
            found = entry.load_state()
        except FusionError as error:
            assert "state.npz' cannot be used: " in str(error)
            assert "Remove it, and the node is trained from its start" in str(error)
            refused += 1
        else:
            assert same(found, expected)
    assert refused > 0.8 * 5 * COUNT


def trained():
    """A model with an optimizer's state."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    return model


def test_optimizer(tmp_path):
    entry = store.Entry(tmp_path / "node")
    entry.finish(trained(), figures() | {"seed": 0})

    def same(found, expected):
        return len(found) == len(expected) and all(map(np.array_equal, found, expected))

    assert len(entry.optimizer_state()) == 6
    all_refused(tmp_path / "node" / "optimizer.npz", entry.optimizer_state, same)
    (tmp_path / "node" / "optimizer.npz").unlink()
    with pytest.raises(FusionError, match="optimizer.npz', which a fusion is to carry"):
        entry.optimizer_state()


def test_model(tmp_path):
    entry = store.Entry(tmp_path / "node")
    entry.finish(trained(), figures() | {"seed": 0})

    def weights():
        return entry.model().get_weights()

    def same(found, expected):
        return all(map(np.array_equal, found, expected))

    all_refused(entry.model_path, weights, same)
    entry.model_path.unlink()
    with pytest.raises(FusionError, match="model.keras' cannot be used: it is missing"):
        entry.model()


def test_model_of_an_earlier_version(tmp_path):
    """There is no checksum, and Keras says something else for each damage."""
    entry = store.Entry(tmp_path / "node")
    entry.finish(trained(), figures() | {"seed": 0})
    entry.write("result", figures() | {"seed": 0})
    assert len(entry.model().get_weights()) == 2
    entry.model_path.write_bytes(entry.model_path.read_bytes()[:-500])
    with pytest.raises(
        FusionError, match="model.keras' cannot be used: .*Bring it again"
    ):
        entry.model()


def test_gathered_results(tmp_path, scale):
    found = recipes.load(scale)
    gathered = results.collect(found, finished_store(tmp_path, scale, "M", "M(S, S)"))
    path = tmp_path / "t5_smoke.json"
    results.save(gathered, path)
    all_refused(path, lambda: results.load(path), equal)


@pytest.fixture
def prepared(tmp_path):
    folder = write_texts(tmp_path / "texts")
    options = {"vocabulary_size": 50, "byte_fallback": False, "input_length": 20}
    scale = write_recipe(tmp_path / "small.toml", source=str(folder), **options)
    kept = store.Store(tmp_path / "out")
    data.prepare(recipes.load(scale), kept.data, show=lambda line: None)
    return recipes.load(scale), kept.data


def test_vocabulary(prepared):
    recipe, folder = prepared

    def read():
        return data.load_vocabulary(recipe, folder).model

    all_refused(folder / "vocabulary.model", read, equal)
    all_refused(folder / "vocabulary.json", read, equal)


def test_vocabulary_file_of_ones_own(prepared, tmp_path):
    """No checksum is known; what SentencePiece cannot read is refused, with no crash."""
    path = tmp_path / "own.model"
    path.write_bytes((prepared[1] / "vocabulary.model").read_bytes())
    for _ in damages(path, COUNT):
        try:
            Vocabulary.load(path, sentinels=16).encode("This is a document.")
        except FusionError as error:
            assert "own.model" in str(error)
    path.write_bytes(b"")
    with pytest.raises(FusionError, match="own.model': .* must not be empty"):
        Vocabulary.load(path)
    with pytest.raises(FusionError, match="no vocabulary file '.*nowhere.model'"):
        Vocabulary.load(tmp_path / "nowhere.model")


def test_fingerprint_of_the_data(prepared):
    folder = prepared[1]
    path = folder / "fingerprint.json"
    all_refused(path, lambda: fingerprint.recorded(folder), equal)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"fingerprint": {}}'])
@pytest.mark.parametrize(
    "name", ["fingerprint.json", "vocabulary.json", "training-00000.json"]
)
def test_records_of_the_data_that_are_none(prepared, name, content):
    recipe, folder = prepared
    (folder / name).write_text(content)
    with pytest.raises(FusionError, match=f"{name}' cannot be used: "):
        data.load(recipe, folder)


def test_token_files(prepared):
    folder = prepared[1]

    def read():
        return [s.copy() for s in token_files.read(folder, "training", shards=16)]

    def same(found, expected):
        return all(map(np.array_equal, found, expected))

    all_refused(folder / "training-00002.npy", read, same)
    all_refused(folder / "training-00002.json", read, same)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "it is empty"),
        (" \n", "it is empty"),
        ("{", "is not JSON in UTF-8"),
        ("\udcff", "is not JSON in UTF-8"),
        ("[" * 100_000, "is not JSON in UTF-8"),
        ("[]", "it holds a list"),
        ("null", "it holds a NoneType"),
        ("{}", "it lacks 'seed'"),
        (json.dumps(figures()), "it lacks 'seed'"),
        (json.dumps(figures() | {"seed": "0"}), "it lacks 'seed'"),
        (json.dumps(figures() | {"seed": 0, "points": []}), "it lacks 'points'"),
        (json.dumps(figures() | {"seed": 0, "points": [{}]}), "it lacks 'points'"),
        (json.dumps(figures() | {"seed": 0, "loss": None}), "it lacks 'loss'"),
        (json.dumps({"fingerprint": {}}), "has been changed or damaged"),
    ],
)
def test_results_that_are_none(tmp_path, scale, capsys, content, message):
    """By every command that reads them, in one line."""
    kept = finished_store(tmp_path / "out", scale, "M")
    path = kept.entry(0, parse("M")).folder / "result.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    for command in ("pretrain", "finetune", "table"):
        words = command, "--scale", scale, "--output", str(kept.folder)
        assert command_line.main(list(words)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "result.json' cannot be used: " in line and message in line


@pytest.mark.parametrize("content", [b"", b"PK", b"no archive", b"\x93NUMPY"])
def test_states_that_are_none(tmp_path, scale, capsys, content):
    entry = begin(store.Store(tmp_path / "out"), scale, "S")
    (entry.folder / "state.npz").write_bytes(content)
    words = "pretrain", "--scale", scale, "--output", str(tmp_path / "out")
    assert command_line.main([*words, "--tree", "S"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "state.npz' cannot be used: " in line and "Remove it" in line


@pytest.mark.parametrize(
    "content",
    [
        {"scale": "smoke"},
        {"scale": "smoke", "tables": []},
        {"scale": 5, "tables": {}},
        {"scale": "smoke", "tables": {"T": {"baseline": "a", "settings": {}}}},
        {
            "scale": "smoke",
            "tables": {
                "T": {"baseline": "a", "settings": {"a": {"tree": "M", "runs": [{}]}}}
            },
        },
    ],
)
def test_results_of_something_else_are_not_drawn(tmp_path, scale, capsys, content):
    path = tmp_path / "found.json"
    records.write(path, content)
    assert command_line.main(["plot", "--scale", scale, "--results", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "found.json' does not hold results of `table`" in line
