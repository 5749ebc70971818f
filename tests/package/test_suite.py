"""Every test is in the room of what it tests, and leans on no other test."""

import ast
import collections

from repository import PACKAGE, ROOT
from sources import imports

TESTS = ROOT / "tests"
# Beside the rooms of the package: it as a whole, and what is no test.
OTHERS = {"package", "experiments", "runs", "saved", "support"}

FILES = sorted(TESTS.rglob("*.py"))
MODULES = [path for path in FILES if path.name.startswith("test_")]


def test_every_test_has_a_room():
    rooms = {path.stem for path in PACKAGE.iterdir()} | OTHERS
    folders = {path.name for path in TESTS.iterdir() if path.is_dir()}
    assert folders - {"__pycache__"} <= rooms
    astray = {path.name for path in MODULES if path.parent == TESTS}
    assert not astray, f"Move them to a room: {astray}"


def test_names_of_modules_tell_them_apart():
    """Also those of helpers, which are imported by their names alone."""
    counts = collections.Counter(path.name for path in FILES)
    assert {name: n for name, n in counts.items() if n > 1} == {}


def imported_tests(source):
    """The test modules that a module imports."""
    names = [item.target.split(".") for item in imports(ast.parse(source))]
    return {part for parts in names for part in parts if part.startswith("test_")}


def test_no_module_imports_a_test():
    found = {
        path.relative_to(TESTS).as_posix(): modules
        for path in FILES
        if (modules := imported_tests(path.read_text(encoding="utf-8")))
    }
    assert not found, f"Put what they share into tests/support: {found}"


def test_imported_tests_are_found():
    for source in (
        "import test_rules",
        "from test_rules import SAMPLES",
        "from tests.models import test_rules",
        "def f():\n    import tests.models.test_rules",
    ):
        assert imported_tests(source) == {"test_rules"}
    assert imported_tests("import pytest\nfrom models import data_for") == set()
