"""The layers of a model whose configs set the sizes of its weights."""

from collections.abc import Iterator

import keras

from keras_fusion.errors import is_integer
from keras_fusion.models import graph as graphs
from keras_fusion.models import rules


def setters(model: keras.Layer) -> Iterator[keras.Layer]:
    """Yields the layers of a model that are built from a config of their own.

    Of a functional or Sequential model these are its layers; of a model or layer of
    another class it is itself, since its class builds what it holds, and the models that
    its rule names as nested.

    Args:
        model: the model.
    """
    if graphs.is_plain(model):
        for layer in getattr(model, "layers", ()):
            yield from setters(layer)
        return
    yield model
    rule = rules.find(model)
    for name in () if rule is None else rule.nested:
        yield from setters(getattr(model, name))


def whole_numbers(layer: keras.Layer) -> dict[str, int]:
    """The positive integers of a layer's config, by key; none if it has no config."""
    try:
        config = layer.get_config()
    except (NotImplementedError, AttributeError):
        return {}  # None, as of a model that is given the bigger one, or a broken one.
    return {key: int(value) for key, value in config.items() if is_integer(value, 1)}
