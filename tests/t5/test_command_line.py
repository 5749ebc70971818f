"""The T5 command line refuses in one line, with exit code 2, and before it has begun."""

import importlib.util

import pytest
from t5_stores import finished_store, write_recipe

from keras_fusion.t5 import __main__ as command_line
from keras_fusion.t5 import results


@pytest.fixture
def scale(tmp_path):
    return write_recipe(tmp_path / "smoke.toml")


@pytest.fixture
def refused(capsys):
    """Runs a command that must be refused, and returns its line."""

    def run(*words):
        assert command_line.main([*map(str, words)]) == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        (line,) = shown.err.splitlines()
        assert line.startswith("keras_fusion.t5: ")
        return line

    return run


# Words.


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "required: command"),
        (["train"], "invalid choice: 'train'"),
        (["pretrain", "--seeds", "0"], "above 0, not '0'"),
        (["pretrain", "--seeds", "-3"], "above 0, not '-3'"),
        (["pretrain", "--seeds", "two"], "above 0, not 'two'"),
        (["finetune", "--seeds", "0"], "above 0, not '0'"),
        (["pretrain", "--seeds"], "expected one argument"),
        (["pretrain", "--backend", "torch"], "invalid choice: 'torch'"),
        (["pretrain", "--strategy", "gpus"], "invalid choice: 'gpus'"),
        (["pretrain", "--only"], "`--only` is for the trees of --tree"),
        (["pretrain", "--scale", "huge"], "scale='huge'"),
        (["pretrain", "--scale", "huge.toml"], "scale='huge.toml'"),
        (["pretrain", "--tree", "M(S"], "cannot be read at position 1"),
        (["pretrain", "--tree", "M[steps=0]"], "steps to be an integer above 0"),
        (["pretrain", "--tree", "XL"], "has the shape 'XL'"),
        (["pretrain", "--tree", "M(S, M)"], "'M(S1,M1)' makes a model of the sizes"),
        (["finetune", "--task", "glue"], "A task is one of builtin, cola"),
        (["finetune", "--tree", "M(S"], "cannot be read at position 1"),
        (["table", "--docs", "nowhere.md"], "no page 'nowhere.md'"),
        (["plan", "--docs", "nowhere.md"], "no page 'nowhere.md'"),
        (["plan", "--utilization", "0"], "above 0 and at most 1, not '0'"),
        (["plan", "--utilization", "40"], "above 0 and at most 1, not '40'"),
        (["plan", "--peak-tflops", "-1"], "above 0, not '-1'"),
        (["plan", "--peak-tflops", "nan"], "above 0, not 'nan'"),
        (["plan", "--devices", "0"], "above 0, not '0'"),
        (["plan", "--mixing", "0"], "expected 2 arguments"),
        (["plan", "--mixing", "0", "2"], "`mixing` must be"),
        (["plan", "--law", "nowhere.json"], "nowhere.json"),
    ],
)
def test_words_that_do_not_fit(refused, words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in refused(*words)
    assert not list(tmp_path.iterdir())


def test_help_is_no_error(capsys):
    assert command_line.main(["--help"]) == 0
    assert "usage" in capsys.readouterr().out


def test_interrupt_is_no_traceback(monkeypatch, capsys):
    def interrupt(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(command_line, "_run", interrupt)
    assert command_line.main(["pretrain"]) == 130
    assert capsys.readouterr().err.count("\n") == 1


def test_packages_that_are_missing(refused, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name == "filelock" else find(name),
    )
    assert "needs filelock. Install" in refused("pretrain", "--dry-run")


# Nothing there yet.


def test_nothing_has_finished(refused, tmp_path, scale):
    for command in ("table", "finetune"):
        words = command, "--scale", scale, "--output", tmp_path / "out"
        assert "none of the 13 trainings that are asked for" in refused(*words)
    # A parent alone is in no row of a table.
    store = finished_store(tmp_path / "out", scale, "S")
    assert "has finished. Run `pretrain` first" in refused(
        "table", "--scale", scale, "--output", store.folder
    )
    assert not list(store.folder.glob("*.json"))


def test_plot_before_table(refused, tmp_path, scale):
    words = "plot", "--scale", scale, "--output", tmp_path / "out"
    assert "smoke.json'. Run `table` first" in refused(*words)
    results.save({"scale": "smoke", "tables": {}}, tmp_path / "out" / "t5_smoke.json")
    assert "no finished training to draw" in refused(*words)


def test_output_is_a_file(refused, tmp_path, scale):
    (tmp_path / "out").write_text("")
    for command in ("pretrain", "finetune", "table"):
        line = refused(command, "--scale", scale, "--output", tmp_path / "out")
        assert "Choose another --output" in line


def test_page_cannot_take_tables(refused, tmp_path, scale):
    store = finished_store(tmp_path / "out", scale, "M")
    page = tmp_path / "page.md"
    words = "table", "--scale", scale, "--output", store.folder, "--docs", page
    page.write_text("no marks")
    assert "needs the lines <!-- tables begin -->" in refused(*words)
    page.write_bytes(b"\xff\xfe")
    assert "is not UTF-8" in refused(*words)
    assert not (store.folder / "t5_smoke.json").exists()  # refused before it has begun
