"""Fillers, which give the variables of a grown model their values.

There is one per way of growing. A filler is data (noise, seeds, corrections) and pure
functions on the arrays of one variable. `Plan` holds one and gets the weights from it;
`slot_values` gets the optimizer's state from it.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from keras_fusion.errors import FusionError
from keras_fusion.layout.variables import VariableLayout
from keras_fusion.models import host
from keras_fusion.values.calibration import Correction, Corrections
from keras_fusion.values.copies import copy_array, copy_slot, filled
from keras_fusion.values.fuse import fuse_arrays, fuse_slot
from keras_fusion.values.slots import Slot


@dataclasses.dataclass(frozen=True)
class Filler:
    """Base class of fillers: subclass it and implement `value`.

    The optimizer's state follows the blocks of the layout, as if the model had always
    been the grown one; override `moment` and `distance` to change that.

    Example:

    >>> import dataclasses, keras, keras_fusion, numpy as np
    >>> @dataclasses.dataclass(frozen=True)
    ... class Zeros(keras_fusion.Filler):
    ...     def value(self, index, layout, arrays):
    ...         return np.zeros(layout.target.shape, arrays[0].dtype)
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8)])
    >>> model.add(keras.layers.Dense(1))
    >>> plan = keras_fusion.lay_out(model, factor=2)
    >>> plan = dataclasses.replace(plan, filler=Zeros(), exact=False)
    >>> float(np.max(plan.fill().get_weights()[0]))
    0.0
    """

    def value(
        self, index: int, layout: VariableLayout, arrays: Sequence[np.ndarray]
    ) -> np.ndarray:
        """The value of one variable, the same in every call.

        Args:
            index: int. The index of the layout in the plan.
            layout: `VariableLayout`, whose variables must not be read: the arrays may be
                values from another time.
            arrays: K arrays, one per parent. They must not be changed.

        Returns:
            Array of the target's shape.
        """
        raise NotImplementedError(f"{type(self).__name__} has no `value` yet.")

    def moment(
        self,
        slot: Slot,
        layout: VariableLayout,
        arrays: Sequence[np.ndarray],
        copies: bool,
    ) -> np.ndarray:
        """The value of a slot that averages gradients or updates.

        Args:
            slot: `Slot`.
            layout: `VariableLayout`.
            arrays: K arrays, the parents' slots.
            copies: bool. Whether the parents are copies of one model.

        Returns:
            Array of the grown slot's shape.
        """
        factor = layout.gradient_scale**slot.power
        return fuse_slot(
            arrays,
            slot.axes_of(layout.axes),
            factor=factor,
            copies=copies,
            second_moment=slot.positive,
        )

    def distance(
        self, layout: VariableLayout, arrays: Sequence[np.ndarray]
    ) -> np.ndarray:
        """The difference between an average of the weights and the weights.

        Args:
            layout: `VariableLayout`.
            arrays: K arrays, the differences in the parents.

        Returns:
            Array of the target's shape.
        """
        return fuse_arrays(arrays, layout.axes, scales=layout.scales)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WidthFiller(Filler):
    """Base class of the fillers that grow widths, with noise and new capacity.

    Args:
        noise_scale: float. Standard deviation of the noise relative to the kernel's.
        seed: int. Seed of all that is drawn.
        corrections: dict from the indices of a layout and of a parent to the
            `Correction` of that parent's value.
        fresh_roles: dict from the index of a layout to the roles of its axes whose new
            capacity starts from initial values.
        mean_outputs: indices of the layouts whose other new outputs are the mean of the
            old ones instead of zeros.
        noiseless: indices of the layouts that get no noise.
        size: float. How many times as large as usual the initial values of new capacity
            are: more than 1 only in a trial.
    """

    noise_scale: float = 0.0
    seed: int = 0
    corrections: Corrections = dataclasses.field(default_factory=dict)
    fresh_roles: Mapping[int, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    mean_outputs: frozenset[int] = frozenset()
    noiseless: frozenset[int] = frozenset()
    size: float = 1.0

    def obeying(self, layouts: Sequence[VariableLayout]) -> "WidthFiller":
        """The filler without noise where that would break the variable's constraint.

        The next update would undo it, and change the function.

        Args:
            layouts: the layouts of the growth.
        """
        broken = {
            index
            for index, layout in enumerate(layouts)
            if layout.target.trainable and layout.target.constraint is not None
            if not self._obeys(index, layout)
        }
        return dataclasses.replace(self, noiseless=self.noiseless | broken)

    def _obeys(self, index: int, layout: VariableLayout) -> bool:
        arrays = [host.read(source) for source in layout.sources]
        value = self.value(index, layout, arrays)
        return host.obeys(layout.target, value)


def _state(layout: VariableLayout, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The value of an integer or boolean variable.

    Raises:
        FusionError: if it is to grow.
    """
    if layout.grown:
        raise FusionError(
            f"{layout.address!r} holds {layout.target.dtype} numbers and would grow, and "
            "nothing tells what its new entries are. Pass the bigger model as `into` with "
            "a variable of the old size, or hold them as floats."
        )
    return arrays[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FusionFiller(WidthFiller):
    """Fills with the parents' blocks, by the FUSION operator.

    Layouts that `fresh_roles` lacks start from initial values in the role `"out"`.

    Args:
        off_diagonal: one of `fuse.OFF_DIAGONALS`.
    """

    off_diagonal: str = "zeros"

    def value(
        self, index: int, layout: VariableLayout, arrays: Sequence[np.ndarray]
    ) -> np.ndarray:
        """The parents' blocks, corrected, with noise in the off-diagonal blocks."""
        if layout.is_state:
            return _state(layout, arrays)
        roles = self.fresh_roles.get(index, ("out",))
        prepared = self._prepared(index, layout, arrays)
        return fuse_arrays(
            prepared,
            layout.axes,
            off_diagonal="zeros" if index in self.noiseless else self.off_diagonal,
            noise_scale=self.noise_scale,
            rng=[self.seed, index],
            fresh=self._sized(layout.initial(), layout, prepared)
            if layout.initial and roles
            else None,
            fresh_roles=roles,
            mean_outputs=index in self.mean_outputs,
        )

    def _sized(
        self, initial: np.ndarray, layout: VariableLayout, arrays: Sequence[np.ndarray]
    ) -> np.ndarray:
        """The values that new capacity starts from: the initial ones."""
        return self.size * initial

    def _prepared(
        self, index: int, layout: VariableLayout, arrays: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        """The parents' values, corrected and scaled."""
        done, found = {}, []
        for k, (scale, array) in enumerate(zip(layout.scales, arrays, strict=True)):
            correction = self.corrections.get((index, k))
            key = id(array), id(correction), scale
            if key not in done:
                done[key] = _scaled(_corrected(array, correction), layout, scale)
            found.append(done[key])
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class LikeOldFiller(FusionFiller):
    """Fills new capacity with initial values that are as large as the old ones."""

    def _sized(
        self, initial: np.ndarray, layout: VariableLayout, arrays: Sequence[np.ndarray]
    ) -> np.ndarray:
        """Initial values rescaled to the old ones' standard deviation.

        It is divided by the square root of the growth in fan-in.
        """
        if layout.before_tied_readout:  # It cannot read new features with zeros.
            return np.full_like(initial, -layout.offset)
        old = np.asarray(arrays[0], "float32")
        deviation = float(np.std(initial.astype("float32")))
        is_constant = deviation <= 1e-3 * np.max(np.abs(initial), initial=0.0)
        if initial.ndim < 2 or is_constant:
            return self.size * initial
        inputs = (axis for axis in layout.axes if axis.role == "in" and axis.grown)
        more = math.prod(axis.size / len(axis.positions(0)) for axis in inputs)
        wanted = float(old.std()) / math.sqrt(more)
        return (initial * (self.size * wanted / deviation)).astype(initial.dtype)


def _corrected(array: np.ndarray, correction: Correction | None) -> np.ndarray:
    return array if correction is None else correction(array)


def _scaled(array: np.ndarray, layout: VariableLayout, scale: float) -> np.ndarray:
    if scale == 1.0:
        return array
    return (array + layout.offset) * scale - layout.offset


@dataclasses.dataclass(frozen=True, kw_only=True)
class CopiesFiller(WidthFiller):
    """Fills with copies of the units of one parent, given by the layout's axes.

    Layouts that `fresh_roles` lacks start from initial values in no role.

    Args:
        spread: float. Unevenness of the copies' shares, see `copies.uneven_shares`.
    """

    spread: float = 0.0

    def value(
        self, index: int, layout: VariableLayout, arrays: Sequence[np.ndarray]
    ) -> np.ndarray:
        """The units and their copies, which share each unit's influence."""
        if layout.is_state:
            return _state(layout, arrays)
        split = layout.before_tied_readout
        array = _corrected(arrays[0], self.corrections.get((index, 0)))
        value = copy_array(
            (array + layout.offset) * self.scale_of(layout),
            layout.axes,
            split_outputs=split,
            spread=self.spread,
            noise_scale=0.0 if index in self.noiseless else self.noise_scale,
            rng=np.random.default_rng([self.seed, index]),
        )
        value = value - layout.offset
        if layout.initial is None:
            return value
        roles = self.fresh_roles.get(index, ())
        return filled(
            value,
            layout.axes,
            fresh=self.size * layout.initial() if roles else None,
            fresh_roles=roles,
            mean_outputs=index in self.mean_outputs,
        )

    def scale_of(self, layout: VariableLayout) -> float:
        """The factor on the parent's value."""
        return layout.scales[0] * (layout.copies if layout.before_tied_readout else 1.0)

    def moment(
        self,
        slot: Slot,
        layout: VariableLayout,
        arrays: Sequence[np.ndarray],
        copies: bool,
    ) -> np.ndarray:
        """The slot of the copied units, scaled by their shares of the gradient."""
        return copy_slot(
            arrays[0],
            slot.axes_of(layout.axes),
            factor=layout.gradient_scale**slot.power,
            degree=slot.power,
            split_outputs=layout.before_tied_readout,
        )

    def distance(
        self, layout: VariableLayout, arrays: Sequence[np.ndarray]
    ) -> np.ndarray:
        """The difference for the copied units."""
        split = layout.before_tied_readout
        distance = copy_array(arrays[0], layout.axes, split_outputs=split)
        return distance * self.scale_of(layout)


@dataclasses.dataclass(frozen=True)
class StackingFiller(Filler):
    """Fills new blocks with copies of others or initial values; widths do not change.

    New variables whose layout has initial values start from those.

    Args:
        seed: int. Seed of the new blocks' seeds.
        new: indices of the layouts of new blocks.
    """

    seed: int = 0
    new: frozenset[int] = frozenset()

    def value(
        self, index: int, layout: VariableLayout, arrays: Sequence[np.ndarray]
    ) -> np.ndarray:
        """The value of the block that this one is a copy of, or an initial one."""
        if index in self.new and layout.is_seed:
            # The seed of a dropout: two layers must not draw the same masks.
            rng = np.random.default_rng([self.seed, index])
            return rng.integers(0, 2**31, arrays[0].shape).astype(arrays[0].dtype)
        if layout.initial is not None:
            return layout.initial()
        return arrays[0]

    def moment(
        self,
        slot: Slot,
        layout: VariableLayout,
        arrays: Sequence[np.ndarray],
        copies: bool,
    ) -> np.ndarray:
        """The origin's slot; first moments are zero where values are initial ones."""
        if layout.initial is not None and not slot.positive:
            return np.zeros_like(arrays[0])
        return arrays[0]

    def distance(
        self, layout: VariableLayout, arrays: Sequence[np.ndarray]
    ) -> np.ndarray:
        """The difference in the origin; none where values are initial ones."""
        return arrays[0] if layout.initial is None else np.zeros_like(arrays[0])
