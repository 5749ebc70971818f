"""The package as it is written: its files, their syntax trees, what they import."""

import ast
import dataclasses

from repository import PACKAGE

FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = [path for path in FILES if path != PACKAGE / "__init__.py"]


def parse(path):
    """A file's syntax tree, and the package that it lies in."""
    parts = path.relative_to(PACKAGE.parent).parent.parts
    return ast.parse(path.read_text(encoding="utf-8")), ".".join(parts)


def name_of(path):
    """A file's path from the root of the project, which tells it from others."""
    return path.relative_to(PACKAGE.parent).as_posix()


@dataclasses.dataclass(frozen=True)
class Import:
    """One name that a module imports, written absolutely (`keras.layers.Dense`)."""

    target: str
    line: int
    lazy: bool  # inside a function


def imports(tree, package=PACKAGE.name):
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
                yield Import(leading_text(node.args[0]), line, lazy)
        lazy = lazy or isinstance(
            node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
        )
        children = (
            node.orelse if _is_type_checking(node) else ast.iter_child_nodes(node)
        )
        for child in children:
            yield from visit(child, lazy)

    return list(visit(tree, False))


def _is_type_checking(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in (
        getattr(node.test, "id", None),
        getattr(node.test, "attr", None),
    )


def leading_text(node):
    """The constant start of a string: of `f"keras_fusion.rules.{name}"` too."""
    if isinstance(node, ast.JoinedStr) and node.values:
        node = node.values[0]
    value = getattr(node, "value", "")
    return value if isinstance(value, str) else ""
