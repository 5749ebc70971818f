"""FUSION: several models, or copies of one, joined into a bigger one."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_fusion.architecture import depth
from keras_fusion.architecture.chosen import as_chosen, is_count
from keras_fusion.architecture.parents import check_factor, load, resolved
from keras_fusion.errors import FusionError, require
from keras_fusion.layout import parent_blocks
from keras_fusion.models import host, samples
from keras_fusion.models import probe as probes
from keras_fusion.models.renamed import renamed
from keras_fusion.operators import arguments, target_size
from keras_fusion.operators.base import GrowthOperator, register_operator
from keras_fusion.operators.equal_parents import warn_of_equal
from keras_fusion.operators.fusion_plan import plan_fusion
from keras_fusion.operators.plan import Plan
from keras_fusion.operators.verification import verify


@renamed(off_diagonal_scale="noise_scale", batch="probe")
def fuse(
    parents: list[keras.Model] | keras.Model,
    *,
    factor: float | None = None,
    into: keras.Model | Callable[[], keras.Model] | None = None,
    off_diagonal: str | None = None,
    noise_scale: float = 0.25,
    norms: str = "auto",
    probe=None,
    seed: int | None = None,
    only: str | Sequence[str] | None = None,
    to: dict[str, int] | float | None = None,
) -> keras.Model:
    """Fuses trained models into one wide model (the FUSION operator of Deep Fusion).

    Every width (units, heads, embedding size) of the fused model is the sum of the
    parents'. Their kernels become its diagonal blocks, their embeddings, biases and
    norms are concatenated, and its logits are the mean of theirs. The parents stay as
    they are and share nothing with the result.

    Args:
        parents: list of K built models of one architecture, whose widths may differ;
            their depths may differ too for plain functional models and for classes that
            declare their `depth` (see `register`). Or one model, with `factor`.
        factor: number above 1. Makes the one model `factor` times as wide. An integer
            fuses that many copies (self-fusion); what goes beyond whole copies (half a
            copy for 1.5 and for 2.5) is new capacity, which starts without influence.
            Every head count and width must stay an integer.
        into: model, or function without arguments that builds one. What to fuse into
            when the parents' classes have no config, or when the target is to be
            larger than the sum of the parents; with `norms="block"` that is exact. By
            default it is built from the parents' configs.
        off_diagonal: how the blocks that join one parent's inputs to another's outputs
            are filled. `"zeros"` keeps the parents apart. `"random"` draws noise, as in
            the paper's second setting; the outputs change a little. `"paired"`, for
            self-fusion, adds noise to the weights that read each copy; over the copies
            the noise sums to zero, so that the outputs do not change, but the copies
            diverge from the first training step on. With zeros, copies get equal
            gradients and stay equal; that gives a warning. Defaults to `"paired"` for
            one model, and to `"zeros"` for distinct parents.
        noise_scale: float. The noise's standard deviation relative to that of
            the kernel. Defaults to 0.25.
        norms: what becomes of the layer and RMS norms of distinct parents, whose one
            statistic over all features would not be the parents' own. `"joint"` leaves
            them as they are: the function changes. `"block"` gives them one statistic
            per parent, wherever they are: the fused outputs are exactly the mean. Each
            parent keeps its own routing of experts and its own cosines (CLIP), too. The
            classes of the model and its layers stay, but its files load only where
            keras_fusion is imported (see `AnnealBlockNorms`). `"calibrated"` keeps the
            norms and absorbs the mean ratio of the statistics, measured on `probe`, in
            their weights. `"auto"` is `"block"`, and where that is not possible
            `"calibrated"`, with a warning that says where. Copies need neither. Defaults
            to `"auto"`.
        probe: batch in the structure of the model's inputs, on which the fusion is
            checked and, with `norms="calibrated"`, the norms are measured. By default a
            small random batch is generated, except for `norms="calibrated"`.
        seed: int. Seed of the noise. Defaults to one drawn from NumPy's global
            generator, which `keras.utils.set_random_seed` governs.
        only: which widths of one model grow: `"feed_forward"`, the inner widths of
            feed-forward blocks; `"heads"`; `"residual"`, the stream that the blocks add
            to, and what is as wide; the name of a layer, or of a key of its config, or a
            pattern of such names (`"mlp_*"`); or a list of these. Feed-forward widths
            alone leave the norms of the stream as they are. Defaults to all widths.
        to: the sizes that some widths of one model are to have, in place of `factor`:
            dict from a key of its classes' configs, or the name of a layer, to a size
            (`{"hidden_dim": 768, "num_heads": 12}`). All others stay. Or a number of
            parameters (`1.5e9`): all widths grow by the factor that comes nearest to it
            and makes head counts whole, see `FusionOperator.sizes`.

    Returns:
        A new, built, uncompiled Keras model (compiled by default where its class does
        so) with the layer names of the first parent.

    Raises:
        FusionError: for arguments or models that cannot be fused; the message names
            the layer or argument, the value and the fix. Also if a fusion that should
            be exact (of copies, or of distinct parents without joint norms) changes the
            function, or if no generated batch can show whether it does.

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
    with probes.given(probe):
        plan = plan_fusion(
            parents,
            factor=factor,
            into=into,
            off_diagonal=off_diagonal,
            noise_scale=noise_scale,
            norms=norms,
            probe=probe,
            seed=seed,
            only=only,
            to=to,
        )
        warn_of_equal(plan)
        plan.fill()
        if plan.exact:
            verify(plan, samples.sample(plan.parents[0]))
    parent_blocks.remember(plan.layouts, plan.fused)
    return plan.fused


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
        off_diagonal: see `fuse`. `None` means `"paired"` in a self-fusion and `"zeros"`
            with partners.
        noise_scale: float, see `fuse`.
        into: see `fuse`; for models whose class has no config.
        seed: int or `None`, see `fuse`.
        norms: `"joint"`, `"block"`, `"calibrated"` or `"auto"`, see `fuse`.
        probe: inputs on which the growth is tried, and for `norms="calibrated"`, see
            `fuse`.
        only: which widths of a self-fusion grow, see `fuse`.
        to: the sizes that they are to have, or the number of parameters of the whole, in
            place of `factor`, see `fuse`.

    Raises:
        FusionError: for arguments that cannot work; from `plan`, for anything that
            `fuse` refuses.

    Example:

    >>> import keras, keras_fusion
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8)])
    >>> model.add(keras.layers.Dense(1))
    >>> plan = keras_fusion.FusionOperator(factor=2).plan(model)
    >>> plan.fill().layers[0].units
    16
    """

    @renamed(off_diagonal_scale="noise_scale", batch="probe")
    def __init__(
        self,
        partners=None,
        factor=2,
        off_diagonal=None,
        noise_scale=0.25,
        into=None,
        seed=None,
        norms="auto",
        probe=None,
        only=None,
        to=None,
    ):
        arguments.check_partners(partners)
        arguments.check_into(into)
        if partners is None:
            check_factor(factor)
        if off_diagonal is not None:
            arguments.check_off_diagonal(off_diagonal, copies=partners is None)
        arguments.check_noise_scale(noise_scale)
        arguments.check_seed(seed)
        arguments.check_norms(norms, probe)
        as_chosen(only, to)
        given = factor if factor != 2 else None  # which it is by default
        arguments.check_choice(only, to, given, into, copies=partners is None)
        self.only = list(only) if isinstance(only, (list, tuple)) else only
        self.to: Any = dict(to) if isinstance(to, dict) else to
        self.partners = list(partners) if partners is not None else None
        self.factor = factor
        self.off_diagonal = off_diagonal
        self.noise_scale = noise_scale
        self.into = into
        self.seed = seed
        self.norms = norms
        self.probe = probe
        self._loaded = None

    def parents(self, model: keras.Model) -> list[keras.Model]:
        """The live model and its partners, or its copies."""
        if self.partners is None:
            return [model] if self.to else resolved(model, self.factor)[0]
        if any(partner is model for partner in self._load()):
            raise FusionError(
                "A partner is the live model itself. To fuse a model with itself leave "
                "`partners` out and set `factor`."
            )
        return [model, *self._load()]

    def sizes(self, model: keras.Model) -> tuple[target_size.Size, ...]:
        """The sizes of a model near to a number of parameters as `to`.

        Args:
            model: the built model, which does not change.

        Returns:
            Tuple of records with `params`, `factor` and `to`, the nearest one first. It
            is the one that the model grows to; the others are the next below and above.

        Raises:
            FusionError: if `to` is no number, or one that the model cannot grow to.

        Example:

        >>> import keras, keras_fusion
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8)])
        >>> model.add(keras.layers.Dense(1))
        >>> wide = keras_fusion.FusionOperator(to=100)
        >>> print(*wide.sizes(model)[:3], sep="; ")
        97 (x2); 103 (x2.125); 91 (x1.875)
        """
        expected = "a number of parameters, to tell the sizes near it"
        require(is_count(self.to), "to", self.to, expected)
        return target_size.sizes_near(model, self.to)

    def notes(self, model: keras.Model) -> list[str]:
        """The sizes near to a number of parameters."""
        if not is_count(self.to):
            return []
        first, *others = map(str, self.sizes(model))
        asked, others = f"{self.to:,.0f}", "; ".join(others)
        return [f"Parameters: {first} is nearest to {asked}. Others: {others}."]

    def _load(self):
        if self._loaded is None:
            self._loaded = [load(i, p) for i, p in enumerate(self.partners or ())]
        return self._loaded

    def plan(self, model: keras.Model, seed: int | None = None) -> Plan:
        """Lays out the growth of a model; changes nothing."""
        with probes.given(self.probe):
            return self._plan(model, seed)

    def _plan(self, model, seed):
        own = self.partners is None
        plan = plan_fusion(
            model if own else self.parents(model),
            factor=self.factor if own and self.to is None else None,
            only=self.only,
            to=self.to,
            into=self.into,
            off_diagonal=self.off_diagonal,
            noise_scale=self.noise_scale,
            norms=self.norms,
            probe=self.probe,
            seed=arguments.chosen_seed(self.seed, seed),
        )
        depth.check_live(model, plan.parents)
        warn_of_equal(plan)
        return plan

    def _choice(self):
        """The choice of widths, if there is one: other configs are as they ever were."""
        chosen = {"only": self.only, "to": self.to}
        return {name: value for name, value in chosen.items() if value is not None}

    def describe(self) -> dict:
        """The arguments as plain data for a record: of the partners, their weights."""
        own, partners = self.partners is None, None
        if self.partners is not None:
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
            "noise_scale": self.noise_scale,
            "into": self.into is not None,
            "seed": self.seed,
            # Of copies all are the same but block norms.
            "norms": "joint" if own and self.norms != "block" else self.norms,
            **self._choice(),
        }

    def __str__(self):
        """A short name of the operator, for the console."""
        if self.partners is None:
            if is_count(self.to):
                return f"self-fusion to {self.to:,.0f} parameters"
            if self.to is not None:
                sizes = ", ".join(f"{key}={size}" for key, size in self.to.items())
                return f"self-fusion to {sizes}"
            listed = [self.only] if isinstance(self.only, str) else self.only or ()
            of = f" of {', '.join(listed)}" if listed else ""
            return f"self-fusion x{self.factor}{of}"
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
            "noise_scale": self.noise_scale,
            "seed": self.seed,
            "norms": self.norms,
            **self._choice(),
        }
