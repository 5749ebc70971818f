"""Data say what they were made from, and nothing else is taken for them."""

import shutil

import pytest
from filelock import FileLock, Timeout
from t5_stores import SMALL, write_recipe, write_texts

from keras_fusion.errors import FusionError
from keras_fusion.t5 import __main__ as command_line
from keras_fusion.t5 import corpus, data, documents, fingerprint, token_files
from keras_fusion.t5 import recipe as recipes
from keras_fusion.t5.store import Store


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
