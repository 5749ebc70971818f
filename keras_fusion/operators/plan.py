"""`Plan`: a growth that was laid out."""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np

from keras_fusion.architecture.widths import Widths
from keras_fusion.errors import FusionError
from keras_fusion.layout import variables
from keras_fusion.layout.variables import VariableLayout
from keras_fusion.models import host, private, probe, tree
from keras_fusion.operators import earlier_weights
from keras_fusion.values.fuse import fuse_arrays


@dataclasses.dataclass(frozen=True)
class Settings:
    """The values of one fusion.

    Args:
        off_diagonal: one of `"zeros"`, `"random"`, `"paired"`.
        off_diagonal_scale: float. The noise's deviation relative to the kernel's.
        seed: int. Seed of the noise.
        copies: bool. Whether the parents are copies of one model.
        norms: one of `arguments.NORMS`.
        promised: bool. Whether the method keeps the function at all.
    """

    off_diagonal: str
    off_diagonal_scale: float
    seed: int
    copies: bool
    norms: str = "joint"
    promised: bool = True

    @property
    def is_exact(self) -> bool:
        """Whether the fused function must equal the parents' but for rounding."""
        if not self.promised:
            return False
        if self.copies:
            return self.off_diagonal != "random"
        return self.norms == "block" and self.off_diagonal == "zeros"


@dataclasses.dataclass
class Plan:
    """A fusion that was laid out: every check has passed, the values are still to come.

    Args:
        parents: the K parents; for a self-fusion K times the same model.
        fused: the built bigger model.
        layouts: one `VariableLayout` per variable of `fused`.
        settings: the `Settings`.
        corrections: dict from the id of a parent's variable to the
            `calibration.Correction` of its values.
        fresh_roles: dict from the index of a layout to the roles of its axes whose new
            capacity starts from initial values; where it is missing, `("out",)`.
        mean_outputs: indices of the layouts whose other new outputs are the mean of the
            old ones, and not zeros.
        derived: layers of `fused` (`Normalization`) that compute with values made of
            their weights, which must be made anew when these have come.
    """

    parents: list[keras.Model]
    fused: keras.Model
    layouts: list[VariableLayout]
    settings: Settings
    corrections: dict = dataclasses.field(default_factory=dict)
    fresh_roles: dict = dataclasses.field(default_factory=dict)
    mean_outputs: frozenset[int] = frozenset()
    derived: tuple[keras.Layer, ...] = ()

    @property
    def stages(self) -> list["Plan"]:
        """The growths that follow each other; this one alone."""
        return [self]

    def fill(self) -> keras.Model:
        """Gives the fused model its weights, variable by variable, and returns it."""
        for index, item in enumerate(self.layouts):
            # Once for copies of one model, whose arrays so stay one array.
            read = {id(v): host.read(v) for v in item.sources}
            arrays = [read[id(v)] for v in item.sources]
            host.write(item.target, self.values(index, arrays, item.initial()))
        for layer in self.derived:
            layer.finalize_state()
        return self.fused

    def values(self, index: int, arrays: list, fresh: np.ndarray | None) -> np.ndarray:
        """The fused value of one variable, the same whenever it is asked for.

        Args:
            index: int. Which of `layouts`.
            arrays: K arrays, the parents' values.
            fresh: array of the fused shape, initial values for new capacity; `None` if
                there is none.

        Returns:
            Array of the fused shape, in the first parent's dtype.
        """
        item, settings = self.layouts[index], self.settings
        if item.is_state:
            return np.asarray(arrays[0])
        arrays = [np.asarray(a) for a in arrays]
        fused = fuse_arrays(
            self._prepared(item, arrays),
            item.axes,
            off_diagonal=settings.off_diagonal,
            off_diagonal_scale=settings.off_diagonal_scale,
            rng=[settings.seed, index],
            fresh=fresh,
            fresh_roles=self.fresh_roles.get(index, ("out",)),
            mean_outputs=index in self.mean_outputs,
        )
        return fused.astype(arrays[0].dtype, copy=False)

    def _prepared(self, item, arrays):
        """The parents' values, corrected and at their scale in the mean."""
        done, found = {}, []
        for source, scale, array in zip(item.sources, item.scales, arrays, strict=True):
            key = id(array), id(source), scale
            if key not in done:
                done[key] = self._corrected(item, source, scale, array)
            found.append(done[key])
        return found

    def _corrected(self, item, source, scale, array):
        correction = self.corrections.get(id(source))
        if correction is not None:
            array = correction(array)
        if scale != 1.0:
            array = (array + item.offset) * scale - item.offset
        return array

    def weights_adapter(self) -> Callable[[list], list]:
        """Makes the function that grows any weights of the first parent.

        Returns:
            Function from `model.get_weights()` of the first parent, at any time, to
            `get_weights()` of the model that would have been fused from them. It holds
            on to none of the first parent's variables, so that their memory is freed.
        """
        return earlier_weights.adapter(self)

    def corresponding(self) -> list[tuple[keras.Layer, keras.Layer]]:
        """The layers of the first parent with their counterparts in the fused model."""
        models = [self.parents[0], self.fused]
        pairs = tree.lockstep(models)
        return [tuple(layers) for _, layers in pairs]

    def copy_trainability(self) -> None:
        """Freezes in the fused model what is frozen in the first parent."""
        for old, new in self.corresponding():
            if old.trainable != new.trainable:
                new.trainable = old.trainable
        for item in self.layouts:
            if item.sources[0].trainable != item.target.trainable:
                item.target.trainable = item.sources[0].trainable


