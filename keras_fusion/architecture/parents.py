"""The parents of a growth: found, loaded, checked, and matched layer by layer."""

import dataclasses
import functools
import os
from collections.abc import Sequence

import keras

from keras_fusion.architecture import partner_files
from keras_fusion.architecture.wiring import wiring
from keras_fusion.errors import FusionError, StructureError, is_number, require
from keras_fusion.models import graph as graphs
from keras_fusion.models import rules, tree
from keras_fusion.models.rules import Rule

_LARGEST = 1000  # of factors


@dataclasses.dataclass(frozen=True)
class Siblings:
    """Corresponding layers of all parents.

    Args:
        address: string. Where they are held; empty for the models themselves.
        layers: tuple of K layers, one per parent.
        rule: the first parent's `Rule`, or `None`.
        weights_rule: the `Rule` that describes the first one's own weights, or `None`.
    """

    address: str
    layers: tuple[keras.Layer, ...]
    rule: Rule | None
    weights_rule: Rule | None


@dataclasses.dataclass(frozen=True)
class Match(Siblings):
    """Corresponding layers of all parents, and of the model that grows from them.

    Args:
        grown: the layer of the bigger model.
    """

    grown: keras.Layer


@dataclasses.dataclass(frozen=True)
class Parents:
    """The models that go into a growth, walked, read and matched once.

    Args:
        models: tuple of K built models; for a self-fusion K times the same.
        siblings: tuple of `Siblings`, one per layer of the first parent, in the order of
            `tree.walk`.
    """

    models: tuple[keras.Model, ...]
    siblings: tuple[Siblings, ...]

    @classmethod
    def of(cls, models: Sequence[keras.Model]) -> "Parents":
        """Checks models and matches their layers.

        Raises:
            StructureError: if they differ in anything but their widths.
        """
        distinct = list({id(model): model for model in models}.values())
        if len(distinct) > 1 and all(graphs.is_plain(model) for model in distinct):
            _check_wiring(distinct)
        place = {id(model): i for i, model in enumerate(distinct)}
        chosen = [place[id(model)] for model in models]
        siblings = []
        for address, layers in tree.lockstep(distinct):
            rule = rules.find(layers[0])
            if len(distinct) > 1 and rule is not None and (rule.widths or rule.equal):
                _check_configs(address, layers, rule, "The parents differ")
            owners = tuple(layers[i] for i in chosen)
            weights_rule = rules.find_for_weights(layers[0])
            siblings.append(Siblings(address, owners, rule, weights_rule))
        return cls(tuple(models), tuple(siblings))

    @property
    def first(self) -> keras.Model:
        """The first parent; in training the live model."""
        return self.models[0]

    @property
    def copies(self) -> bool:
        """Whether all are one model."""
        return all(model is self.first for model in self.models)

    @functools.cached_property
    def is_plain(self) -> bool:
        """Whether the first parent is a functional or Sequential model of no own class."""
        return graphs.is_plain(self.first)

    @functools.cached_property
    def graph(self) -> graphs.Graph:
        """The graph of the first parent, which must be plain."""
        return graphs.read(self.first)

    def matched_with(self, grown: keras.Model) -> tuple[Match, ...]:
        """The parents' layers, each with its counterpart in the bigger model.

        Raises:
            StructureError: if the bigger model has other layers.
        """
        return tuple(
            Match(own.address, own.layers, own.rule, own.weights_rule, layer)
            for own, layer in self._pairs(grown)
        )

    def check_given(self, grown: keras.Model) -> None:
        """Checks that a bigger model that was given differs in its widths only.

        Raises:
            StructureError: if it has other layers, or heads of another size.
        """
        for own, layer in self._pairs(grown):
            if own.rule is not None and _is_of_a_library(layer):
                both = [own.layers[0], layer]
                _check_configs(own.address, both, own.rule, "Parents and `into` differ")

    def _pairs(self, grown):
        pairs = tree.lockstep([self.first, grown])
        return [(o, new) for o, (_, (_, new)) in zip(self.siblings, pairs, strict=True)]


def resolved(
    parents: list[keras.Model] | keras.Model,
    factor: float | None,
    copies: int | None = None,
) -> tuple[list[keras.Model], float]:
    """The K parents, and how much larger than their sum the target is to be.

    In a self-fusion they are K times the same model: once for a factor of 1.5, whose
    other half is new capacity; or as often as `copies` says.

    Raises:
        FusionError: naming the argument.
    """
    if isinstance(parents, keras.Model):
        if factor is None:
            raise FusionError(
                "One model was given as `parents`, and no `factor`. Pass factor=2 to "
                "fuse it with itself, or a list of models."
            )
        check_factor(factor)
        models = [parents] * (copies or int(factor))
        capacity = factor / len(models)
    else:
        if factor is not None:
            raise FusionError(
                f"`factor` is for one model. Received: factor={factor!r} with a list of "
                "parents; leave one of the two out."
            )
        models, capacity = list(parents), 1.0
        _check_count(models)
    for i, model in enumerate(models):
        check_parent(i, model)
    return models, capacity


