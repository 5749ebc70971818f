"""The parts of a functional model that can be repeated.

A deep network is a chain: tensors of one shape through which everything has to pass, and
a segment of calls between each two of them. Whatever can be repeated is a run of segments,
be it to make a model several times as deep (`stacks`) or as deep as another one
(`repeat.align`).
"""

import dataclasses
from collections.abc import Callable, Hashable, Iterable, Iterator

from keras_fusion.architecture.wiring import signature, wiring
from keras_fusion.models.graph import Call, Graph, Key


@dataclasses.dataclass(frozen=True)
class Segment:
    """The calls between two tensors of one shape, which can be repeated.

    Nothing inside is used outside but the exit, and no layer inside is called outside.
    No smaller segment begins with the same uses of the entry.

    Args:
        calls: the name and index of each call.
        entry: the tensor that comes in. Others may come in as well; they are the same
            for each repetition (a decoder block's memory).
        exit: the tensor that comes out.
        form: what is computed, without names; equal for segments that compute the same.
        uses: how many of the calls use the entry.
        shared_with: the calls outside that use the entry as well.
    """

    calls: frozenset[tuple[str, int]]
    entry: Key
    exit: Key
    form: tuple
    uses: int
    shared_with: frozenset[tuple[str, int]] = frozenset()

    @property
    def uses_up(self) -> bool:
        """Whether no call outside uses the entry."""
        return not self.shared_with

    @property
    def is_residual(self) -> bool:
        """Whether the entry goes more than one way, as in a residual block."""
        return self.uses > 1

    @property
    def kinds(self) -> list[Hashable]:
        """The signature of each call."""
        return [kind for kind, _ in self.form]


Run = tuple[Segment, ...]  # Each segment begins where the one before it ends.


def calls_of(run: Iterable[Segment]) -> frozenset[tuple[str, int]]:
    """The calls of all segments."""
    return frozenset().union(*(segment.calls for segment in run))


def find(graph: Graph, kind: Callable[[Call], Hashable] = signature) -> list[Segment]:
    """All segments of a graph.

    Whatever lies between two tensors and can be repeated is a run of them: any segment,
    and behind it segments that use their entries up.

    Args:
        graph: the graph.
        kind: function that tells what a call computes.

    Returns:
        List of `Segment`s, in the order in which their entries are first used.
    """
    finder = _Finder(graph, kind)
    return [segment for key in finder.tensors for segment in finder.starting_at(key)]


class _Finder:
    """Finds segments from cut to cut.

    The cut after a tensor is the next tensor through which everything that is computed
    from it passes (its immediate postdominator), so nothing between the two is used
    elsewhere.
    """

    def __init__(self, graph, kind):
        found = wiring(graph, kind)
        self._graph, self._order = graph, found.calls
        self._kinds = [kind for kind, _ in found.form[:-1]]
        self._place = {call.key: i for i, call in enumerate(self._order)}
        self._calls = {}  # of each layer
        for i, call in enumerate(self._order):
            self._calls.setdefault(call.name, []).append(i)
        used = {t.key: t for call in self._order for t in call.inputs}
        used |= {t.key: t for t in graph.outputs}
        self.tensors = {key: t for key, t in used.items() if t.is_float}
        self._users = {
            key: [self._place[call.key] for call in users]
            for key, users in graph.users.items()
        }
        self._find_cuts(used)

    def _find_cuts(self, used):
        """Finds the cut after each call and each tensor; `None` is the model's end."""
        self._after_call, self._after, self._depth = {}, {}, {None: 0}
        ends = {t.key for t in self._graph.outputs}

        def settle(key):
            cuts = [self._after_call[i] for i in self._users[key]]
            self._after[key] = cut = self._meet(cuts + [None] * (key in ends))
            self._depth[key] = self._depth[cut] + 1

        for i, call in reversed(list(enumerate(self._order))):
            made = [tensor.key for tensor in self._graph.made_by(call)]
            for key in made:
                settle(key)
            self._after_call[i] = self._meet(made)
        for key in self._graph.inputs:
            if key in used:
                settle(key)

    def _meet(self, cuts):
        """The first cut that comes after several others, or is the last of them."""
        first, *others = cuts
        for other in others:
            while first != other:
                if self._depth[first] < self._depth[other]:
                    first, other = other, first
                first = self._after[first]
        return first

    def starting_at(self, entry: Key) -> Iterator[Segment]:
        """The segments that begin at a tensor."""
        for group in self._groups(entry):
            segment = self._smallest(entry, group)
            if segment is not None:
                yield segment

    def _groups(self, entry):
        """The sets of calls that use a tensor and whose results come together."""
        users = self._users[entry]
        if len(users) < 2:
            return [users] if users else []
        groups = {}
        for user in users:
            cut = self._after_call[user]
            while cut is not None:
                groups.setdefault(cut, []).append(user)
                cut = self._after[cut]
        return list(dict.fromkeys(map(tuple, groups.values())))

    def _smallest(self, entry, group):
        """The smallest segment that begins with some uses of a tensor."""
        others = [user for user in self._users[entry] if user not in group]
        inside, edge = set(), list(group)
        cut = self._meet([self._after_call[user] for user in group])
        while cut is not None:
            end = self._graph.tensors[cut]
            if end.is_float and end.shape == self.tensors[entry].shape:
                if any(self._reaches(user, cut) for user in others):
                    return None
                self._fill(inside, edge, cut)
                edge = list(self._users[cut])
                lacking = self._lacking(inside)
                if not lacking:
                    return self._segment(entry, cut, inside, group, others)
                if min(lacking) < min(group):
                    return None  # It comes before the entry.
            cut = self._after[cut]
        return None

    def _fill(self, inside, edge, cut):
        """Adds all that is computed from the edge up to a cut."""
        while edge:
            i = edge.pop()
            if i not in inside:
                inside.add(i)
                for tensor in self._graph.made_by(self._order[i]):
                    if tensor.key != cut:
                        edge += self._users[tensor.key]

    def _reaches(self, user, cut):
        """Whether a cut is computed from the result of a call."""
        last = self._place[cut[:2]]
        seen, edge = set(), [user]
        while edge:
            i = edge.pop()
            if i == last:
                return True
            if i < last and i not in seen:
                seen.add(i)
                for tensor in self._graph.made_by(self._order[i]):
                    edge += self._users[tensor.key]
        return False

    def _lacking(self, inside):
        """Further calls of the layers that are called inside."""
        names = {self._order[i].name for i in inside}
        return [i for name in names for i in self._calls[name] if i not in inside]

    def _segment(self, entry, cut, inside, group, others):
        inside = sorted(inside)
        places = {self._order[i].key: n for n, i in enumerate(inside)}
        form = tuple(
            (
                self._kinds[i],
                tuple(
                    "entry" if t.key == entry else (places.get(t.key[:2]), t.key[2])
                    for t in self._order[i].inputs
                ),
            )
            for i in inside
        )
        shared = frozenset(self._order[i].key for i in others)
        return Segment(frozenset(places), entry, cut, form, len(group), shared)
