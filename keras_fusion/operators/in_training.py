"""What a model does only in training: found, and its noise turned off."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import keras

from keras_fusion.models import tree
from keras_fusion.models.private.attributes import instance_attributes

# Layers of these packages act in training by dropout, noise and statistics alone.
_KNOWN = ("keras", "keras_hub", "keras_fusion")
_RATES = ("rate", "stddev")


def layers_of(models: Iterable[keras.Model]) -> list[keras.Layer]:
    """All layers of several models, each once."""
    return list({id(x): x for model in models for _, x in tree.walk(model)}.values())


def needs_call(layers: Sequence[keras.Layer]) -> bool:
    """Whether there is code that may do anything in training."""
    return any(
        type(layer).__module__.split(".")[0] not in _KNOWN
        or isinstance(layer, keras.layers.Lambda)
        for layer in layers
    )


def needs_noise(layers: Sequence[keras.Layer]) -> bool:
    """Whether a noise of given shape may not fit a wider tensor."""
    return any(getattr(layer, "noise_shape", None) is not None for layer in layers)


@contextlib.contextmanager
def quiet(layers: Sequence[keras.Layer]) -> Iterator[None]:
    """A scope in which layers have neither dropout nor noise."""
    with contextlib.ExitStack() as restored:
        for layer in layers:
            for name in _RATES:
                value = instance_attributes(layer).get(name)
                if isinstance(value, (int, float)) and value > 0:
                    setattr(layer, name, 0.0)
                    restored.callback(setattr, layer, name, value)
        yield
