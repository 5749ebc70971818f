"""`fuse`: several models, or copies of one, joined into a new bigger model."""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np

from keras_fusion import (
    architecture,
    arguments,
    blocks,
    calibration,
    capacity,
    depth,
    earlier_weights,
    graft,
    layout,
    placement,
    probe,
    structure,
)
from keras_fusion.errors import FusionError
from keras_fusion.layout import VariableLayout
from keras_fusion.operator import fuse_arrays
from keras_fusion.widths import Widths


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
            read = {id(v): placement.read(v) for v in item.sources}
            arrays = [read[id(v)] for v in item.sources]
            placement.write(item.target, self.values(index, arrays, item.initial()))
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
        pairs = structure.lockstep(models, architecture.skipped_attributes)
        return [tuple(layers) for _, layers in pairs]

    def copy_trainability(self) -> None:
        """Freezes in the fused model what is frozen in the first parent."""
        for old, new in self.corresponding():
            if old.trainable != new.trainable:
                new.trainable = old.trainable
        for item in self.layouts:
            if item.sources[0].trainable != item.target.trainable:
                item.target.trainable = item.sources[0].trainable


def make_plan(
    parents: list[keras.Model] | keras.Model,
    *,
    factor: float | None = None,
    into: keras.Model | Callable[[], keras.Model] | None = None,
    off_diagonal: str = "zeros",
    off_diagonal_scale: float = 0.25,
    norms: str = "joint",
    batch=None,
    seed: int | None = None,
    copies_of_one: int | None = None,
) -> Plan:
    """Checks the arguments of `fuse` and lays out the fusion, changing nothing.

    `copies_of_one` says how many copies a self-fusion holds, if not as many as fit.
    """
    models, larger = arguments.resolve_parents(parents, factor, copies_of_one)
    if into is None:
        models = depth.equalized(models)
    copies = all(model is models[0] for model in models)
    arguments.check_noise(off_diagonal, off_diagonal_scale, copies)
    arguments.check_norms(norms, batch)
    seed = arguments.drawn_seed(seed)
    settings = Settings(off_diagonal, off_diagonal_scale, seed, copies, norms)
    block_norms = norms == "block"
    with graft.without_values():
        fused, widths = architecture.build(
            models, into, block_norms=block_norms, capacity=larger
        )
    if any(fused is model for model in models):
        raise FusionError(
            "`into` is one of the parents. The fused model must be a new one; pass a "
            "function that builds it."
        )
    plan = Plan(models, fused, layout.plan(models, fused, widths), settings)
    adopt(plan)
    if block_norms:
        _check_block_norms(plan)
    if norms == "calibrated" and not copies:
        plan.corrections = calibration.corrections(models, fused, batch)
    if copies and capacity.is_new(plan.layouts):
        plan.corrections = calibration.for_new_capacity(models[0], fused, len(models))
        capacity.settle(plan)
    return plan


def replacement(model: keras.Model, twin: keras.Model) -> Plan:
    """Lays out a twin of equal widths, which takes a model's values over as they are."""
    settings = Settings("zeros", 0.0, 0, copies=True)
    layouts = layout.plan([model], twin, Widths(), must_grow=False)
    plan = Plan([model], twin, layouts, settings)
    adopt(plan)
    return plan


def adopt(plan: Plan) -> None:
    """Gives the bigger model what it has in common with the first parent."""
    plan.copy_trainability()
    graft.keep_names(plan.corresponding())
    for item in plan.layouts:
        placement.check_layout(item.sources[0], item.target, item.address)
    graft.adopt_layouts([(item.sources[0], item.target) for item in plan.layouts])
    waiting = {id(item.target) for item in plan.layouts if not item.has_new}
    graft.give_values([v for v in plan.fused.variables if id(v) not in waiting])
    layers = (layer for _, layer in structure.walk(plan.fused))
    plan.derived = tuple(layer for layer in layers if hasattr(layer, "finalize_state"))