def check_factor(factor: float) -> None:
    """Checks how many times as wide a model is to become.

    Raises:
        FusionError: if it is not a number above 1, or larger than can be meant: the
            weights become as many as its square.
    """
    good = is_number(factor) and 1 < factor <= _LARGEST
    require(good, "factor", factor, f"a number above 1, and of at most {_LARGEST}")


def _check_count(models):
    if len(models) < 2:
        raise FusionError(
            f"`parents` must be at least two models. Received {len(models)}; to fuse one "
            "with itself pass it alone, with factor=2."
        )


def check_parent(i: int, model: keras.Model) -> None:
    """Checks that a model can be grown.

    Args:
        i: int. Which of `parents`.
        model: the model.

    Raises:
        FusionError: naming what it is or lacks.
    """
    if not isinstance(model, keras.Model):
        raise FusionError(
            f"`parents[{i}]` must be a keras.Model. Received: {model!r} of type "
            f"{type(model).__name__}."
        )
    if not model.built or not model.weights:
        raise FusionError(
            f"`parents[{i}]`, {type(model).__name__} {model.name!r}, is not built, so it "
            "has no weights to fuse. Call it once on a batch, or build() it."
        )
    for address, layer in tree.walk(model):
        state = getattr(layer, "quantization_mode", None) and "quantized"
        if state or getattr(layer, "lora_enabled", False):
            raise FusionError(
                f"{type(layer).__name__} at {address!r} of `parents[{i}]` is "
                f"{state or 'LoRA-enabled'}. Fuse the model before that; or build it "
                "anew, without, and give the new layer this one's merged `kernel`."
            )


def _check_wiring(parents):
    (names, first), *others = (_wiring(parent) for parent in parents)
    for k, (own_names, own) in enumerate(others, 1):
        if own == first:
            continue
        same = (a == b for a, b in zip(first, own, strict=False))
        i = next((i for i, equal in enumerate(same) if not equal), -1)
        raise StructureError(
            "The parents differ in how their layers are joined, in the options of a call, "
            f"or in the order in which layers were made: parents[0] at {names[i]!r}, "
            f"parents[{k}] at {own_names[i]!r}. Only widths may differ, "
            "and how often a residual block is repeated."
        )


def _wiring(model):
    """The names of the calls; and what each is, what feeds it, and its layer's place."""
    found = wiring(graphs.read(model))
    places = {layer.name: i for i, layer in enumerate(model.layers)}
    names = [call.name for call in found.calls]
    forms = [(f, places.get(n)) for f, n in zip(found.form, names, strict=False)]
    return [*names, "the outputs"], [*forms, found.form[-1]]


def _is_of_a_library(layer):
    """Whether a layer's config has no other widths than its rule says."""
    return type(layer).__module__.startswith(("keras.", "keras_hub."))


def _check_configs(address, layers, rule, what):
    where = f"{type(layers[0]).__name__} at {address or 'the top'!r}"
    try:
        configs = [layer.get_config() for layer in layers]
    except NotImplementedError:
        return  # Nothing is known of its options; the shapes of its weights are checked.
    for key, value in configs[0].items():
        values = [config.get(key) for config in configs]
        is_size = isinstance(value, int) and key != "seed"
        if is_size and key not in rule.widths and any(v != value for v in values):
            hint = " Head sizes must be equal." if "dim" in key else ""
            raise StructureError(
                f"{what} in {key!r} of {where}: {values}. Only widths "
                f"{rule.widths} may differ.{hint}"
            )
    for name, function in rule.equal.items():
        values = [function(config) for config in configs]
        if len(set(values)) > 1:
            raise StructureError(
                f"{what} in their {name} in {where}: {values}. It must be "
                "equal everywhere."
            )


# Partners, from files that are not trusted.


def load(i: int, given: keras.Model | str | os.PathLike) -> keras.Model:
    """A partner, loaded in Keras's safe mode if it is given as a path, and checked.

    Args:
        i: int. Its place in the list of partners.
        given: a model, or the path of a `.keras` file.

    Raises:
        FusionError: if the file cannot be read or brings code with it, or if a weight is
            not finite.
    """
    where = f"`partners[{i}]`"
    if not isinstance(given, keras.Model):
        path = os.fspath(given)
        where, given = f"{where}, {path}", partner_files.load(where, path)
    for variable in given.weights:
        if keras.backend.is_float_dtype(variable.dtype):
            finite = keras.ops.all(keras.ops.isfinite(variable))
            if not bool(keras.ops.convert_to_numpy(finite)):
                raise FusionError(
                    f"{where}, has values in {variable.path!r} that are not finite (NaN "
                    "or infinite). It has diverged: give an earlier state of it."
                )
    return given
