"""The rooms, enforced: who may import whom.

Everything is read from the sources with `ast`; nothing is imported.
"""

import ast
import graphlib

import pytest
from repository import PACKAGE
from sources import MODULES, imports, name_of, parse

NAME = PACKAGE.name

# The rooms, lowest first. A module imports from its own room and from those above it in
# this table, and no modules import each other in a circle.
ROOMS = (
    "errors",
    "models",
    "architecture",
    "layout",
    "values",
    "graft",
    "operators",
    "training",
    "analysis",
    ("layers", "flops", "dynamics"),  # names of the rooms' content, for users
    "testing",
    "t5",
    "demo",
)
ORDER = {
    room: place
    for place, rooms in enumerate(ROOMS)
    for room in ([rooms] if isinstance(rooms, str) else rooms)
}

# From here on the package is used as a user does: `import keras_fusion` is allowed.
FIRST_USER = ORDER["testing"]


def room_of(path):
    """`models` for `models/private/names.py`, `errors` for `errors.py`."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def direction_errors(room, tree, package=NAME):
    """What is wrong with a module's imports from the package itself."""
    if room not in ORDER:
        return [
            f"{room!r} is no room. Add it to ROOMS in tests/package/test_import_order.py, "
            "below everything that it imports."
        ]
    errors = []
    for item in imports(tree, package):
        parts = item.target.split(".")
        if parts[0] != NAME:
            continue
        # `from keras_fusion import fuse` asks the package itself for a name.
        target = parts[1] if len(parts) > 1 and parts[1] in ORDER else None
        if target is None:
            allowed = ORDER[room] >= FIRST_USER
        else:
            allowed = target == room or ORDER[target] < ORDER[room]
        if not allowed:
            place = f"room {ORDER[target]}" if target else "the whole package"
            errors.append(
                f"line {item.line}: {room!r} (room {ORDER[room]}) imports "
                f"{item.target!r} ({place}), which does not come before it."
            )
    return errors


def module_name(path):
    """The dotted name of a source file; a package's is its own."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def import_graph(sources):
    """For each module those that it imports, as `graphlib` wants it.

    `sources` maps names of modules to their syntax trees.
    """
    graph = {}
    for name, tree in sources.items():
        graph[name] = {
            found
            for item in imports(tree)
            if (found := _longest_known(item.target, sources)) not in (None, name)
            # A package's own modules are what it consists of.
            and not name.startswith(f"{found}.")
        }
    return graph


def _longest_known(target, sources):
    parts = target.split(".")
    names = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((name for name in names if name in sources), None)


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


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_imports_only_from_below(path):
    errors = direction_errors(room_of(path), *parse(path))
    assert not errors, f"{name_of(path)}:\n" + "\n".join(errors)


def test_no_modules_import_each_other_in_a_circle():
    sources = {module_name(path): parse(path)[0] for path in MODULES}
    list(graphlib.TopologicalSorter(import_graph(sources)).static_order())


def test_init_only_imports():
    errors = init_errors(parse(PACKAGE / "__init__.py")[0])
    assert not errors, (
        f"{NAME}/__init__.py may hold only a docstring, imports, __all__ and "
        "__version__:\n" + "\n".join(errors)
    )


def test_rooms_exist_and_are_few():
    rooms = {room_of(path) for path in MODULES}
    assert set(ORDER) == rooms
    assert len(rooms | {"__init__.py"}) <= 16


# The checks themselves: a check that finds nothing anywhere would pass above.


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("models", "import keras_fusion.operators"),
        ("models", "from keras_fusion import operators"),
        ("models", "from keras_fusion.operators.fusion import fuse"),
        ("models", "from . import operators"),
        ("models", "from .operators import fuse"),
        ("models", "import importlib\nimportlib.import_module('keras_fusion.t5')"),
        ("models", "__import__(f'keras_fusion.operators{x}')"),
        ("models", "def f():\n    from keras_fusion import operators"),
        ("models", "from keras_fusion import DeepFusion"),
        ("models", "import keras_fusion"),
        ("layers", "from keras_fusion import flops"),  # in the same place of the table
        ("models", "if not TYPE_CHECKING:\n    from keras_fusion import operators"),
        ("models", "if TYPE_CHECKING:\n    pass\nelse:\n    import keras_fusion.graft"),
    ],
)
def test_upward_import_is_found(room, source):
    (error,) = direction_errors(room, ast.parse(source))
    assert "which does not come before it" in error


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("graft", "import keras\nfrom keras_fusion import values"),
        ("graft", "from .errors import FusionError"),
        ("graft", "if TYPE_CHECKING:\n    from keras_fusion.operators import fusion"),
        ("graft", "if typing.TYPE_CHECKING:\n    from keras_fusion import operators"),
        ("models", "from keras_fusion.models import keras_rules"),
        ("testing", "import keras_fusion\nfrom keras_fusion import fuse"),
    ],
)
def test_downward_import_passes(room, source):
    assert direction_errors(room, ast.parse(source)) == []


def test_relative_import_in_a_room():
    tree = ast.parse("from ..operators import fuse\nfrom .keras_rules import x")
    (error,) = direction_errors("models", tree, "keras_fusion.models")
    assert "line 1: 'models' (room 1) imports 'keras_fusion.operators.fuse'" in error


def test_module_outside_of_all_rooms_is_found():
    (error,) = direction_errors("novelty", ast.parse(""))
    assert "'novelty' is no room. Add it to ROOMS in tests/" in error


def test_circle_is_found():
    sources = {
        "keras_fusion.models.a": ast.parse("from keras_fusion.models import b"),
        "keras_fusion.models.b": ast.parse(
            "def f():\n    import keras_fusion.models.a"
        ),
    }
    with pytest.raises(graphlib.CycleError):
        list(graphlib.TopologicalSorter(import_graph(sources)).static_order())


@pytest.mark.parametrize(
    "statement",
    ["x = 1", "def f(): pass", "if x:\n    pass", "print()", "'a string'"],
)
def test_code_in_init_is_found(statement):
    start = '"""Docs."""\nimport a\nfrom a import b\n__all__ = ["b"]\n'
    assert init_errors(ast.parse(start + '__version__ = "1"')) == []
    assert init_errors(ast.parse(start + statement))
    assert init_errors(ast.parse("import a")) == ["has no docstring."]
