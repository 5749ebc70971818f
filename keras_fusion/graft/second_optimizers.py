"""Optimizers beside `model.optimizer`, which no growth can carry through."""

from collections.abc import Iterator, Mapping
from typing import Any

import keras

from keras_fusion.errors import FusionError
from keras_fusion.models import tree
from keras_fusion.models.private.attributes import attributes, instance_attributes

# Nested containers and plain objects in which optimizers are looked for.
_DEPTH = 4


def check(live: keras.Model) -> None:
    """Checks that a model trains with no other optimizer than its own.

    Raises:
        FusionError: naming the attribute in which there is another one.
    """
    for address, layer in tree.by_attribute(live):
        for name, value in attributes(layer):
            if name == "optimizer" and (layer is live or not _trains_itself(live)):
                continue
            for path, found in _paths(value, name, _DEPTH):
                if found is live.optimizer:
                    continue
                where = f"{address}.{path}" if address else path
                raise FusionError(
                    f"Model {live.name!r} trains with a second optimizer, in its "
                    f"attribute {where!r}; only `model.optimizer` can be grown. Train "
                    "with one optimizer (keras.optimizers.MultiOptimizer combines "
                    "several)."
                )


def _trains_itself(model: keras.Model) -> bool:
    """Whether a model's class has a step of its own.

    Keras's own step does not use the optimizers that sub-models were compiled with.
    """
    return type(model).train_step is not keras.Model.train_step


def _paths(value: Any, path: str, depth: int) -> Iterator[tuple[str, Any]]:
    """Yields the optimizers in a value, with their paths; `path` is the value's own."""
    if isinstance(value, keras.optimizers.Optimizer):
        yield path, value
    elif not depth or isinstance(value, (keras.Layer, str, bytes)):
        return  # Layers are walked by themselves.
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _paths(item, f"{path}[{key!r}]", depth - 1)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for i, item in enumerate(value):
            yield from _paths(item, f"{path}[{i}]", depth - 1)
    elif _is_plain(value):
        for name, item in instance_attributes(value).items():
            yield from _paths(item, f"{path}.{name}", depth - 1)


def _is_plain(value: Any) -> bool:
    """Whether a value is an object of a user's own, such as a namespace of optimizers."""
    package = type(value).__module__.partition(".")[0]
    backends = ("keras", "keras_hub", "tensorflow", "jax", "jaxlib", "torch", "numpy")
    return hasattr(value, "__dict__") and package not in (*backends, "keras_fusion")
