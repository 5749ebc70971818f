"""The stacks of layers in a functional model: where a chain of segments repeats itself."""

import dataclasses
import itertools

from keras_fusion.architecture.segments import Run, Segment, calls_of, find
from keras_fusion.models.graph import Graph


@dataclasses.dataclass(frozen=True)
class Stack:
    """A stretch of a model that can be repeated.

    Args:
        layers: the repetitions of one pattern of segments.
    """

    layers: tuple[Run, ...]

    @property
    def run(self) -> Run:
        """All segments, in order."""
        return tuple(segment for layer in self.layers for segment in layer)


def stacks(graph: Graph) -> list[Stack]:
    """The stacks of layers of a functional or Sequential model.

    A stack is the stretch of a chain of segments that repeats a pattern. Where it covers
    more, it is the longest row of residual segments, as one layer; a norm may stand
    behind each of them.

    Args:
        graph: the model's graph.

    Returns:
        List of `Stack`s, the largest first; an encoder-decoder model has two. Empty if
        nothing in the model can be repeated.
    """
    candidates = [(calls_of(stack.run), stack) for stack in _candidates(find(graph))]
    candidates.sort(key=lambda pair: (-len(pair[0]), -len(pair[1].layers)))
    found, taken = [], set()
    for calls, stack in candidates:
        # Beside others, one residual segment is no layer (it may be a head's).
        is_layer = not found or len(stack.run) > 1
        if is_layer and taken.isdisjoint(calls):
            found.append(stack)
            taken |= calls
    return found


def _candidates(segments):
    """The best stretches of all chains of segments that use their entries up."""
    links, numbers = {}, {}
    # Backwards, so that what follows a segment is there before it.
    for segment in reversed(segments):
        if segment.uses_up:
            form = numbers.setdefault(segment.form, len(numbers))
            links[segment.entry] = _Link(segment, form, links.get(segment.exit))
    best = (link.best() for link in reversed(links.values()))
    return [
        stretch.stack()
        for stretch in dict.fromkeys(itertools.chain.from_iterable(best))
    ]


@dataclasses.dataclass(frozen=True)
class _Stretch:
    """A part of a chain: so many layers of so many segments, from a link on."""

    link: "_Link"
    length: int
    count: int = 1

    @property
    def size(self):
        """The number of calls."""
        return self.link.sizes[0] - self.link.sizes[self.length * self.count]

    def stack(self):
        """The stretch as a `Stack`."""
        run = tuple(link.segment for link in self.link.links)
        starts = range(0, self.length * self.count, self.length)
        return Stack(tuple(run[i : i + self.length] for i in starts))


class _Link:
    """A segment, the chain that it begins, and the best stretches of that chain."""

    def __init__(self, segment: Segment, form: int, rest: "_Link | None"):
        self.segment, self.form = segment, form
        self.links = (self, *(rest.links if rest else ()))
        # The number of calls from each link to the end of the chain.
        sizes = rest.sizes if rest else (0,)
        self.sizes = (sizes[0] + len(segment.calls), *sizes)
        # How many links in a row equal those that come so many places later.
        before = (*rest.alike, 0) if rest else (0,)
        self.alike = [0] + [
            before[place] + 1 if form == self.links[place].form else 0
            for place in range(1, len(self.links))
        ]
        repetitions = [
            _Stretch(self, length, alike // length + 1)
            for length, alike in enumerate(self.alike)
            if length and alike >= length
        ]
        self.repeated = _largest([*repetitions, rest and rest.repeated])
        self._find_rows(rest)

    def _find_rows(self, rest):
        """The longest rows of residual segments: side by side, and each before a norm."""
        self.row = self.pairs = 0
        if self.segment.is_residual:
            self.row = 1 + (rest.row if rest else 0)
            if rest and not rest.segment.is_residual:
                self.pairs = 1 + (self.links[2].pairs if len(self.links) > 2 else 0)
        row = _Stretch(self, self.row) if self.row else None
        pairs = _Stretch(self, 2 * self.pairs) if self.pairs > 1 else None
        self.longest_row = _largest([row, rest and rest.longest_row])
        self.longest_pairs = _largest([pairs, rest and rest.longest_pairs])

    def best(self) -> list[_Stretch]:
        """The largest stretch that repeats itself, and the largest row."""
        row = _largest([self.longest_row, self.longest_pairs])
        return [stretch for stretch in (self.repeated, row) if stretch]


def _largest(stretches):
    """The largest of those that there are; the first, where two are equally large."""
    found = [stretch for stretch in stretches if stretch]
    return max(found, key=lambda stretch: stretch.size, default=None)
