"""The architecture, enforced: who may import whom, and who touches Keras's insides.

Everything is read from the sources with `ast`; nothing is imported.
"""

import ast
import dataclasses
import re
from pathlib import Path

import pytest

PACKAGE = "keras_fusion"
SOURCES = Path(__file__).resolve().parents[1] / PACKAGE

# Lowest first. A module (or subpackage) imports only from levels below its own.
LEVELS = (
    ("axes", "errors", "noise"),
    ("layers", "operator", "files"),
    ("structure", "registry", "schedules", "events", "placement"),
    ("rules", "graph", "probe", "observation", "trials", "flops", "copying"),
    ("record",),
    ("widths", "alignment"),
    ("repetition",),
    ("architecture",),
    ("readout",),
    ("layout",),
    ("slots", "learning_rate", "rate_multipliers", "blocks", "earlier_weights"),
    ("slot_fusion",),
    ("graft",),
    ("calibration", "arguments", "depth", "dynamics", "partners"),
    ("capacity",),
    ("fusion",),
    ("growth_operators", "widening", "stacking", "chain"),
    ("width_operators", "depth_operators", "lemon"),
    ("growth", "report"),
    ("runs",),
    ("recording",),
    ("callbacks", "annealing", "backup"),
    ("deep_fusion",),
    ("testing", "plotting"),
    ("t5",),
    ("demo",),
)
LEVEL_OF = {unit: level for level, units in enumerate(LEVELS) for unit in units}

# From here up the package is used as a user does: `import keras_fusion` is allowed.
FIRST_USER_LEVEL = LEVEL_OF["testing"]

# Imports inside a function that go upwards all the same, with the reason.
LAZY_IMPORTS = {
    ("registry", "rules"): "rules are written in terms of the registry that finds them",
}

# The only package that may touch Keras's private state.
GRAFT = ("graft",)
PRIVATE_PACKAGES = ("keras.src", "keras_hub.src")


@dataclasses.dataclass(frozen=True)
class Import:
    """One name that a module imports, written absolutely (`keras.layers.Dense`)."""

    target: str
    line: int
    lazy: bool  # inside a function


def unit_of(path):
    """`rules` for `rules/keras_layers.py`, `fusion` for `fusion.py`."""
    return path.relative_to(SOURCES).parts[0].removesuffix(".py")


