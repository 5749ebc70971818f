"""The docstrings' examples run, and the site leaves nothing out."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

from test_docstrings import public_names

import keras_fusion

ROOT = Path(__file__).resolve().parents[1]
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


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    docs = ROOT / "docs"
    pages = {p.relative_to(docs).as_posix() for p in docs.rglob("*.md")}
    missing = sorted(page for page in pages if f" {page}\n" not in navigation)
    assert not missing, f"mkdocs.yml does not list {missing}."


def test_every_public_name_is_in_the_reference():
    text = "\n".join(
        page.read_text(encoding="utf-8")
        for page in (ROOT / "docs" / "reference").glob("*.md")
    )
    described = set(re.findall(r"^::: (\S+)$", text, re.MULTILINE))
    missing = sorted(set(public_names()) - described)
    assert not missing, f"docs/reference does not describe {missing}."
    for name in described:
        pkgutil.resolve_name(name)
