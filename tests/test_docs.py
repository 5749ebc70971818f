"""The examples of the documentation run."""

import ast
import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import keras_fusion

ROOT = Path(__file__).parents[1]
MODULES = [
    name
    for _, name, _ in pkgutil.walk_packages(keras_fusion.__path__, "keras_fusion.")
    if not name.startswith("keras_fusion.demo")
]


def test_docstring_examples_run():
    attempted = 0
    for name in MODULES:
        result = doctest.testmod(
            importlib.import_module(name), optionflags=doctest.ELLIPSIS
        )
        assert result.failed == 0, f"An example of {name} fails; see the output."
        attempted += result.attempted
    assert attempted > 5


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_code_in_pages_is_python(page):
    text = (ROOT / page).read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    for block in blocks:
        ast.parse(block)


def test_readme_names_what_exists():
    text = (ROOT / "README.md").read_text()
    for name in set(re.findall(r"keras_fusion\.(\w+)", text)):
        assert hasattr(keras_fusion, name), f"README names keras_fusion.{name}."