def _is_type_checking(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in (
        getattr(node.test, "id", None),
        getattr(node.test, "attr", None),
    )


def imports(tree, package=PACKAGE):
    """All imports of a module, those for type checkers left out.

    `package` is the package that the module lies in, for relative imports.
    """

    def visit(node, lazy):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, line, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [node.module] if node.module else []
            if node.level:
                parents = package.split(".")
                base = parents[: len(parents) - node.level + 1] + base
            for alias in node.names:
                yield Import(".".join([*base, alias.name]), line, lazy)
        elif isinstance(node, ast.Call):
            function = getattr(node.func, "attr", getattr(node.func, "id", None))
            if function in ("import_module", "__import__") and node.args:
                yield Import(_leading_text(node.args[0]), line, lazy)
        lazy = lazy or isinstance(
            node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
        )
        children = (
            node.orelse if _is_type_checking(node) else ast.iter_child_nodes(node)
        )
        for child in children:
            yield from visit(child, lazy)

    return list(visit(tree, False))


def _leading_text(node):
    """The constant start of a string: of `f"keras_fusion.rules.{name}"` too."""
    if isinstance(node, ast.JoinedStr) and node.values:
        node = node.values[0]
    value = getattr(node, "value", "")
    return value if isinstance(value, str) else ""


def direction_errors(unit, tree, package=PACKAGE):
    """What is wrong with a module's imports from the package itself."""
    if unit not in LEVEL_OF:
        return [
            f"{unit!r} has no level. Add it to LEVELS in "
            "tests/test_import_direction.py, above everything that it imports."
        ]
    errors = []
    for item in imports(tree, package):
        parts = item.target.split(".")
        if parts[0] != PACKAGE:
            continue
        # `from keras_fusion import fuse` asks the package itself for a name.
        target = parts[1] if len(parts) > 1 and parts[1] in LEVEL_OF else None
        if target is None:
            allowed = LEVEL_OF[unit] >= FIRST_USER_LEVEL
        else:
            allowed = target == unit or LEVEL_OF[target] < LEVEL_OF[unit]
            allowed |= item.lazy and (unit, target) in LAZY_IMPORTS
        if not allowed:
            height = f"level {LEVEL_OF[target]}" if target else "the whole package"
            errors.append(
                f"line {item.line}: {unit!r} (level {LEVEL_OF[unit]}) imports "
                f"{item.target!r} ({height}), which is not below it."
            )
    return errors


def _is_private(name):
    return re.match(r"_(?!_)", name) is not None


def _is_own(node):
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def private_errors(tree, package=PACKAGE):
    """Where a module reaches into the private state of something else."""
    errors = []
    for item in imports(tree, package):
        names = item.target.split(".")
        foreign = names[0] != PACKAGE
        if item.target.startswith(tuple(f"{p}." for p in PRIVATE_PACKAGES)) or (
            foreign
            and (item.target in PRIVATE_PACKAGES or any(map(_is_private, names)))
        ):
            errors.append(f"line {item.line}: imports the private {item.target!r}.")
    for node in ast.walk(tree):
        owner, name = None, ""
        if isinstance(node, ast.Attribute):
            owner, name = node.value, node.attr
            if ast.unparse(node) in PRIVATE_PACKAGES:
                errors.append(f"line {node.lineno}: uses {ast.unparse(node)!r}.")
        elif (
            isinstance(node, ast.Call)
            and getattr(node.func, "id", None)
            in ("getattr", "setattr", "delattr", "hasattr")
            and len(node.args) > 1
        ):
            owner, name = node.args[0], _leading_text(node.args[1])
        if _is_private(name) and not _is_own(owner):
            errors.append(f"line {node.lineno}: private state {ast.unparse(node)!r}.")
    return errors


def init_errors(tree):
    """Whatever `__init__.py` holds beside a docstring, imports and two names."""
    errors = [] if ast.get_docstring(tree) else ["has no docstring."]
    for i, node in enumerate(tree.body):
        names = [getattr(t, "id", None) for t in getattr(node, "targets", [])]
        if not (
            (i == 0 and isinstance(node, ast.Expr))
            or isinstance(node, (ast.Import, ast.ImportFrom))
            or (names and set(names) <= {"__all__", "__version__"})
        ):
            errors.append(f"line {node.lineno}: {ast.unparse(node).splitlines()[0]!r}.")
    return errors


# The package.

FILES = sorted(SOURCES.rglob("*.py"))
MODULES = [path for path in FILES if path != SOURCES / "__init__.py"]


def _parse(path):
    parts = path.relative_to(SOURCES.parent).parent.parts
    return ast.parse(path.read_text(encoding="utf-8")), ".".join(parts)


def _name(path):
    return str(path.relative_to(SOURCES.parent))


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_module_imports_only_from_below(path):
    errors = direction_errors(unit_of(path), *_parse(path))
    assert not errors, f"{_name(path)}:\n" + "\n".join(errors)


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_only_graft_touches_private_state(path):
    if unit_of(path) in GRAFT:
        return
    errors = private_errors(*_parse(path))
    assert not errors, (
        f"{_name(path)} touches private state, which only {GRAFT} may:\n"
        + "\n".join(errors)
    )


def test_init_only_imports():
    errors = init_errors(_parse(SOURCES / "__init__.py")[0])
    assert not errors, (
        f"{PACKAGE}/__init__.py may hold only a docstring, imports, __all__ and "
        "__version__:\n" + "\n".join(errors)
    )


def test_tables_name_what_exists():
    units = {unit_of(path) for path in MODULES}
    missing = sorted(set(LEVEL_OF) - units)
    assert not missing, f"LEVELS names modules that do not exist: {missing}."
    used = {
        (unit_of(path), item.target.split(".")[1])
        for path in MODULES
        for item in imports(*_parse(path))
        if item.lazy and item.target.startswith(f"{PACKAGE}.")
    }
    unused = sorted(set(LAZY_IMPORTS) - used)
    assert not unused, f"LAZY_IMPORTS allows imports that nobody makes: {unused}."


# The checks themselves: a check that finds nothing anywhere would pass above.


@pytest.mark.parametrize(
    ("unit", "source"),
    [
        ("graph", "import keras_fusion.fusion"),
        ("graph", "from keras_fusion import fusion"),
        ("graph", "from keras_fusion.fusion import fuse"),
        ("graph", "from . import fusion"),
        ("graph", "from .fusion import fuse"),
        ("graph", "import importlib\nimportlib.import_module('keras_fusion.fusion')"),
        ("graph", "__import__(f'keras_fusion.fusion{x}')"),
        ("graph", "def f():\n    from keras_fusion import fusion"),
        ("graph", "from keras_fusion.probe import x"),  # of the same level
        ("graph", "from keras_fusion import DeepFusion"),
        ("graph", "import keras_fusion"),
        ("graph", "if not TYPE_CHECKING:\n    from keras_fusion import fusion"),
        ("graph", "if TYPE_CHECKING:\n    pass\nelse:\n    import keras_fusion.fusion"),
        ("registry", "import keras_fusion.rules.keras_layers"),  # not in a function
    ],
)
def test_upward_import_is_found(unit, source):
    (error,) = direction_errors(unit, ast.parse(source))
    assert "which is not below it" in error


@pytest.mark.parametrize(
    ("unit", "source"),
    [
        ("graph", "import keras\nfrom keras_fusion import registry"),
        ("graph", "from .errors import FusionError"),
        ("graph", "if TYPE_CHECKING:\n    from keras_fusion.fusion import fuse"),
        ("graph", "if typing.TYPE_CHECKING:\n    from keras_fusion import fusion"),
        ("rules", "from keras_fusion.rules import keras_layers"),
        ("registry", "def f():\n    import keras_fusion.rules.keras_layers"),
        ("testing", "import keras_fusion\nfrom keras_fusion import fuse"),
    ],
)
def test_downward_import_passes(unit, source):
    assert direction_errors(unit, ast.parse(source)) == []


def test_relative_import_in_a_subpackage():
    tree = ast.parse("from ..fusion import fuse\nfrom .keras_layers import x")
    (error,) = direction_errors("rules", tree, "keras_fusion.rules")
    assert "line 1: 'rules' (level 3) imports 'keras_fusion.fusion.fuse'" in error


def test_module_without_level_is_found():
    (error,) = direction_errors("novelty", ast.parse(""))
    assert "'novelty' has no level. Add it to LEVELS in tests/" in error


@pytest.mark.parametrize(
    "source",
    [
        "model._tracker",
        "model._tracker = None",
        "self.model._layers.append(x)",
        "type(self)._rules",
        "getattr(model, '_layers', [])",
        "setattr(model, '_layers', [])",
        "import keras.src",
        "import keras.src.models as m",
        "from keras import src",
        "from keras.src.models import functional",
        "from keras_hub.src import models",
        "def f():\n    from keras.src.models import functional",
        "from tensorflow.python import _pywrap",
        "keras.src.models",
    ],
)
def test_private_access_is_found(source):
    assert private_errors(ast.parse(source))


@pytest.mark.parametrize(
    "source",
    [
        "self._step + cls._steps",
        "getattr(self, '_step')",
        "model.__class__.__name__",
        "_check(model)",
        "from keras_fusion.structure import _walk",
        "from __future__ import annotations\nimport keras.layers",
    ],
)
def test_own_state_passes(source):
    assert private_errors(ast.parse(source)) == []


@pytest.mark.parametrize(
    "statement",
    ["x = 1", "def f(): pass", "if x:\n    pass", "print()", "'a string'"],
)
def test_code_in_init_is_found(statement):
    start = '"""Docs."""\nimport a\nfrom a import b\n__all__ = ["b"]\n'
    assert init_errors(ast.parse(start + '__version__ = "1"')) == []
    assert init_errors(ast.parse(start + statement))
    assert init_errors(ast.parse("import a")) == ["has no docstring."]
