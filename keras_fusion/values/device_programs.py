"""Programs that devices run to make their own parts of a grown variable.

A program is compiled once for all variables of one shape and sharding that grow in one
way; what differs from variable to variable are its arguments. A product is never added
to in one instruction, which would round once where NumPy rounds twice: `products` hides
it from the compiler.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_fusion.models import shards
from keras_fusion.models.part_exchange import Exchange
from keras_fusion.models.shards import Split, along
from keras_fusion.values import noise
from keras_fusion.values.device_statistics import LONG, Statistic, products
from keras_fusion.values.fuse import balanced, drawn_for

# The number of chunks in which a device makes its part.
_CHUNKS = 32
LEAST_ENTRIES = 2**14
# Numbers that programs compute with, and what they are where a rule needs none.
_NUMBERS = {
    "shift": 0.0,
    "scale": 1.0,
    "shift_back": 0.0,
    "share": 1.0,
    "deviation": 0.0,
    "empty": 0.0,
}
_ARGUMENTS = (
    *("old", "zero", "sources", "owners", "factors", "members", "equal", "fresh"),
    *("key", "table", *_NUMBERS),
)


@dataclasses.dataclass(frozen=True)
class Rule:
    """What does not change from variable to variable of one shape.

    Args:
        old: the `Split` of the old variable.
        new: the `Split` of the grown one.
        dtype: string. The dtype of the grown one.
        roles: for each axis its role if it grew, else the empty string.
        exchanges: for each axis what devices send each other along it.
        count: int. Number of copies that a fusion joins; 0 for copies of units.
        draws: `"paired"`, `"random"`, `"cancelling"` or the empty string.
        columns: int. The axis over which noise cancels.
        fresh: the axes whose new capacity starts from initial values.
        is_slot: bool. Whether it is the state of an optimizer, which has a value in
            every block.
    """

    old: Split
    new: Split
    dtype: str
    roles: tuple[str, ...]
    exchanges: tuple[Exchange | None, ...]
    count: int = 0
    draws: str = ""
    columns: int = 0
    fresh: tuple[int, ...] = ()
    is_slot: bool = False

    @property
    def entries(self) -> int:
        """About how many entries a device makes at a time; fewer if it receives more."""
        most = max(LEAST_ENTRIES, self.new.entries // _CHUNKS)
        return int(most / max([1.0, *map(self.received, self.others)]))

    def received(self, axis: int) -> float:
        """How much longer what a device receives along an axis is than what it makes."""
        exchange = self.exchanges[axis]
        return exchange.length / self.new.local(axis) if exchange else 0.0

    def is_moved(self, axis: int) -> bool:
        """Whether entries lie elsewhere along an axis than in the old variable."""
        return bool(self.roles[axis]) or self.old.names[axis] != self.new.names[axis]

    @property
    def cut(self) -> int:
        """The axis that is cut into chunks: if possible one along which little is sent."""
        axes = range(len(self.exchanges))
        least = min(map(self.received, axes))
        axis = self.new.long_axis(LONG, [a for a in axes if self.received(a) == least])
        is_enough = self.new.local(axis) >= _CHUNKS
        return axis if is_enough else self.new.long_axis(LONG, axes)

    @property
    def others(self) -> list[int]:
        """The other axes along which entries move, those that grow least first."""
        axes = (axis for axis in range(len(self.roles)) if axis != self.cut)
        moved = filter(self.is_moved, axes)
        return sorted(moved, key=lambda i: self.new.local(i) / self.old.local(i))


@dataclasses.dataclass(frozen=True)
class Call:
    """A program with its arguments, which makes a variable's value when it is called.

    Args:
        rule: the `Rule` of the program.
        source: the old variable.
        values: dict of what the rule needs of `_ARGUMENTS`; a `Statistic` is computed
            when the program is called.
    """

    rule: Rule
    source: keras.Variable
    values: dict[str, Any]

    def __call__(self) -> Any:
        """Computes the value on the variable's devices."""
        values = {
            name: value.value() if isinstance(value, Statistic) else value
            for name, value in self.values.items()
        }
        return program(self.rule)(arguments_of(self.rule, self.source.value, values))