def fuse(
    parents: list[keras.Model] | keras.Model,
    *,
    factor: float | None = None,
    into: keras.Model | Callable[[], keras.Model] | None = None,
    off_diagonal: str = "zeros",
    off_diagonal_scale: float = 0.25,
    norms: str = "joint",
    batch=None,
    seed: int | None = None,
) -> keras.Model:
    """Fuses trained models into one wide model (the FUSION operator of Deep Fusion).

    Every width (units, heads, embedding size) of the fused model is the sum of the
    parents'. Their kernels become its diagonal blocks, their embeddings, biases and
    norms are concatenated, and its logits are the mean of theirs. The parents stay as
    they are and share nothing with the result.

    Args:
        parents: list of K built models of one architecture, whose widths may differ,
            and whose depths may for plain functional models and classes that tell their
            `depth` (see `register`); or one model, with `factor`.
        factor: number above 1. Makes the one model `factor` times as wide: a whole one
            fuses that many copies (self-fusion); of 1.5 the half, and of 2.5 what goes
            beyond two copies, is new capacity, which starts without influence. Every
            head count and width must stay whole.
        into: model, or function without arguments that builds one. What to fuse into
            when the parents' classes have no config, or when the target is to be
            larger than the sum of the parents; with the layers of `keras_fusion.layers`
            as its norms, the last block of which is new, that is exact. By default it
            is built from the parents' configs.
        off_diagonal: how the blocks that join one parent's inputs to another's outputs
            are filled. `"zeros"` keeps the parents apart. `"random"` draws noise, as in
            the paper's second setting; the outputs change a little. `"paired"`, for
            self-fusion, adds to the copies' inputs noise whose sum over them is zero, so
            that the outputs do not change but the copies part at the first step of
            training.
            Defaults to `"zeros"`.
        off_diagonal_scale: float. The noise's standard deviation relative to that of
            the kernel. Defaults to 0.25.
        norms: what becomes of the layer and RMS norms of distinct parents, whose one
            statistic over all features would not be the parents' own. `"joint"` leaves
            them as they are: the function changes. `"block"`, for functional and
            `Sequential` models of Keras's layers, puts in norms with one statistic a
            parent (`keras_fusion.layers`): the fused outputs are exactly the mean.
            `"calibrated"` keeps the norms and absorbs the mean ratio of the statistics,
            measured on `batch`, in their weights. Copies need neither. Defaults to
            `"joint"`.
        batch: inputs in the structure of the model's, for `norms="calibrated"`.
        seed: int. Seed of the noise. Defaults to one drawn from NumPy's global
            generator, which `keras.utils.set_random_seed` governs.

    Returns:
        A new, built, uncompiled Keras model (compiled by default where its class does
        so) with the layer names of the first parent.

    Raises:
        FusionError: for arguments or models that cannot be fused; the message names
            the layer or argument, the value and the fix. Also if a fusion that should
            be exact changes the outputs on a small made-up batch.

    Example:

    >>> import keras, keras_fusion
    >>> def parent():
    ...     return keras.Sequential(
    ...         [keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(2)]
    ...     )
    >>> fused = keras_fusion.fuse([parent(), parent()])
    >>> [layer.units for layer in fused.layers]
    [16, 2]

    Source: Mazzawi et al., Deep Fusion: Efficient Network Training via Pre-trained
    Initializations, ICML 2024. The paired form and the treatment of norms, tied
    readouts and unequal parents are this package's own.
    """
    plan = make_plan(
        parents,
        factor=factor,
        into=into,
        off_diagonal=off_diagonal,
        off_diagonal_scale=off_diagonal_scale,
        norms=norms,
        batch=batch,
        seed=seed,
    )
    plan.fill()
    if plan.settings.is_exact:
        _check_function(plan)
    blocks.remember(plan.layouts, plan.fused)
    return plan.fused


def _check_function(plan):
    """Refuses what should be exact and is not, as far as a made-up batch shows it."""
    first = plan.parents[0]
    try:
        inputs = probe.accepted(first)
    except FusionError:
        return  # `fusion_report` takes a real one.
    tolerance = probe.tolerance(first)
    twice = [probe.outputs(first, inputs) for _ in range(2)]
    if probe.change(*twice) <= tolerance:  # It does not draw at random.
        verify(plan, inputs, tolerance=tolerance)


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


def _check_block_norms(plan):
    """Says where a norm could not be made block-wise, since its class holds it."""
    pairs = structure.lockstep(
        [plan.parents[0], plan.fused], architecture.skipped_attributes
    )
    for address, (layer, grown) in pairs:
        if calibration.is_joint_norm(layer, grown):
            raise FusionError(
                f"`norms='block'` cannot reach the {type(layer).__name__} at {address!r}: "
                "the class that holds it makes it. Block-wise norms are for functional "
                "and Sequential models of Keras's layers; here use norms='calibrated'."
            )
