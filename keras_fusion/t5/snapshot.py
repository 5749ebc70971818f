"""Copies of a model's values with its optimizer's, to go back to or to keep in a file."""

import keras
import numpy as np


def snapshot(model: keras.Model) -> list[np.ndarray]:
    """Copies all that training changes: weights, seeds, and the optimizer's state.

    Args:
        model: compiled Keras model whose optimizer is built.

    Returns:
        List of arrays, in an order that models of one kind share.

    Example:

    >>> import keras, numpy as np
    >>> from keras_fusion.t5.snapshot import restore, snapshot
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile("adam", "mse")
    >>> model.optimizer.build(model.trainable_variables)
    >>> before = snapshot(model)
    >>> _ = model.train_on_batch(np.ones((4, 2)), np.ones((4, 1)))
    >>> restore(model, before)
    >>> int(model.optimizer.iterations)
    0
    """
    return [np.array(keras.ops.convert_to_numpy(v)) for v in _variables(model)]


def restore(model: keras.Model, values: list[np.ndarray]) -> None:
    """Puts a `snapshot` back, into the same model or one that is built alike.

    Args:
        model: compiled Keras model. Its optimizer is built if it is not yet.
        values: list of arrays.

    Raises:
        ValueError: if there are more or fewer arrays than variables.
    """
    model.optimizer.build(model.trainable_variables)
    for variable, value in zip(_variables(model), values, strict=True):
        variable.assign(value)


def _variables(model):
    return [*model.variables, *model.optimizer.variables]
