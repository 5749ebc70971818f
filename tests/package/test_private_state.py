"""Only a few places touch the private state of Keras, or of anything else.

Read from the sources with `ast`: private attributes, private names in strings, and looks
into the dictionary of another object's attributes.
"""

import ast
import re

import pytest
from repository import PACKAGE
from sources import FILES, imports, leading_text, name_of, parse

# The only places that may touch Keras's private state.
PLACES = ("graft/", "models/private/")
PRIVATE_PACKAGES = ("keras.src", "keras_hub.src")

# What looks like private state of another object and is none, with the reason.
ALLOWED = {
    ("t5/__main__.py", "vars(options)"): "argparse's way to give words as a dict",
    ("architecture/stacks.py", "'_Link'"): "an annotation of a class further down",
    ("models/rules.py", "'_Class'"): "the name of a type variable",
}

ACCESSORS = ("getattr", "setattr", "delattr", "hasattr")


def is_private(name):
    """Whether a name is private: one underscore before it, and not two."""
    return re.match(r"_(?!_)", name) is not None


def is_private_text(node):
    """Whether a whole string is a private name, or a path of names with one in it."""
    text = node.value if isinstance(node, ast.Constant) else None
    path = r"(\w+\.)*_(?!_)\w*[a-zA-Z]\w*(\.\w+)*"
    return isinstance(text, str) and re.fullmatch(path, text) is not None


def is_own(node):
    """Whether it is a method's own object, or all of its attributes."""
    if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "vars":
        node = node.args[0] if node.args else None
    elif isinstance(node, ast.Attribute) and node.attr == "__dict__":
        node = node.value
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def private_imports(tree, package):
    """Imports of what another package keeps to itself."""
    for item in imports(tree, package):
        names = item.target.split(".")
        foreign = names[0] != PACKAGE.name
        if item.target.startswith(tuple(f"{p}." for p in PRIVATE_PACKAGES)) or (
            foreign and (item.target in PRIVATE_PACKAGES or any(map(is_private, names)))
        ):
            yield item.line, f"imports {item.target}"


def private_uses(tree):
    """Private attributes, looks into `vars()`, and private names in strings."""
    passed = set()  # Strings that name state of `self`, or are the ends of others.
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            if ast.unparse(node) in PRIVATE_PACKAGES:
                yield node.lineno, ast.unparse(node)
            if is_private(node.attr) and not is_own(node.value):
                yield node.lineno, ast.unparse(node)
            if node.attr == "__dict__" and not is_own(node):
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Subscript) and is_own(node.value):
            passed.add(id(node.slice))
        elif isinstance(node, ast.Call) and node.args:
            function = getattr(node.func, "id", None)
            if function == "vars" and not is_own(node):
                yield node.lineno, ast.unparse(node)
            if function in ACCESSORS and len(node.args) > 1:
                if is_own(node.args[0]):
                    passed.add(id(node.args[1]))
                elif is_private(leading_text(node.args[1])):
                    yield node.lineno, ast.unparse(node)
                    passed.add(id(node.args[1]))  # Told once.
        elif isinstance(node, ast.JoinedStr):
            passed.update(map(id, node.values[1:]))
        elif is_private_text(node) and id(node) not in passed:
            yield node.lineno, repr(node.value)


def private_errors(tree, package=PACKAGE.name):
    """Pairs of a line and what it does with the private state of something else."""
    return [*private_imports(tree, package), *private_uses(tree)]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_some_places_touch_private_state(path):
    name = path.relative_to(PACKAGE).as_posix()
    if name.startswith(PLACES):
        return
    errors = [
        f"line {line}: {what}"
        for line, what in private_errors(*parse(path))
        if (name, what) not in ALLOWED
    ]
    assert not errors, (
        f"{name_of(path)} touches private state, which only {PLACES} may:\n"
        + "\n".join(errors)
    )


def test_what_is_allowed_is_there():
    """An exception that nobody needs any more is taken off the list."""
    for name, what in ALLOWED:
        found = [use for _, use in private_errors(*parse(PACKAGE / name))]
        assert what in found, f"{name} has no {what!r} any more: take it off ALLOWED."


# The check itself: one that finds nothing anywhere would pass above.


@pytest.mark.parametrize(
    "source",
    [
        "model._tracker",
        "model._tracker = None",
        "self.model._layers.append(x)",
        "type(self)._rules",
        "getattr(model, '_layers', [])",
        "setattr(model, '_layers', [])",
        "getattr(model, f'_{name}')",
        "import keras.src",
        "import keras.src.models as m",
        "from keras import src",
        "from keras.src.models import functional",
        "from keras_hub.src import models",
        "def f():\n    from keras.src.models import functional",
        "from tensorflow.python import _pywrap",
        "keras.src.models",
        "vars(model)",
        "vars(self.model).pop(name)",
        "model.__dict__",
        "type(self).__dict__",
        "state['_layers']",
        "attrgetter('_layers')",
        "attrgetter('model._layers')",
        "state.pop('_modules', {})",
        "name == '_layers'",
        "kept = {'_layers', '_metrics'}",
        "f'_layers{i}'",
    ],
)
def test_private_access_is_found(source):
    assert len(private_errors(ast.parse(source))) >= 1


@pytest.mark.parametrize(
    "source",
    [
        "self._step + cls._steps",
        "getattr(self, '_step')",
        "vars(self)['_step']",
        "self.__dict__['_step'] = 1",
        "vars(cls)",
        "vars()",
        "model.__class__.__name__",
        "_check(model)",
        "'_'.join(names) + '__init__' + '_ and so on' + f'{name}_copy'",
        "from keras_fusion.models.tree import _walk",
        "from __future__ import annotations\nimport keras.layers",
    ],
)
def test_own_state_passes(source):
    assert private_errors(ast.parse(source)) == []
