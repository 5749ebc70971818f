"""Aligning the graphs of functional models that differ in how often blocks repeat.

Two models are wired alike if the same operations, called with the same options, are
joined in the same way; widths do not count. A shallower model is aligned with a deeper
one by repeating blocks of its own until both are wired alike.
"""

import dataclasses
from collections import Counter

import keras

from keras_fusion.models import graph as graphs
from keras_fusion.models.block_norms import stock_class
from keras_fusion.models.graph import Call, Graph, Key

# More attempts than any sensible pair of models needs.
_MOST_ATTEMPTS = 2000


@dataclasses.dataclass(frozen=True)
class Wiring:
    """A graph without its names.

    Args:
        calls: the calls from the inputs to the outputs.
        form: what each of them is and which calls feed it, and which are the outputs;
            equal for models that are wired alike.
    """

    calls: tuple[Call, ...]
    form: tuple


@dataclasses.dataclass(frozen=True)
class Block:
    """The calls between two tensors of one shape, as they can be repeated."""

    calls: frozenset[tuple[str, int]]
    entry: Key
    exit: Key
    content: Counter


def wiring(graph: Graph) -> Wiring:
    """The calls of a graph in an order that depends on its wiring only."""
    producers = {(c.name, c.index): c for c in graph.calls}
    places = {key[:2]: ("input", i) for i, key in enumerate(graph.inputs)}
    calls, form = [], []
    stack = [t.key for t in reversed(graph.outputs)]
    while stack:  # depth first; a call comes after those that feed it
        key = stack[-1][:2]
        call = producers.get(key)
        feeding = [t.key for t in call.inputs] if call and key not in places else []
        waiting = [k for k in feeding if k[:2] not in places]
        if waiting:
            stack += reversed(waiting)
            continue
        stack.pop()
        if key not in places:
            places[key] = len(calls)
            calls.append(call)
            fed_by = tuple((places[k[:2]], k[2]) for k in feeding)
            form.append((signature(call), fed_by))
    outputs = tuple((places[t.key[:2]], t.key[2]) for t in graph.outputs)
    return Wiring(tuple(calls), (*form, outputs))


def signature(call: Call) -> tuple:
    """What a call computes, but for widths and weights."""
    operation = call.operation
    if graphs.is_plain(operation):
        kind = wiring(graphs.read(operation)).form
    else:
        kind = (
            operation if isinstance(operation, str) else stock_class(operation).__name__
        )
    return kind, _without_tensors(call.args), _without_tensors(call.kwargs)


def _without_tensors(value):
    if isinstance(value, dict):
        if value.get("class_name") == "__keras_tensor__":
            return "tensor"
        items = sorted(value.items(), key=lambda item: str(item[0]))
        return tuple((str(k), _without_tensors(v)) for k, v in items)
    if isinstance(value, (list, tuple)):
        return tuple(_without_tensors(item) for item in value)
    return repr(value)


def align(shallow: keras.Model, deep: keras.Model) -> list[tuple] | None:
    """Finds for each layer of a deeper model the shallower one's that it repeats.

    Args:
        shallow: a plain functional or Sequential model.
        deep: another one.

    Returns:
        List of `(deep layer's name, shallow layer's name, is_new)`, where `is_new` tells
        a repetition; or `None` if no blocks of the shallower model, repeated, make the
        deeper one.
    """
    graph, target = graphs.read(shallow), wiring(graphs.read(deep))
    missing = Counter(map(signature, target.calls))
    own = Counter(map(signature, wiring(graph).calls))
    if own - missing:
        return None
    lacking = missing - own
    blocks = _blocks(graph) if lacking else []  # Looking for them takes a while.
    found = _Search(target.form).repeat(graph, lacking, blocks)
    if found is None:
        return None
    pairs = zip(target.calls, wiring(found).calls, strict=True)
    rows = [(call.name, *_origin(like.name)) for call, like in pairs if _is_layer(call)]
    return list(dict.fromkeys(rows))


def _is_layer(call):
    return isinstance(call.operation, keras.Layer)


# A name cannot hold this, so what comes before it is the name of the original.
_COPY = "\n"


def _origin(name):
    return name.split(_COPY)[0], _COPY in name


