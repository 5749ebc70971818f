"""Repeating runs of segments in a model's graph, until it is wired as a deeper one."""

import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import keras

from keras_fusion.architecture.segments import Run, calls_of, find
from keras_fusion.architecture.wiring import signature, wiring
from keras_fusion.models.graph import Call, Graph, Key

# More attempts than any sensible pair of models needs.
_MOST_ATTEMPTS = 2000


@dataclasses.dataclass(frozen=True)
class _Copy:
    """One repetition of a run: its calls, on other names and another entry."""

    calls: list[Call]
    names: dict[str, str]
    entry: Key
    source: Key  # what comes in, in the place of the entry

    def made(self, key: Key) -> Key:
        """The copy of a tensor that is made inside."""
        return (self.names[key[0]], *key[1:])

    def moved(self, move: Callable[[Key], Key]) -> Iterator[Call]:
        """Yields the calls; `move` tells what tensors from outside have become."""

        def replacement(key):
            if key == self.entry:
                return self.source
            return self.made(key) if key[0] in self.names else move(key)

        for call in self.calls:
            yield call.moved(self.names[call.name], replacement)


def repeat(
    graph: Graph, choice: Iterable[tuple[Run, int]]
) -> tuple[Graph, dict[str, str]]:
    """A graph in which runs of segments are repeated.

    Args:
        graph: the graph.
        choice: pairs of a run and how many more times it is to come, each time right
            after itself. No two runs have a call in common.

    Returns:
        The graph, and a dict from the name of each new layer to that of the layer that
        it repeats.
    """
    place = {call.key: i for i, call in enumerate(graph.calls)}
    taken = {name for name, *_ in (*place, *graph.inputs)}
    copies: dict[Key, list[_Copy]] = {}  # by the exits of the runs
    ends: dict[Key, Key] = {}
    for run, times in choice:
        entry, last = run[0].entry, run[-1].exit
        inside = [graph.calls[i] for i in sorted(place[key] for key in calls_of(run))]
        copies[last], ends[last] = [], last
        for _ in range(times):
            names = dict.fromkeys(call.name for call in inside)
            names = {name: _free(name, taken) for name in names}
            copies[last].append(_Copy(inside, names, entry, ends[last]))
            ends[last] = copies[last][-1].made(last)

    def move(key: Key) -> Key:
        """The tensor in the place of a run's output: that of its last repetition."""
        return ends.get(key, key)

    behind = {last[:2]: some for last, some in copies.items()}
    calls = []
    for call in graph.calls:
        calls.append(call.moved(call.name, move))
        for copy in behind.get(call.key, ()):
            calls += copy.moved(move)
    outputs = (dataclasses.replace(t, key=move(t.key)) for t in graph.outputs)
    longer = dataclasses.replace(graph, calls=tuple(calls), outputs=tuple(outputs))
    every = itertools.chain.from_iterable(copies.values())
    return longer, {new: name for copy in every for name, new in copy.names.items()}


def _free(name, taken):
    """A name for a copy; copies of copies are numbered on."""
    base = re.sub(r"_copy\d+$", "", name)
    numbered = (f"{base}_copy{number}" for number in itertools.count(1))
    found = next(name for name in numbered if name not in taken)
    taken.add(found)
    return found


class _Kinds:
    """Numbers for what calls compute: equal for calls that compute the same."""

    def __init__(self):
        self._numbers = {}

    def __call__(self, call):
        return self._numbers.setdefault(signature(call), len(self._numbers))


def align(shallow: Graph, deep: Graph) -> list[tuple[str, str, bool]] | None:
    """Finds for each layer of a deeper model the shallower model's that it repeats.

    Args:
        shallow: the graph of a functional or Sequential model.
        deep: the graph of another one.

    Returns:
        List of `(deep layer's name, shallow layer's name, is_new)`, where `is_new` tells
        a repetition; or `None` if no runs of the shallower model, repeated, make the
        deeper one.
    """
    kind = _Kinds()
    target = wiring(deep, kind)
    known = {call.key: kind(call) for call in shallow.calls}
    own = Counter(known.values())
    lacking = Counter(made for made, _ in target.form[:-1])
    if own - lacking or len(shallow.inputs) != len(deep.inputs):
        return None
    lacking -= own
    choices = _choices(lacking, _runs(shallow, lacking, kind) if lacking else [])
    for choice in itertools.islice(choices, _MOST_ATTEMPTS):
        rows = _matched(repeat(shallow, choice), target, known)
        if rows is not None:
            return rows
    return None


def _matched(repeated, target, known):
    """The rows of `align`, if a repetition is wired as wanted."""
    longer, origin = repeated
    found = wiring(longer, lambda c: known[origin.get(c.name, c.name), c.index])
    if found.form != target.form:
        return None
    rows = [
        (call.name, origin.get(like.name, like.name), like.name in origin)
        for call, like in zip(target.calls, found.calls, strict=True)
        if isinstance(call.operation, keras.Layer)
    ]
    return list(dict.fromkeys(rows))


def _runs(graph, lacking, kind):
    """Runs in which there is nothing but what is lacking, the largest first.

    The largest need the fewest repetitions, and parts of a block joined in another order
    are not tried before the whole.
    """
    segments = find(graph, kind)
    following = {segment.entry: segment for segment in segments if segment.uses_up}
    found = []
    for segment in segments:
        chain, content, part = [], Counter(), segment
        while part is not None and part.calls.isdisjoint(segment.shared_with):
            content.update(part.kinds)
            if any(content[kind] > lacking[kind] for kind in part.kinds):
                break
            chain.append(part)
            found.append((content.total(), chain, len(chain)))
            part = following.get(part.exit)
    return sorted(found, key=lambda item: -item[0])


def _choices(lacking, runs, start=0, taken=frozenset()):
    """Yields choices of runs, and how often to repeat them, that make what is lacking."""
    if not lacking:
        yield []
        return
    for i in range(start, len(runs)):
        size, chain, length = runs[i]
        if size > lacking.total():
            continue
        run = tuple(chain[:length])
        calls = calls_of(run)
        if not taken.isdisjoint(calls):
            continue
        content = Counter(kind for segment in run for kind in segment.kinds)
        times = min(lacking[kind] // count for kind, count in content.items())
        for count in range(times, 0, -1):
            used = Counter({kind: n * count for kind, n in content.items()})
            for others in _choices(lacking - used, runs, i + 1, taken | calls):
                yield [(run, count), *others]