def replacement(model: keras.Model, twin: keras.Model) -> Plan:
    """Lays out a twin of equal widths, which takes a model's values over as they are."""
    settings = Settings("zeros", 0.0, 0, copies=True)
    layouts = variables.plan([model], twin, Widths(), must_grow=False)
    plan = Plan([model], twin, layouts, settings)
    adopt(plan)
    return plan


def adopt(plan: Plan) -> None:
    """Gives the bigger model what it has in common with the first parent."""
    plan.copy_trainability()
    private.keep_names(plan.corresponding())
    for item in plan.layouts:
        host.check_layout(item.sources[0], item.target, item.address)
    private.adopt_layouts([(item.sources[0], item.target) for item in plan.layouts])
    waiting = {id(item.target) for item in plan.layouts if not item.has_new}
    private.give_values([v for v in plan.fused.variables if id(v) not in waiting])
    layers = (layer for _, layer in tree.walk(plan.fused))
    plan.derived = tuple(layer for layer in layers if hasattr(layer, "finalize_state"))


def verify(plan: Plan, inputs, *, tolerance: float) -> probe.Difference:
    """Measures the fused model against the mean of its parents.

    Args:
        plan: a filled `Plan`.
        inputs: a batch in the structure of the model's inputs.
        tolerance: float. The largest change that a fusion which should be exact may
            show.

    Returns:
        The `probe.Difference` of the outputs.

    Raises:
        FusionError: if the fusion should be exact, and yet the outputs changed.
    """
    parents = plan.parents[:1] if plan.settings.copies else plan.parents
    before = probe.mean_outputs(parents, inputs)
    difference = probe.difference(before, probe.outputs(plan.fused, inputs))
    change = difference.largest
    if plan.settings.is_exact and change > tolerance:
        raise FusionError(
            f"The fused {plan.fused.name!r} should compute what its parents do, but its "
            f"outputs changed by {change:.1e} (more than the tolerance {tolerance:.0e}). "
            "Some layer mixes features in a way that its rule does not tell: a softmax "
            "over features, a constant that depends on a width, or a readout tied to an "
            "embedding (see `tied_readout` of keras_fusion.register)."
        )
    return difference
