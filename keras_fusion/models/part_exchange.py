"""How devices get what others hold of an array, along one of its axes, under JAX.

Call `received` and `places` inside `jax.shard_map`.
"""

import collections
import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from keras_fusion.models.shards import Split

Pairs = tuple[tuple[int, int], ...]  # the numbers of the sender's and receiver's parts
# A model joined with itself takes two rounds. Copies drawn at random would take many, and
# another program for each variable: then all devices receive everything.
_MOST_ROUNDS = 8


@dataclasses.dataclass(frozen=True)
class Exchange:
    """What devices send each other along an axis, so that each gets what it needs.

    Args:
        names: the mesh's axes over which the array's axis is split.
        parts: int. Over how many devices it is split.
        local: int. The length of a part.
        rounds: in each, a device sends its part to one other at most, and receives one.
            Without rounds each receives all parts.
    """

    names: tuple[str, ...]
    parts: int
    local: int
    rounds: tuple[Pairs, ...] = ()

    @classmethod
    def of(
        cls, old: Split, new: Split, axis: int, indices: np.ndarray | None
    ) -> "Exchange | None":
        """The exchange that a growth needs along an axis; `None` if it needs none.

        Args:
            old: the split of the old array.
            new: the split of the grown one, along this axis over the same devices.
            axis: int.
            indices: for each place along the grown axis its place in the old one, or
                -1; `None` if the axis did not grow.
        """
        names = old.names[axis]
        if indices is None or not names:
            return None
        parts, local = old.parts(axis), old.local(axis)
        pairs = [
            (int(sender), receiver)
            for receiver, asked in enumerate(np.split(indices, parts))
            for sender in np.unique(asked[asked >= 0] // local)
        ]
        # JAX numbers devices along several axes of a mesh in one way for `ppermute`, and
        # in another for all else.
        most = min(parts - 1, _MOST_ROUNDS) if len(names) == 1 else 0
        return cls(names, parts, local, _rounds(pairs, most))

    @property
    def length(self) -> int:
        """The length of what a device receives."""
        return self.local * (len(self.rounds) or self.parts)

    def received(self, part: Any, axis: int) -> Any:
        """The parts that this device needs, in the order of the rounds.

        Args:
            part: this device's part.
            axis: int.
        """
        import jax
        import jax.numpy as jnp

        if not self.rounds:
            return jax.lax.all_gather(part, self.names, axis=axis, tiled=True)
        sent = [jax.lax.ppermute(part, self.names, pairs) for pairs in self.rounds]
        return jnp.concatenate(sent, axis)

    def places(self, indices: Any) -> Any:
        """The places in `received` of indices of the whole axis."""
        import jax
        import jax.numpy as jnp

        if not self.rounds:
            return indices
        round_of = np.zeros((self.parts, self.parts), "int32")
        for number, pairs in enumerate(self.rounds):
            for sender, receiver in pairs:
                round_of[receiver, sender] = number
        rounds = jnp.asarray(round_of)[jax.lax.axis_index(self.names)]
        received = jnp.take(rounds, indices // self.local)
        return received * self.local + indices % self.local


def _rounds(pairs: Iterable[tuple[int, int]], most: int) -> tuple[Pairs, ...]:
    """Pairs spread over rounds, in which nobody sends or receives twice.

    Returns:
        Tuple of rounds; empty if it would be more than `most`.
    """
    rounds: dict[int, list[tuple[int, int]]] = collections.defaultdict(list)
    busy: set[tuple[int, str, int]] = set()
    for sender, receiver in pairs:
        number = 0
        while not busy.isdisjoint(
            own := {(number, "sends", sender), (number, "receives", receiver)}
        ):
            number += 1
        if number == most:
            return ()
        rounds[number].append((sender, receiver))
        busy |= own
    return tuple(map(tuple, rounds.values()))
