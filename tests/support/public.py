"""The names that users write."""

import inspect

import keras_fusion
from keras_fusion import dynamics, flops, layers, testing

PUBLIC_MODULES = (keras_fusion, dynamics, flops, layers, testing)


def public_names():
    """All public classes and functions, by the name that users write."""
    found = {}
    for module in PUBLIC_MODULES:
        for name in module.__all__:
            value = getattr(module, name)
            if not inspect.ismodule(value):
                found[f"{module.__name__}.{name}"] = value
    return found
