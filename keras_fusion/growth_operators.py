"""How to grow: operators, of which `GrowModel` asks for a plan when the time comes."""

import dataclasses
import os
from collections.abc import Callable

import keras

from keras_fusion import arguments, depth, fusion, partners, record
from keras_fusion.errors import FusionError


@dataclasses.dataclass(frozen=True)
class Method:
    """A growth operator as the literature knows it, for `known_operators`.

    Args:
        cls: the operator's class.
        grows: `"width"`, `"depth"` or `"both"`.
        exact: string. When the function is preserved.
        source: string. Who published it.
    """

    cls: type
    grows: str
    exact: str
    source: str


_METHODS: dict[str, Method] = {}


def register_operator(grows: str, *, exact: str, source: str) -> Callable[[type], type]:
    """Decorator that puts an operator class into the table of `known_operators`.

    It is made serializable too, and every test of operators runs on it.

    Args:
        grows: `"width"`, `"depth"` or `"both"`.
        exact: string. When the function is preserved.
        source: string. Who published the method.

    Returns:
        The decorator.

    Example:

    ```python
    @keras_fusion.register_operator("width", exact="always", source="me, 2026")
    class Wider(keras_fusion.GrowthOperator): ...
    ```

    >>> import keras_fusion
    >>> keras_fusion.known_operators()["HyperCloning"].grows
    'width'
    """

    def register(cls):
        _METHODS[cls.__name__] = Method(cls, grows, exact, source)
        return keras.saving.register_keras_serializable(package="keras_fusion")(cls)

    return register


def known_operators() -> dict[str, Method]:
    """All growth operators by the names of their classes.

    Returns:
        Dict from the name to a record with the class as `cls`, and `grows`, `exact` and
        `source`.

    Example:

    >>> import keras_fusion
    >>> keras_fusion.known_operators()["ZeroPadding"].exact
    'always, or it is refused'
    """
    return dict(_METHODS)


class GrowthOperator:
    """Base of all operators: how a model grows, whatever the moment.

    Subclass it to grow in another way: `plan` says how, and `get_config` makes the
    operator serializable.

    Example:

    >>> import keras, keras_fusion
    >>> class Tripled(keras_fusion.GrowthOperator):
    ...     def plan(self, model):
    ...         return keras_fusion.HyperCloning(factor=3).plan(model)
    >>> grow = keras_fusion.GrowModel(Tripled(), keras_fusion.AtStep(1000))
    """

    def parents(self, model: keras.Model) -> list[keras.Model]:
        """The models whose state goes into the grown one, the live model first."""
        return [model]

    def plan(self, model: keras.Model) -> fusion.Plan:
        """Lays out the growth of a model; changes nothing."""
        raise NotImplementedError(f"{type(self).__name__} has no `plan` yet.")

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {}

    @classmethod
    def from_config(cls, config):
        """Rebuilds the operator from `get_config`."""
        return cls(**config)


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
            return arguments.resolve_parents(model, self.factor)[0]
        if any(partner is model for partner in self._load()):
            raise FusionError(
                "A partner is the live model itself. To fuse a model with itself leave "
                "`partners` out and set `factor`."
            )
        return [model, *self._loaded]

    def _load(self):
        if self._loaded is None:
            self._loaded = [partners.load(i, p) for i, p in enumerate(self.partners)]
        return self._loaded

    def plan(self, model: keras.Model) -> fusion.Plan:
        """Lays out the growth of a model; changes nothing."""
        own = self.partners is None
        default = "paired" if own else "zeros"
        plan = fusion.make_plan(
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
                    "sha256": record.weights_digest(model),
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
