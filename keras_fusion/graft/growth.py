"""Growths as the graft needs them: the attributes of a `Plan` that it reads."""

from collections.abc import Sequence
from typing import Protocol

import keras

from keras_fusion.layout.variables import VariableLayout
from keras_fusion.values.fillers import Filler


class Growth(Protocol):
    """One growth, as a `Plan` describes it."""

    @property
    def parents(self) -> Sequence[keras.Model]:
        """The parents; the first one is the live model."""
        ...

    @property
    def fused(self) -> keras.Model:
        """The bigger model."""
        ...

    @property
    def layouts(self) -> Sequence[VariableLayout]:
        """The layouts of the bigger model's variables."""
        ...

    @property
    def filler(self) -> Filler:
        """The filler."""
        ...

    @property
    def copies(self) -> bool:
        """Whether the parents are copies of one model."""
        ...


class Stages(Protocol):
    """One or several consecutive growths, as `Plan` or `Plans` describe them."""

    @property
    def stages(self) -> Sequence[Growth]:
        """The growths one by one."""
        ...
