"""The notebooks run from a clean kernel, and print no warning (`make tutorials`)."""

import re
import sys

import nbformat
import pytest
from repository import ROOT

FOLDER = ROOT / "tutorials"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
COLAB = "colab.research.google.com/github/keras-fusion/keras_fusion/blob/main/tutorials"

sys.path.insert(0, str(FOLDER))
from execute import LARGEST, execute  # noqa: E402

notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.mark.slow
@notebooks
def test_notebook_runs(path, tmp_path):
    executed = execute(path, small=True, folder=tmp_path)
    pictures = [
        output
        for cell in executed.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert pictures, f"{path.name} shows no picture."


@notebooks
def test_notebook_is_in_order(path):
    text = path.read_text(encoding="utf-8")
    assert len(text) < LARGEST, f"{path.name} has {len(text):,} bytes."
    first, install, *rest = nbformat.read(path, as_version=4).cells
    assert first.source.startswith("# ") and f"{COLAB}/{path.name})" in first.source
    assert 'find_spec("keras_fusion") is None' in install.source
    assert not any("pip install" in cell.source for cell in rest)
    prose = "\n".join(c.source for c in rest if c.cell_type == "markdown")
    for link in re.findall(r"\]\((?!http)([^)#]+)", prose):
        assert (FOLDER / link).exists(), f"{path.name} links to {link}."


def test_all_notebooks_are_listed():
    listed = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert len(NOTEBOOKS) == 7
    missing = [path.name for path in NOTEBOOKS if f"({path.name})" not in listed]
    assert not missing, f"tutorials/README.md does not list {missing}."


def test_a_warning_fails(tmp_path):
    cell = nbformat.v4.new_code_cell("import warnings\nwarnings.warn('look here')")
    path = tmp_path / "warns.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
    with pytest.raises(RuntimeError, match=r"warns.ipynb writes to .* look here"):
        execute(path, small=True, folder=tmp_path)
