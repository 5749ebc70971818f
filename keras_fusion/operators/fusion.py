"""`fuse`: several models, or copies of one, joined into a new bigger model."""

import os
from collections.abc import Callable

import keras

from keras_fusion.architecture import build, depth, parents
from keras_fusion.architecture.parents import resolve_parents
from keras_fusion.errors import FusionError
from keras_fusion.layout import parent_blocks, variables
from keras_fusion.models import host, private, probe, tree
from keras_fusion.operators import arguments
from keras_fusion.operators.base import GrowthOperator, register_operator
from keras_fusion.operators.plan import Plan, Settings, adopt, verify
from keras_fusion.values import calibration, new_capacity


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
    models, larger = resolve_parents(parents, factor, copies_of_one)
    if into is None:
        models = depth.equalized(models)
    copies = all(model is models[0] for model in models)
    arguments.check_noise(off_diagonal, off_diagonal_scale, copies)
    arguments.check_norms(norms, batch)
    seed = arguments.drawn_seed(seed)
    settings = Settings(off_diagonal, off_diagonal_scale, seed, copies, norms)
    block_norms = norms == "block"
    with private.without_values():
        fused, widths = build.build(
            models, into, block_norms=block_norms, capacity=larger
        )
    if any(fused is model for model in models):
        raise FusionError(
            "`into` is one of the parents. The fused model must be a new one; pass a "
            "function that builds it."
        )
    plan = Plan(models, fused, variables.plan(models, fused, widths), settings)
    adopt(plan)
    if block_norms:
        _check_block_norms(plan)
    if norms == "calibrated" and not copies:
        plan.corrections = calibration.corrections(models, fused, batch)
    if copies and new_capacity.is_new(plan.layouts):
        plan.corrections = calibration.for_new_capacity(models[0], fused, len(models))
        new_capacity.settle(plan)
    return plan


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
    parent_blocks.remember(plan.layouts, plan.fused)
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


def _check_block_norms(plan):
    """Says where a norm could not be made block-wise, since its class holds it."""
    pairs = tree.lockstep([plan.parents[0], plan.fused])
    for address, (layer, grown) in pairs:
        if calibration.is_joint_norm(layer, grown):
            raise FusionError(
                f"`norms='block'` cannot reach the {type(layer).__name__} at {address!r}: "
                "the class that holds it makes it. Block-wise norms are for functional "
                "and Sequential models of Keras's layers; here use norms='calibrated'."
            )


@register_operator(
    "width",
    exact="for copies; for distinct parents with block norms or none",
    source="Mazzawi et al., Deep Fusion, ICML 2024",
)
class FusionOperator(GrowthOperator):
    """Grows a model by fusing it with partners, or with itself.

    Args:
        partners: list of built models of the live model's architecture, whose widths
            may differ, or of paths of `.keras` files. `None` for self-fusion.
        factor: number above 1. How many times as wide a self-fusion makes the live model;
            see `fuse`.
        off_diagonal: see `fuse`. `None` means `"paired"` in a self-fusion (with zeros
            the copies would get equal gradients for ever) and `"zeros"` with partners.
        off_diagonal_scale: float, see `fuse`.
        into: see `fuse`; for models whose class has no config.
        seed: int or `None`, see `fuse`.
        norms: `"joint"`, `"block"` or `"calibrated"`, see `fuse`.
        batch: inputs for `norms="calibrated"`, see `fuse`.

    Raises:
        FusionError: if `partners` is empty; from `plan`, for anything that `fuse` refuses.

    Example:

    >>> import keras, keras_fusion
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8)])
    >>> model.add(keras.layers.Dense(1))
    >>> plan = keras_fusion.FusionOperator(factor=2).plan(model)
    >>> plan.fill().layers[0].units
    16
    """

    def __init__(
        self,
        partners=None,
        factor=2,
        off_diagonal=None,
        off_diagonal_scale=0.25,
        into=None,
        seed=None,
        norms="joint",
        batch=None,
    ):
        if partners is not None and not partners:
            raise FusionError(
                f"`partners` is empty: partners={partners!r}. Give at least one model, "
                "or leave it out to fuse the model with itself."
            )
        self.partners = list(partners) if partners is not None else None
        self.factor = factor
        self.off_diagonal = off_diagonal
        self.off_diagonal_scale = off_diagonal_scale
        self.into = into
        self.seed = seed
        self.norms = norms
        self.batch = batch
        self._loaded = None

    def parents(self, model: keras.Model) -> list[keras.Model]:
        """The live model and its partners, or its copies."""
        if self.partners is None:
            return resolve_parents(model, self.factor)[0]
        if any(partner is model for partner in self._load()):
            raise FusionError(
                "A partner is the live model itself. To fuse a model with itself leave "
                "`partners` out and set `factor`."
            )
        return [model, *self._loaded]

    def _load(self):
        if self._loaded is None:
            self._loaded = [parents.load(i, p) for i, p in enumerate(self.partners)]
        return self._loaded

    def plan(self, model: keras.Model) -> Plan:
        """Lays out the growth of a model; changes nothing."""
        own = self.partners is None
        default = "paired" if own else "zeros"
        plan = make_plan(
            model if own else self.parents(model),
            factor=self.factor if own else None,
            into=self.into,
            off_diagonal=self.off_diagonal or default,
            off_diagonal_scale=self.off_diagonal_scale,
            norms=self.norms,
            batch=self.batch,
            seed=self.seed,
        )
        depth.check_live(model, plan.parents)
        return plan

    def describe(self) -> dict:
        """The arguments as plain data for a record: of the partners, their weights."""
        own = self.partners is None
        partners = None
        if not own:
            paths = [None if isinstance(p, keras.Model) else p for p in self.partners]
            partners = [
                {
                    "path": path and os.fspath(path),
                    "sha256": host.weights_digest(model),
                }
                for path, model in zip(paths, self._load(), strict=True)
            ]
        return {
            "partners": partners,
            "factor": self.factor if own else None,
            "off_diagonal": self.off_diagonal,
            "off_diagonal_scale": self.off_diagonal_scale,
            "into": self.into is not None,
            "seed": self.seed,
            "norms": self.norms,
        }

    def __str__(self):
        """What the operator does, for the console."""
        if self.partners is None:
            return f"self-fusion x{self.factor}"
        return f"fusion with {len(self.partners)} partner(s)"

    def get_config(self) -> dict:
        """The constructor's arguments.

        Raises:
            FusionError: if partners or `into` are objects, whose weights a config
                cannot hold.
        """
        if self.into is not None or any(
            isinstance(p, keras.Model) for p in self.partners or ()
        ):
            raise FusionError(
                "An operator with models in `partners` or `into` has no config, since a "
                "config holds no weights. Save the partners and pass their paths."
            )
        return {
            "partners": self.partners,
            "factor": self.factor,
            "off_diagonal": self.off_diagonal,
            "off_diagonal_scale": self.off_diagonal_scale,
            "seed": self.seed,
            "norms": self.norms,
        }
