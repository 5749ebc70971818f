"""The docstrings' examples run, and the site leaves nothing out."""

import doctest
import importlib
import pkgutil
import re

import pytest
from public import public_names
from repository import PACKAGE, ROOT

# Those that hold examples; a module without any need not be imported.
WITH_EXAMPLES = sorted(
    path for path in PACKAGE.rglob("*.py") if ">>> " in path.read_text("utf-8")
)


def examples(path):
    """The docstrings of a module that hold examples, by the names of their objects."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    module = importlib.import_module(".".join(parts).removesuffix(".__init__"))
    tests = doctest.DocTestFinder(exclude_empty=True).find(module)
    return {test.name: test for test in tests if test.examples}


@pytest.mark.parametrize(
    "path", WITH_EXAMPLES, ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_docstring_examples_run(path):
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    found = examples(path)
    assert found, "What looks like an example is in no docstring."
    for name, test in found.items():
        result = runner.run(test)
        assert result.attempted == len(test.examples)
        assert result.failed == 0, f"An example of {name} fails; see the output."


def test_every_public_name_has_an_example_that_runs():
    """The examples above are those of the public names, not just any."""
    run = set().union(*map(examples, WITH_EXAMPLES))
    lacking = [
        name
        for name, value in public_names().items()
        if f"{value.__module__}.{value.__qualname__}" not in run
    ]
    assert not lacking, f"No example of these is run: {lacking}"


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    docs = ROOT / "docs"
    pages = {p.relative_to(docs).as_posix() for p in docs.rglob("*.md")}
    missing = sorted(page for page in pages if f" {page}\n" not in navigation)
    assert not missing, f"mkdocs.yml does not list {missing}."


def test_links_within_the_repository_lead_to_files():
    broken = []
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        text = re.sub(r"(?s)```.*?```|`[^`\n]*`", "", text)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            path = target.split("#")[0]
            if path and "://" not in path and not (page.parent / path).exists():
                broken.append(f"{page.name}: {target}")
    assert not broken


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
