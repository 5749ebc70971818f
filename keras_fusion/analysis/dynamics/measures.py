"""Measures of a model around a growth, apart from its field."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_fusion.models import tree
from keras_fusion.models.observe import observe


def block_alignment(blocks: Sequence[np.ndarray]) -> float:
    """The mean cosine between two blocks' gradients: 1 for copies that are still equal.

    Args:
        blocks: list of arrays of shape `(n,)`, one per parent, as returned by
            `Blocks.split(gradient)`.

    Returns:
        float, `nan` if the blocks' sizes differ.

    Example:

    >>> import numpy as np
    >>> from keras_fusion.dynamics import block_alignment
    >>> float(block_alignment([np.array([3.0, 4.0]), np.array([6.0, 8.0])]))
    1.0
    """
    return _mean_of_pairs(blocks, _cosine)


def asymmetry(blocks: Sequence[np.ndarray]) -> float:
    """The divergence of the blocks' weights: 0 for copies, 1 if unrelated.

    The distance between two blocks over the root of the sum of their squares, averaged
    over all pairs.

    Args:
        blocks: list of arrays of shape `(n,)`, one per parent, as returned by
            `Blocks.split(weights)`.

    Returns:
        float, `nan` if the blocks' sizes differ.

    Example:

    >>> import numpy as np
    >>> from keras_fusion.dynamics import asymmetry
    >>> round(asymmetry([np.array([1.0, 0.0]), np.array([0.0, 1.0])]), 6)
    1.0
    """
    return _mean_of_pairs(blocks, _distance)


def activation_rms(model: keras.Model, inputs: Any) -> dict[str, float]:
    """The root mean square of each layer's output, in inference mode.

    Args:
        model: a built model.
        inputs: a batch in the structure of the model's inputs.

    Returns:
        Dict from a layer's address to a float, for the layers whose output is a single
        float tensor.

    Example:

    >>> import keras, numpy as np
    >>> from keras_fusion.dynamics import activation_rms
    >>> ones = keras.layers.Dense(4, kernel_initializer="ones")
    >>> model = keras.Sequential([keras.Input((2,)), ones])
    >>> activation_rms(model, np.ones((3, 2)))["layers[0]"]
    2.0
    """
    layers = {address: layer for address, layer in tree.walk(model) if address}
    seen = observe(model, inputs, layers.values())
    found = {}
    for address, layer in layers.items():
        output = next((result for _, result in seen[id(layer)][-1:]), None)
        if output is not None and output.dtype.kind == "f":
            found[address] = float(np.sqrt(np.mean(output.astype("float64") ** 2)))
    return found


def activation_jump(before: Mapping[str, float], after: Mapping[str, float]) -> float:
    """The largest factor by which a layer's activations grew or shrank.

    Args:
        before: result of `activation_rms` for the small model.
        after: result of `activation_rms` for the grown model.

    Returns:
        float of at least 1; `nan` if no layer can be compared.

    Example:

    >>> from keras_fusion.dynamics import activation_jump
    >>> activation_jump({"dense": 1.0, "head": 3.0}, {"dense": 1.5, "head": 1.0})
    3.0
    """
    ratios = [
        after[address] / value
        for address, value in before.items()
        if value > 0 and after.get(address, 0) > 0
    ]
    return max((max(r, 1 / r) for r in ratios), default=float("nan"))


def _mean_of_pairs(
    blocks: Sequence[np.ndarray], measure: Callable[[np.ndarray, np.ndarray], float]
) -> float:
    if len({len(block) for block in blocks}) > 1 or len(blocks) < 2:
        return float("nan")
    pairs = itertools.combinations(blocks, 2)
    return float(np.mean([measure(a, b) for a, b in pairs]))


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    scale = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / scale) if scale else float("nan")


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    scale = np.sqrt(a @ a + b @ b)
    return float(np.linalg.norm(a - b) / scale) if scale else float("nan")
