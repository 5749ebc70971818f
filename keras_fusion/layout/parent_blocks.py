"""The places of the parents' parameters in a grown model, and their training speed."""

import dataclasses
from collections.abc import Sequence

import keras
import numpy as np

from keras_fusion.layout.axes import Axis, block_index, is_readout
from keras_fusion.layout.variables import VariableLayout
from keras_fusion.models import private


@dataclasses.dataclass(frozen=True)
class Place:
    """The places of the parents in one variable of a grown model.

    Args:
        shape: tuple of ints.
        axes: tuple of `Axis`, one per dimension.
        value_scale: float. The factor on the parents' values.
        gradient_scale: float. How much smaller its gradient is than a parent's.
    """

    shape: tuple[int, ...]
    axes: tuple[Axis, ...]
    value_scale: float
    gradient_scale: float

    @property
    def grown(self) -> bool:
        """Whether the parents lie side by side in this variable."""
        return any(axis.grown for axis in self.axes)


class Blocks:
    """The parents' blocks in the trainable variables of a grown model.

    A `GrowModel` callback makes one at each growth, as its attribute `blocks`.

    Args:
        layouts: the `VariableLayout`s of the growth.
        model: the grown model.

    Attributes:
        count: int. How many parents there are.
        places: list of `Place`, one per weight of the model; `None` for a weight that no
            parent has (a block norm's blend).

    Example:

    >>> import keras, keras_fusion, numpy as np
    >>> model = keras.Sequential(
    ...     [keras.Input((1,)), keras.layers.Dense(2), keras.layers.Dense(1)]
    ... )
    >>> model.compile("sgd", "mse")
    >>> grow = keras_fusion.DeepFusion(at_step=1, verbose=0)
    >>> _ = model.fit(np.ones((2, 1)), np.ones((2, 1)), verbose=0, callbacks=[grow])
    >>> [mask.shape for mask in grow.blocks.masks()]
    [(1, 4), (4,), (4, 1), (1,)]
    """

    def __init__(self, layouts: Sequence[VariableLayout], model: keras.Model):
        by_target = {id(item.target): item for item in layouts}
        places = {key: _place(item) for key, item in by_target.items()}
        self.count = len(layouts[0].sources)
        self.places = [places.get(id(v)) for v in model.weights]
        self._trainable = [places[id(v)] for v in model.trainable_variables]

    def masks(self) -> list[np.ndarray]:
        """Ones at the parents' own parameters, zeros at off-diagonals and new capacity.

        Returns:
            List of float32 arrays, one per trainable variable and of its shape.
        """
        return [self._mask(place) for place in self._trainable]

    def speeds(self, degree: int = 1) -> list[np.ndarray]:
        """Speeds of the parameters in the parents' training, per grown gradient.

        After a self-fusion by k a hidden kernel's gradient is 1/k of the parent's, so the
        parent moved its block k times as far as the grown model does at the same rate; a
        readout, itself divided by k, moved 1/k as far.

        Args:
            degree: int. The power of the gradient that the updates scale with: 1 for
                SGD, 0 for optimizers that divide its scale away, such as Adam.

        Returns:
            List of float32 arrays like `masks()`.
        """
        return [
            self._mask(place) * place.value_scale / place.gradient_scale**degree
            for place in self._trainable
        ]

    def split(self, values: list[np.ndarray]) -> list[np.ndarray]:
        """Each parent's entries of a vector, from the variables that grew.

        Args:
            values: list of arrays, one per trainable variable and of its shape.

        Returns:
            One flat array per parent, of the parents' sizes.
        """
        rows = [
            (place, np.asarray(value, "float64"))
            for place, value in zip(self._trainable, values, strict=True)
            if place.grown
        ]
        return [
            np.concatenate([v[block_index(p.axes, k)].ravel() for p, v in rows])
            for k in range(self.count)
        ]

    def _mask(self, place: Place) -> np.ndarray:
        if not place.grown:
            return np.ones(place.shape, "float32")
        mask = np.zeros(place.shape, "float32")
        for k in range(self.count):
            mask[block_index(place.axes, k)] = 1.0
        return mask


def _place(item: VariableLayout) -> Place:
    scale = float(np.mean(item.scales))
    if is_readout(item.axes):
        scale /= item.copies
    return Place(tuple(item.target.shape), item.axes, scale, item.gradient_scale)


def remember(layouts: Sequence[VariableLayout], model: keras.Model) -> Blocks:
    """Makes the `Blocks` of a growth, which `of` finds while the model lives."""
    return private.attach(model, Blocks(layouts, model))


def of(model: keras.Model) -> Blocks | None:
    """The `Blocks` of a model's last growth, or `None`."""
    return private.attached(model, Blocks)
