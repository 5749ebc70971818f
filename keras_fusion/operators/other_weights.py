"""Weights other than a model's own, with which a growth is measured once more.

What a graph tells of a model is known for all weights. Where a call is written in a class,
measuring is all there is, and a model's own weights may hide what it does: a minimum over
the features sees new zeros only where all features are positive.
"""

from collections.abc import Iterator, Sequence

import keras
import numpy as np

from keras_fusion.models import graph as graphs
from keras_fusion.models import probe, tree
from keras_fusion.models.probe import Value

_KNOWN_MODULES = ("keras.", "keras_hub.", "keras_fusion.")

# By what the weights are called in an error, the signs of the layers in turn.
_SIGNED = {
    "positive": (1,),
    "negative": (-1,),
    "positive and negative": (1, -1),
}


def is_known(model: keras.Model) -> bool:
    """Whether all that a model does is told by its graph and by layers that are known.

    Args:
        model: a built model.
    """
    return all(
        graphs.is_plain(layer) or type(layer).__module__.startswith(_KNOWN_MODULES)
        for _, layer in tree.walk(model)
    )


def drawn(
    models: Sequence[keras.Model], has_new: bool
) -> Iterator[tuple[list[Value], str]]:
    """Yields other weights for some models, to be assumed.

    Args:
        models: the parents, each once.
        has_new: bool. Whether features are added that are zero at first. These show in
            some functions only beside features of one sign.

    Yields:
        Pairs of a list `(variable, array)` and what such weights are called.
    """
    rng = np.random.default_rng(2)
    yield _values(models, lambda v, _: probe.random_value(v, rng)), "random"
    for name, signs in _SIGNED.items() if has_new else ():

        def signed(variable, index, signs=signs):
            return signs[index % len(signs)] * _positive(variable, rng)

        yield _values(models, signed), name


def _values(models, make):
    """One value for each trainable variable, made with its layer's number."""
    trainable = {id(v) for model in models for v in model.trainable_variables}
    found = {}
    for model in models:
        owners = [tree.own_variables(layer) for _, layer in tree.walk(model)]
        for index, variables in enumerate(filter(None, owners)):
            for v in variables:
                if id(v) in trainable:
                    found.setdefault(id(v), (v, make(v, index)))
    return list(found.values())


def _positive(variable: keras.Variable, rng: np.random.Generator) -> np.ndarray:
    """Positive weights, with which the sum over a layer's inputs is of their size."""
    size = np.prod(variable.shape[:-1], dtype=int) if len(variable.shape) > 1 else 1
    value = rng.uniform(0.5, 1.5, variable.shape) / max(size, 1)
    return value.astype(variable.dtype)