class _Search:
    """Repeats blocks until a graph is wired as wanted."""

    def __init__(self, form):
        self._form = form
        self._attempts = 0

    def repeat(self, graph, missing, blocks):
        """The graph with blocks repeated, or `None`."""
        if not missing:
            self._attempts += 1
            return graph if wiring(graph).form == self._form else None
        for i, block in enumerate(blocks):
            times = min(missing[kind] // n for kind, n in block.content.items())
            for count in range(times, 0, -1):
                if self._attempts > _MOST_ATTEMPTS:
                    return None
                rest = Counter(missing)
                for kind, n in block.content.items():
                    rest[kind] -= n * count
                longer, exit_key = repeated(graph, block, count)
                found = self.repeat(
                    longer, +rest, _others(blocks[i + 1 :], block, exit_key)
                )
                if found is not None:
                    return found
        return None


def _others(blocks, done, exit_key):
    """Blocks that have nothing in common with one that was repeated."""
    return [
        dataclasses.replace(b, entry=exit_key) if b.entry == done.exit else b
        for b in blocks
        if not b.calls & done.calls
    ]


def repeated(graph: Graph, block: Block, times: int) -> tuple[Graph, Key]:
    """A graph in which a block is called some more times, one after the other.

    Returns:
        The graph, and the tensor that comes out of the last repetition.
    """
    inside = [c for c in graph.calls if (c.name, c.index) in block.calls]
    last, copies = block.exit, []
    for number in range(times):
        mark = f"{_COPY}{number}"
        names = {key: (key[0] + mark, key[1]) for key in block.calls}

        def moved(key, names=names, last=last):
            if key == block.entry:
                return last
            return (*names.get(key[:2], key[:2]), key[2])

        copies += [_with_inputs(c, moved, c.name + mark) for c in inside]
        last = (*names[block.exit[:2]], block.exit[2])

    def after(key):
        return last if key == block.exit else key

    rest = [
        c if (c.name, c.index) in block.calls else _with_inputs(c, after, c.name)
        for c in graph.calls
    ]
    outputs = tuple(dataclasses.replace(t, key=after(t.key)) for t in graph.outputs)
    return Graph((*rest, *copies), graph.inputs, outputs), last


def _with_inputs(call, moved, name):
    inputs = tuple(dataclasses.replace(t, key=moved(t.key)) for t in call.inputs)
    return dataclasses.replace(call, name=name, inputs=inputs)


class Cutter:
    """Cuts blocks out of a graph, which can be repeated.

    Nothing inside a block may be used outside but its exit, and no layer inside may be
    called outside.

    Args:
        graph: the graph.

    Attributes:
        order: the calls, in an order that depends on the wiring only.
        kinds: the `signature` of each.
        tensors: dict from the key of each tensor of features to its `Tensor`.
        users: dict from the key to the indices of the calls that use the tensor.
    """

    def __init__(self, graph: Graph):
        self.order = wiring(graph).calls
        self.index = {(c.name, c.index): i for i, c in enumerate(self.order)}
        self.kinds = [signature(call) for call in self.order]
        self.tensors = {t.key: t for c in self.order for t in c.inputs if t.is_float}
        self.tensors |= {t.key: t for t in graph.outputs if t.is_float}
        self.users = {key: set() for key in self.tensors}
        for i, call in enumerate(self.order):
            for t in call.inputs:
                if t.key in self.users:
                    self.users[t.key].add(i)
        self._ends = {t.key for t in graph.outputs}
        self._calls_of = Counter(call.name for call in self.order)
        self._needed = {
            key: _needed(self.order, self.index, self.index[key[:2]])
            for key in self.tensors
            if key[:2] in self.index
        }

    def reached(self, entry: Key) -> set[int]:
        """Indices of the calls that depend on a tensor."""
        return _reached(self.order, self.index, self.users[entry])

    def block(self, entry: Key, exit_key: Key, reached: set[int]) -> Block | None:
        """What lies between two tensors, if it is a block."""
        start, end = self.tensors[entry], self.tensors[exit_key]
        if self.index.get(exit_key[:2]) not in reached or start.shape != end.shape:
            return None
        inside = reached & self._needed[exit_key]
        if not _is_closed(inside, exit_key, self.users, self._ends, self.index):
            return None
        calls = Counter(self.order[i].name for i in inside)
        if any(n != self._calls_of[name] for name, n in calls.items()):
            return None
        keys = frozenset((self.order[i].name, self.order[i].index) for i in inside)
        return Block(keys, entry, exit_key, Counter(self.kinds[i] for i in inside))


def _blocks(graph: Graph) -> list[Block]:
    """All that lies between two tensors of one shape and can be repeated."""
    cutter = Cutter(graph)
    found = []
    for entry in cutter.tensors:
        reached = cutter.reached(entry)
        blocks = (cutter.block(entry, key, reached) for key in cutter.tensors)
        found += [block for block in blocks if block is not None]
    # The largest first: they need the fewest repetitions, and parts of a block joined in
    # another order are not tried before the whole.
    return sorted(found, key=lambda block: -len(block.calls))


def _reached(order, index, first):
    """Indices of the calls that depend on a tensor, given those that use it."""
    reached = set(first)
    for i, call in enumerate(order):
        if any(index.get(t.key[:2]) in reached for t in call.inputs):
            reached.add(i)
    return reached


def _needed(order, index, last):
    """Indices of the calls that a call depends on, itself with them."""
    needed = {last}
    for i in range(last, -1, -1):
        if i in needed:
            feeding = (index.get(t.key[:2]) for t in order[i].inputs)
            needed |= {f for f in feeding if f is not None}
    return needed


def _is_closed(inside, exit_key, users, ends, index):
    return not any(
        key in ends or not using <= inside
        for key, using in users.items()
        if index.get(key[:2]) in inside and key != exit_key
    )