def arguments_of(rule: Rule, old: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a rule's program: those given, and the usual ones."""
    nothing = [None] * len(rule.new.shape)
    vectors = {n: values.get(n) or nothing for n in ("sources", "owners", "factors")}
    numbers = {name: np.float32(values.get(name, n)) for name, n in _NUMBERS.items()}
    given = {n: values.get(n) for n in ("members", "equal", "fresh")}
    if rule.draws:
        given |= {"key": values["key"], "table": noise.table()}
    narrow = {np.dtype("int64"): "int32", np.dtype("float64"): "float32"}

    def narrowed(value: Any) -> Any:
        kind = narrow.get(getattr(value, "dtype", None))
        return value if kind is None else value.astype(kind)

    arguments = vectors | numbers | given | {"old": old, "zero": np.uint32(0)}
    return {
        name: list(map(narrowed, value)) if isinstance(value, list) else narrowed(value)
        for name, value in arguments.items()
    }


@functools.lru_cache(maxsize=64)
def program(rule: Rule) -> Callable[[dict[str, Any]], Any]:
    """The compiled program of a rule."""
    import jax

    everywhere = jax.sharding.PartitionSpec()
    specs = dict.fromkeys(_ARGUMENTS, everywhere)
    specs |= {"old": rule.old.spec, "fresh": rule.new.spec}
    mapped = jax.shard_map(
        lambda arguments: _part_of(rule, arguments),
        mesh=rule.new.mesh,
        in_specs=(specs,),
        out_specs=rule.new.spec,
        check_vma=False,
    )
    return jax.jit(
        lambda arguments: mapped({name: arguments.get(name) for name in _ARGUMENTS})
    )


def _part_of(rule: Rule, given: dict[str, Any]) -> Any:
    """One device's part of a variable, made chunk by chunk."""
    import jax
    import jax.numpy as jnp

    new, axis = rule.new, rule.cut
    chunks, region = shards.Chunks.of(new, axis, rule.entries), shards.region(new)
    cut = functools.partial(jax.lax.dynamic_slice_in_dim, slice_size=chunks.size)
    held = _held(rule, given["old"], axis)

    def make(number, made):
        start, own = chunks.start(number), list(region)
        own[axis] = cut(region[axis], start)
        places = _places(given["sources"], own)
        if rule.is_moved(axis):
            values = _taken(rule, held, axis, places[axis])
        else:
            values = cut(held, start, axis=axis)
        for other in rule.others:
            values = _taken(rule, _held(rule, values, other), other, places[other])
        fresh = (
            None if given["fresh"] is None else cut(given["fresh"], start, axis=axis)
        )
        values = _Part(rule, given, own, places).value(values, fresh)
        return jax.lax.dynamic_update_slice_in_dim(made, values, start, axis)

    empty = jnp.zeros([len(own) for own in region], rule.dtype)
    return jax.lax.fori_loop(0, chunks.count, make, empty)


def _places(sources: Sequence[Any], region: Sequence[Any]) -> list[Any]:
    """For each axis the places in the old variable; any for what is new."""
    import jax.numpy as jnp

    vectors = zip(region, sources, strict=True)
    found = [own if v is None else jnp.take(v, own) for own, v in vectors]
    return [jnp.maximum(own, 0) for own in found]


def _held(rule: Rule, values: Any, axis: int) -> Any:
    """What this device needs along an axis, of which it has a part."""
    exchange = rule.exchanges[axis]
    return exchange.received(values, axis) if exchange else values


def _taken(rule: Rule, held: Any, axis: int, places: Any) -> Any:
    """The entries of `_held` at some places of the old variable's axis."""
    import jax.numpy as jnp

    exchange = rule.exchanges[axis]
    places = exchange.places(places) if exchange else places
    return jnp.take(held, places, axis=axis, mode="clip")


class _Part:
    """The computation of a part of a variable.

    Args:
        rule: the variable's `Rule`.
        given: the arguments of its program.
        region: for each axis the indices of the part's entries.
        places: for each axis their places in the old variable.
    """

    def __init__(
        self,
        rule: Rule,
        given: dict[str, Any],
        region: Sequence[Any],
        places: Sequence[Any],
    ):
        self.rule, self.given = rule, given
        self.region, self.places = region, places
        self.product = products(given["zero"])
        self.rank = len(region)

    def _own(self, name: str, axis: int) -> Any:
        """The part of a vector along an axis, to broadcast; or `None`."""
        import jax.numpy as jnp

        vector = self.given[name][axis]
        if vector is None:
            return None
        return along(jnp.take(vector, self.region[axis]), axis, self.rank)

    def value(self, old: Any, fresh: Any) -> Any:
        """The values of the part.

        Args:
            old: the old variable's values at the places.
            fresh: initial values of new capacity, or `None`.
        """
        import jax.numpy as jnp

        given, rule = self.given, self.rule
        value = self.product(old.astype("float32") + given["shift"], given["scale"])
        if rule.count:
            value = self._fused(value - given["shift_back"])
        else:
            value = self._copied(value)
        for axis in rule.fresh:
            new = self._is_new(axis)
            value = jnp.where(new, fresh.astype("float32"), value)
        return value.astype(rule.dtype)

    def _is_new(self, axis: int) -> Any:
        """Which entries along an axis are of no unit; `None` where none is new."""
        own = self._own("sources", axis)
        return None if own is None else own < 0

    def _copied(self, value: Any) -> Any:
        """Units and their copies, which share each unit's influence."""
        import jax.numpy as jnp

        rule, given = self.rule, self.given
        news = [self._is_new(axis) for axis in range(self.rank)]
        is_new = functools.reduce(
            jnp.logical_or, [x for x in news if x is not None], False
        )
        value = jnp.where(is_new, given["empty"], value)
        for axis in range(self.rank):
            factor = self._own("factors", axis)
            if factor is not None:
                value = self.product(value, factor)
        value = self.product(value, given["share"])
        if rule.draws == "cancelling":
            value = jnp.where(is_new, 0.0, value + self._cancelling())
        return value - given["shift_back"]

    def _cancelling(self) -> Any:
        """Noise that sums to zero over the copies of each input."""
        import jax.numpy as jnp

        axis, shape = self.rule.columns, self.rule.new.shape
        drawn = self._noise(self.region, shape, 0)
        total = jnp.zeros_like(drawn)
        for copy in jnp.take(self.given["members"], self.region[axis], axis=0).T:
            places = list(self.region)
            places[axis] = jnp.maximum(copy, 0)
            part = self._noise(places, shape, 0)
            total = total + jnp.where(along(copy < 0, axis, self.rank), 0.0, part)
        equal = along(jnp.take(self.given["equal"], self.region[axis]), axis, self.rank)
        return drawn - self.product(total, equal)

    def _fused(self, value: Any) -> Any:
        """The blocks of the parents, with noise beside them."""
        import jax.numpy as jnp

        owners = self._owner("in"), self._owner("out", "other")
        inputs, others = owners
        inside = jnp.ones((1,) * self.rank, bool)
        for owner in owners:
            inside = inside & (owner >= 0) if owner is not None else inside
        is_diagonal = inside
        if not (self.rule.is_slot or inputs is None or others is None):
            is_diagonal = inside & (inputs == others)
        value = self.product(value, self.given["share"])
        value = jnp.where(is_diagonal, value, self.given["empty"])
        if self.rule.draws == "paired":
            return jnp.where(inside, value + self._paired(inputs), value)
        if self.rule.draws == "random":
            drawn = self._random(inputs, others)
            return jnp.where(inside & (inputs != others), value + drawn, value)
        return value

    def _random(self, inputs: Any, others: Any) -> Any:
        """Noise of its own for the block of each pair of parents."""
        block = (self.rule.count * others + inputs).astype("uint32")
        return self._noise(self.places, self.rule.old.shape, block)

    def _paired(self, inputs: Any) -> Any:
        """Noise that is equal for all outputs, with the sum zero over the parents."""
        import jax.numpy as jnp

        count, shape = self.rule.count, self.rule.old.shape
        noises = range(drawn_for(count))
        drawn = [self._noise(self.places, shape, k) for k in noises]
        chosen: Any = 0.0
        for k, one in enumerate(balanced(drawn, count, self.product)):
            chosen = jnp.where(inputs == k, one, chosen)
        return chosen

    def _owner(self, *roles: str) -> Any:
        """The parent of each entry along all axes of some roles; -1 if they differ."""
        import jax.numpy as jnp

        found: Any = None
        for axis, role in enumerate(self.rule.roles):
            if role in roles:
                own = self._own("owners", axis)
                found = own if found is None else jnp.where(found == own, own, -1)
        return found

    def _noise(self, places: Sequence[Any], shape: Sequence[int], block: Any) -> Any:
        """The noise of entries of a block, see `noise.Noise`."""
        import jax.numpy as jnp

        length = noise.stretch_of(shape[-1])
        row = jnp.zeros((1,) * self.rank, "uint32")
        for axis, size in enumerate(shape[:-1]):
            own = along(places[axis].astype("uint32"), axis, self.rank)
            row = row * np.uint32(size) + own
        column = along(places[-1].astype("uint32"), self.rank - 1, self.rank)
        numbers = noise.drawn(
            self.given["key"], block, row, column // np.uint32(length)
        )
        place = (numbers & np.uint32(noise.TABLE - 1)) + column % np.uint32(length)
        value = jnp.take(self.given["table"], place.astype("int32"), mode="clip")
        return self.product(value, noise.signed(numbers, self.given["deviation"]))
