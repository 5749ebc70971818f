"""A built layer that becomes one of another class, with the same variables.

Everything that refers to the layer (the attributes and lists of its owner, the graph of
a functional model) continues to do so. Keras itself adds variables to built layers in
the same way, for LoRA.
"""

from typing import Any

import keras


def use_class(layer: Any, cls: type) -> None:
    """Makes a layer an instance of another class."""
    object.__setattr__(layer, "__class__", cls)


def add_variable(layer: Any, **options: Any) -> None:
    """Adds a variable to a built layer, as the attribute of its name.

    Args:
        layer: the layer.
        **options: arguments of `add_weight`.
    """
    tracker, locked = layer._tracker, layer._tracker.locked
    tracker.unlock()
    try:
        variable = layer.add_weight(**options)
        variable._path = f"{layer.path}/{variable.name}"
        setattr(layer, options["name"], variable)
    finally:
        if locked:
            tracker.lock()


def remove_variable(layer: Any, name: str) -> None:
    """Removes a variable from a built layer."""
    layer._untrack_variable(getattr(layer, name))
    # Not Keras's own, which collects garbage each time.
    super(keras.Layer, layer).__delattr__(name)


def track_again(layer: Any) -> None:
    """Makes PyTorch's view of a layer that of its present variables."""
    if keras.config.backend() == "torch" and hasattr(layer, "_torch_params"):
        layer._track_variables()
