"""Which widths of a model grow: all, those of some kinds or names, or to which sizes."""

import dataclasses
import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeGuard

import keras

from keras_fusion.architecture.setters import whole_numbers
from keras_fusion.errors import FusionError, is_integer, is_names, is_number, require
from keras_fusion.models import rules, tree

KINDS = ("feed_forward", "heads", "residual")
_IN_FEED_FORWARD = ("intermediate", "mlp", "feed_forward", "feedforward", "ffn")


@dataclasses.dataclass
class Chosen:
    """A choice of widths.

    Args:
        only: tuple of `KINDS`, and of patterns for names of layers or of their config's
            keys; `None` for all widths.
        to: dict from names of layers or of their config's keys to the sizes that these
            widths are to have, while the others stay; `None` for no such sizes.
    """

    only: tuple[str, ...] | None = None
    to: dict[str, int] | None = None
    _hits: set[str] = dataclasses.field(default_factory=set, repr=False)
    _names: set[str] = dataclasses.field(default_factory=set, repr=False)

    @property
    def is_all(self) -> bool:
        """Whether all widths grow."""
        return self.only is None and self.to is None

    def size(self, *names: str | None) -> int | None:
        """The size that a width is to have, by any of its names; `None` without one."""
        sizes = self.to or {}
        return next((sizes[n] for n in names if n is not None and n in sizes), None)

    def takes_key(self, layer: str, key: str) -> bool:
        """Whether a width grows that a key of a layer's config sets."""
        return self.takes((layer, key), kind_of_key(key))

    def takes(self, names: Sequence[str], kind: str) -> bool:
        """Whether a width of some kind grows, which any of some names may choose."""
        if self.is_all:
            return True
        self._names |= set(filter(None, names))
        hits = set(self.to or ()) & set(names) or {
            item
            for item in self.only or ()
            if item == kind
            or (item not in KINDS and any(fnmatch.fnmatch(n, item) for n in names))
        }
        self._hits |= hits
        return bool(hits)

    def unwanted(
        self, setters: Mapping[object, Iterable[tuple[tuple[str, ...], str]]]
    ) -> list:
        """The classes of equal widths that do not grow.

        Args:
            setters: for each class the layers that set its width, as `(names, kind)`:
                the layer's name, and that of the key of its config.

        Raises:
            FusionError: if some layers of a class are chosen and others are not.
        """
        found = []
        for key, pairs in setters.items():
            pairs = list(pairs)
            taken = {names[0]: self.takes(names, kind) for names, kind in pairs}
            sizes = {names[0]: self.size(*names) for names, _ in pairs}
            if not any(taken.values()):
                found.append(key)
            elif not all(taken.values()) or len(set(sizes.values())) > 1:
                first = next(name for name in taken if taken[name])
                others = sorted(name for name in taken if name != first)
                raise FusionError(
                    f"`{self._argument}` names {first!r}, whose width must be that of "
                    f"{others} too: they are added, or follow each other. Name all of "
                    "them alike, or none."
                )
        return found

    def check_hits(self, reasons: Sequence[str] = ()) -> None:
        """Checks that each item of the choice has chosen something.

        Args:
            reasons: why widths stay. Defaults to none.

        Raises:
            FusionError: naming the items, and what there is.
        """
        asked = self.only or self.to or ()
        idle = [item for item in asked if item not in self._hits]
        if idle:
            kinds = f"the kinds {KINDS}, and " if self.only else ""
            others = f" Others stay: {reasons[0]}" if reasons else ""
            raise FusionError(
                f"`{self._argument}` has chosen no width by {idle}. It takes {kinds}names "
                f"of layers or config keys: {sorted(self._names)}.{others}"
            )

    @property
    def _argument(self) -> str:
        return "only" if self.to is None else "to"

    def refuse_change(self, layer: str, name: str, before: float, after: float) -> None:
        """Refuses a choice that changes what must stay, such as the head size.

        Raises:
            FusionError: naming it.
        """
        if not self.is_all:
            given = self.to or list(self.only or ())
            raise FusionError(
                f"`{self._argument}={given}` would change the {name} of {layer!r} from "
                f"{before:g} to {after:g}, and with it the function. Let "
                "heads and residual stream ('heads', 'residual') grow together and alike, "
                "or the feed-forward widths alone."
            )


def ratios(model: keras.Model, to: Mapping[str, int]) -> dict[str, float]:
    """How many times as large the widths of a model become that `to` names.

    Raises:
        FusionError: if there is no width of a name, or if one would not become larger.
    """
    found, widths = {}, list(_named_widths(model))
    known = {name for *names, _ in widths for name in names}
    if not set(to) <= known:
        raise FusionError(
            f"`to` names {sorted(set(to) - known)}, and the model has no such width. It "
            f"has {sorted(known)}."
        )
    for name, key, size in widths:
        for given in {name, key} & set(to):
            if to[given] <= size:
                raise FusionError(
                    f"`to` asks for {given}={to[given]}, and it is {size} in {name!r} "
                    "already. Name a larger size, or leave it out."
                )
            ratio = to[given] / size
            found[key] = min(ratio, found.get(key, ratio))
    return found


def _named_widths(model: keras.Model) -> Iterator[tuple[str, str, int]]:
    """Yields `(layer's name, key of its config, size)` for widths that are one number."""
    for _, layer in tree.walk(model):
        rule = rules.find(layer)
        keys = () if rule is None or rule.grow is not None else rule.widths
        # A layer without config is refused later, by name.
        sizes = whole_numbers(layer) if keys else {}
        for key in keys:
            if key in sizes:
                yield layer.name, key, sizes[key]


def is_count(to: Any) -> TypeGuard[float]:
    """Whether `to` is a number of parameters."""
    return is_number(to) and to >= 1


def kind_of_key(key: str) -> str:
    """The kind of a width, by the key of a config that sets it."""
    if "heads" in key:
        return "heads"
    is_inner = any(part in key for part in _IN_FEED_FORWARD)
    return "feed_forward" if is_inner else "residual"


def as_chosen(
    only: str | Sequence[str] | None, to: Mapping[str, int] | float | None = None
) -> Chosen:
    """Reads the arguments `only` and `to`.

    A number as `to` chooses by the number of parameters, and so no widths by name.

    Raises:
        FusionError: naming the argument.
    """
    if to is not None:
        require(
            is_count(to)
            or (
                isinstance(to, dict)
                and bool(to)
                and all(is_integer(n, 1) for n in to.values())
            ),
            "to",
            to,
            "a dict from names of config keys or layers to positive integers, a number of "
            "parameters, or None",
        )
        if only is not None:
            raise FusionError(
                f"`to` says which widths grow, and so does `only`. Received: to={to!r}, "
                f"only={only!r}. Leave one of the two out."
            )
        sizes = to.items() if isinstance(to, Mapping) else ()
        return Chosen(to={name: int(size) for name, size in sizes} or None)
    listed = [only] if isinstance(only, str) else only
    fits = listed is None or is_names(listed)
    expected = f"None, or one or a list of {KINDS}, names of layers, or patterns"
    require(fits, "only", only, expected)
    return Chosen(None if listed is None else tuple(listed))
