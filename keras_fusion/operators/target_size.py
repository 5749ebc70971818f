"""The sizes to which a model can grow, near to a number of parameters."""

import dataclasses
import math
import warnings
from collections.abc import Sequence

import keras

from keras_fusion.architecture.chosen import kind_of_key
from keras_fusion.architecture.parents import Parents, resolved
from keras_fusion.architecture.setters import setters, whole_numbers
from keras_fusion.errors import FusionError
from keras_fusion.models import graph as graphs
from keras_fusion.models import rules
from keras_fusion.operators.plan import Draft, build_and_lay_out
from keras_fusion.values import copies

_LARGEST = 1000  # of factors
_AROUND = 2  # How many sizes below and above the nearest are told.
_FAR = 0.1  # From here on that the nearest size is another one gets a warning.


@dataclasses.dataclass(frozen=True)
class Size:
    """A size to which a model can grow.

    Args:
        factor: float. How many times as wide it becomes.
        params: int. How many parameters it has then.
        to: dict of sizes, for `to=` of `fuse`, where the factor does not fit all widths
            and some are rounded; `None` where it does.
    """

    factor: float
    params: int
    to: dict[str, int] | None = None

    def __str__(self) -> str:
        """The size in a few words."""
        sizes = {} if self.to is None or len(self.to) > 4 else self.to
        listed = "".join(f", {key}={size}" for key, size in sizes.items())
        return f"{self.params:,} (x{self.factor:.4g}{listed})"


def sizes_near(model: keras.Model, params: float) -> tuple[Size, ...]:
    """The sizes of a model nearest to a number of parameters, the nearest first.

    All widths grow by one factor. It makes every head count whole and keeps the head
    size; other widths are rounded where it does not fit them.

    Args:
        model: a built model.
        params: number of parameters.

    Raises:
        FusionError: if the model has as many already, or would be too many times as wide.
    """
    own = model.count_params()
    if params <= own:
        raise FusionError(
            f"`to={params:,.0f}` parameters: {model.name!r} has {own:,} already. Name a "
            "larger number."
        )
    found = _Sizes(model)
    if found.params(_LARGEST * found.unit) < params:
        raise FusionError(
            f"`to={params:,.0f}` parameters: {model.name!r} has {own:,}, and would become "
            f"more than {_LARGEST} times as wide. Name a smaller number."
        )
    steps, most = found.unit + 1, _LARGEST * found.unit
    while steps < most:  # The first that is large enough.
        middle = (steps + most) // 2
        steps, most = (
            (steps, middle) if found.params(middle) >= params else (middle + 1, most)
        )
    first = max(found.unit + 1, steps - _AROUND - 1)
    around = [found.size(n) for n in range(first, steps + _AROUND + 1)]
    return tuple(sorted(around, key=lambda size: abs(size.params - params)))


def nearest(model: keras.Model, params: float) -> Size:
    """The size of a model nearest to a number of parameters.

    It warns, with the others, if that is a rather different number.

    Raises:
        FusionError: see `sizes_near`.
    """
    first, *others = sizes_near(model, params)
    if abs(first.params - params) > _FAR * params:
        listed = "; ".join(map(str, others))
        warnings.warn(
            f"`to={params:,.0f}` parameters: the nearest size that fits the heads of "
            f"{model.name!r} has {first}. Others: {listed}. Widths can be named one by one "
            "as well, as in to={'intermediate_dim': ...}.",
            stacklevel=2,
        )
    return first


class _Sizes:
    """The sizes of a model at factors that fit it: multiples of `1 / unit`."""

    def __init__(self, model: keras.Model):
        models, capacity = resolved(model, 2, copies=1)
        draft = build_and_lay_out(Parents.of(models), capacity=capacity)
        weights = {id(v) for v in draft.matches[0].grown.weights}
        self._rows = [
            [_stretches(axis) for axis in layout.axes]
            for layout in draft.layouts
            if id(layout.target) in weights
        ]
        grown = [p[1] for row in self._rows for axis in row for p in axis if p[0]]
        heads = _heads(draft)
        self._named = _named_sizes(model, draft)
        if self._named is None:
            self.unit = math.gcd(*heads, *grown)
        else:
            self.unit = math.gcd(*heads) if heads else max(self._named.values())
        self._whole = math.gcd(*heads, *grown)

    def params(self, steps: int) -> int:
        """The number of parameters at a factor of `steps / unit`."""
        return sum(
            math.prod(
                sum(self._wide(size, steps) if grows else size for grows, size in axis)
                for axis in row
            )
            for row in self._rows
        )

    def _wide(self, size: int, steps: int) -> int:
        return round(size * steps / self.unit)

    def size(self, steps: int) -> Size:
        """The `Size` at a factor of `steps / unit`."""
        factor, params = steps / self.unit, self.params(steps)
        if not (self._whole * steps) % self.unit or self._named is None:
            return Size(factor, params)
        wide = {key: self._wide(size, steps) for key, size in self._named.items()}
        to = {key: size for key, size in wide.items() if size > self._named[key]}
        return Size(factor, params, to)


def _stretches(axis) -> Sequence[tuple[bool, int]]:
    """The parts of an axis, as `(whether it grows, its size now)`."""
    if not axis.grown:
        return [(False, axis.size)]
    return [(new > old, old) for _, old, _, new in copies.stretches(axis)]


def _heads(draft: Draft) -> set[int]:
    """The numbers of heads that grow."""
    return {
        size
        for match in draft.matches
        for key, size in _growing(match.layers[0], match.grown).items()
        if kind_of_key(key) == "heads"
    }


def _growing(layer: keras.Layer, grown: keras.Layer) -> dict[str, int]:
    """The widths of a layer that are larger in its counterpart, by key."""
    old, new = whole_numbers(layer), whole_numbers(grown)
    return {k: old[k] for k in _keys(layer) if k in old and old[k] < new.get(k, 0)}


def _keys(layer: keras.Layer) -> Sequence[str]:
    rule = rules.find(layer)
    return rule.widths if rule is not None and isinstance(rule.widths, tuple) else ()


def _named_sizes(model: keras.Model, draft: Draft) -> dict[str, int] | None:
    """The widths that grow, by the names that `to` takes for them.

    `None` if not every one has a name: some are set by more than a number of a config.
    """
    grown = {id(match.layers[0]): match.grown for match in draft.matches}
    found: dict[str, int] = {}
    for layer in setters(model):
        own = _growing(layer, grown[id(layer)]) if id(layer) in grown else {}
        rule = rules.find(layer)
        is_named = rule is None or rule.grow is None
        if not is_named or (graphs.is_plain(model) and len(own) > 1):
            return None
        if not own and _changes(layer, grown.get(id(layer))):
            return None
        for key, size in own.items():
            name = layer.name if graphs.is_plain(model) else key
            if found.setdefault(name, size) != size:
                return None
    return found or None


def _changes(layer: keras.Layer, grown: keras.Layer | None) -> bool:
    """Whether a layer's config has other sizes in its counterpart, that are no numbers."""
    keys = _keys(layer)
    if grown is None or not keys:
        return False
    old, new = layer.get_config(), grown.get_config()
    return any(old.get(key) != new.get(key) for key in keys)
