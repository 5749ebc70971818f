"""Every public name has a manual: arguments, result, errors, an example that runs."""

import ast
import inspect
import re
import textwrap
from pathlib import Path

import keras
from public import public_names
from repository import PACKAGE

PUBLIC = public_names()


def sections(text):
    """Dict from a section's title to its text, the description under ''."""
    found, title = {"": []}, ""
    for line in textwrap.dedent(text).splitlines():
        match = re.fullmatch(r"([A-Z][A-Za-z ]+):", line)
        title = match[1] if match else title
        found.setdefault(title, [])
        if not match:
            found[title].append(line)
    return {title: "\n".join(lines).strip("\n") for title, lines in found.items()}


def documented_arguments(section):
    """The arguments that an Args section describes, `**kwargs` as `kwargs`."""
    heads = re.findall(r"^    (\*{0,2}\w+(?:, \w+)*):\s", section + "\n", re.MULTILINE)
    return {name.strip("* ") for head in heads for name in head.split(",")}


def arguments(function):
    parameters = inspect.signature(function).parameters
    return [name for name in parameters if name not in ("self", "cls")]


def raises(value):
    """Whether a function or constructor raises, itself or in its module's helpers."""
    source = ast.parse(Path(inspect.getsourcefile(value)).read_text(encoding="utf-8"))
    helpers = {n.name: n for n in source.body if isinstance(n, ast.FunctionDef)}
    tree = ast.parse(textwrap.dedent(inspect.getsource(value))).body[0]
    starts = [tree]
    if isinstance(tree, ast.ClassDef):
        starts = [
            n
            for n in tree.body
            if isinstance(n, ast.FunctionDef)
            and n.name in ("__init__", "__post_init__", "__call__")
        ]
    seen = set()

    def visit(node):
        for inner in ast.walk(node):
            if isinstance(inner, ast.Raise) and inner.exc is not None:
                return True
            name = getattr(getattr(inner, "func", None), "id", None)
            if name in helpers and name not in seen:
                seen.add(name)
                if visit(helpers[name]):
                    return True
        return False

    return any(map(visit, starts))


def faults(value):
    """What the docstring of a public class or function lacks."""
    text = inspect.getdoc(value) or ""
    found = sections(text)
    is_class = inspect.isclass(value)
    missing = []
    own_init = is_class and ("__init__" in vars(value))
    if not is_class or own_init:
        told = documented_arguments(found.get("Args", ""))
        function = value.__init__ if is_class else value
        untold = [name for name in arguments(function) if name not in told]
        missing += [f"Args: {name}" for name in untold]
    if not is_class and "Returns" not in found:
        missing.append("Returns")
    if raises(value) and "Raises" not in found:
        missing.append("Raises")
    if ">>> " not in text:
        missing.append("an example that runs")
    arrays = not is_class and "ndarray" in str(inspect.signature(value))
    is_layer = is_class and issubclass(value, keras.Layer)
    if (arrays or is_layer) and not re.search("shape|size", text):
        missing.append("shapes")
    return missing


def methods(cls):
    """The public methods that a class of ours defines anew, not those it overrides."""
    for name, value in vars(cls).items():
        function = inspect.unwrap(getattr(value, "__func__", value))
        if not inspect.isfunction(function) or name.startswith("_"):
            continue
        if not any(hasattr(base, name) for base in cls.__mro__[1:]):
            yield name, function


def test_public_names_have_a_manual():
    lacking = {name: faults(value) for name, value in PUBLIC.items()}
    lacking = {name: missing for name, missing in lacking.items() if missing}
    assert len(PUBLIC) > 40
    assert not lacking, f"These docstrings lack something: {lacking}"


def test_public_methods_describe_their_arguments():
    classes = {name: v for name, v in PUBLIC.items() if inspect.isclass(v)}
    for name, cls in classes.items():
        for method, function in methods(cls):
            found = sections(inspect.getdoc(function) or "")
            told = documented_arguments(found.get("Args", ""))
            untold = [a for a in arguments(function) if a not in told]
            assert found[""], f"{name}.{method} has no docstring."
            # One argument is what the summary speaks of.
            assert len(untold) < 2, f"{name}.{method} lacks Args: {untold}."


def is_setter(function):
    """Whether a property's setter, which its getter documents."""
    return any(getattr(d, "attr", "") == "setter" for d in function.decorator_list)


def undocumented(tree, name):
    """The module and all in it that is public and has no docstring, by dotted name."""
    if ast.get_docstring(tree) is None:
        yield name
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            if node.name.startswith("_"):
                continue
            if isinstance(node, ast.ClassDef):
                yield from undocumented(node, f"{name}.{node.name}")
            elif ast.get_docstring(node) is None and not is_setter(node):
                yield f"{name}.{node.name}"


def test_every_room_is_documented():
    """Modules, classes, functions and methods, whether users import them or not."""
    files = {p.relative_to(PACKAGE).as_posix(): p for p in PACKAGE.rglob("*.py")}
    assert {name.partition("/")[0] for name in files} >= {"models", "training", "t5"}
    lacking = [
        found
        for name, path in files.items()
        for found in undocumented(ast.parse(path.read_text("utf-8")), name)
    ]
    assert not lacking, f"No docstring: {lacking}"


# The checks themselves.


def checked(x, y):
    """Divides.

    Args:
        x: array of shape `(n,)`.
    """
    return helper(x, y)


def helper(x, y):
    if y == 0:
        raise ValueError("y")
    return x / y


class Checked:
    """Holds."""

    def __init__(self, size):
        self.size = helper(size, 1)


def test_faults_are_found():
    assert faults(checked) == ["Args: y", "Returns", "Raises", "an example that runs"]
    assert faults(Checked) == ["Args: size", "Raises", "an example that runs"]


def test_sections_are_read():
    found = sections(
        "Sums.\n\nArgs:\n    a, b: two.\n        x: no\n    **c: z\n\nRaises:\n"
    )
    assert documented_arguments(found["Args"]) == {"a", "b", "c"}
    assert found["Raises"] == "" and found[""] == "Sums."


def test_what_is_undocumented_is_found():
    source = """
class A:
    def b(self): pass
    def _c(self): pass
    @b.setter
    def b(self, value): pass
def d(): "d"
"""
    assert list(undocumented(ast.parse(source), "m")) == ["m", "m.A", "m.A.b"]
