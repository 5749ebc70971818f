"""The examples of the documentation run."""

import doctest
import importlib
import pkgutil

import keras_fusion

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
