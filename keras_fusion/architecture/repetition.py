"""Where a functional model repeats itself, and the same model with more repetitions.

A deep network is a chain of residual blocks: tensors of one shape through which all has to
pass, and between each two of them a segment. The stretch of the chain in which a pattern
of segments comes again and again is the stack of layers; where there is one layer only,
it is the longest row of residual segments, with a norm behind each if they stand so.
"""

import copy
import dataclasses
import re

import keras

from keras_fusion.architecture.alignment import Block, Cutter
from keras_fusion.models import graph as graphs
from keras_fusion.models.graph import Key


@dataclasses.dataclass(frozen=True)
class Stack:
    """A stretch of a model that can be repeated.

    Args:
        layers: list of the repeated patterns, each a list of segments.
    """

    layers: tuple[tuple[Block, ...], ...]

    @property
    def calls(self) -> frozenset:
        """All calls in the stretch."""
        return frozenset().union(*(s.calls for layer in self.layers for s in layer))


def stacks(model: keras.Model) -> list[Stack]:
    """The stacks of layers of a plain functional or Sequential model.

    Args:
        model: a built model.

    Returns:
        List of `Stack`s, the largest first; an encoder-decoder model has two. Empty if
        nothing in the model can be repeated.
    """
    cutter = Cutter(graphs.read(model))
    segments = {key: _segment(cutter, key) for key in cutter.tensors}
    segments = {key: segment for key, segment in segments.items() if segment}
    forms = {key: _form(cutter, segment) for key, segment in segments.items()}
    candidates = []
    for start in segments:
        chain = _chain(segments, start)
        candidates += [_repeated(chain, forms), _residual(chain, cutter)]
    candidates = [stack for stack in candidates if stack is not None]
    candidates.sort(key=lambda s: (-len(s.calls), -len(s.layers)))
    found = []
    for stack in candidates:
        # Beside others, one residual segment is no layer (it may be a head's).
        is_layer = not found or len(stack.layers) > 1 or len(stack.layers[0]) > 1
        if is_layer and all(not stack.calls & other.calls for other in found):
            found.append(stack)
    return found


def _segment(cutter, entry):
    """The smallest block from a tensor on that uses the tensor up."""
    reached = cutter.reached(entry)
    places = sorted(
        (cutter.index[key[:2]], key)
        for key in cutter.tensors
        if cutter.index.get(key[:2]) in reached
    )
    for _, exit_key in places:
        block = cutter.block(entry, exit_key, reached)
        if block is not None:
            inside = {cutter.index[call] for call in block.calls}
            if cutter.users[entry] <= inside:
                return block
    return None


def _form(cutter, segment):
    """What a segment computes, without its names."""
    inside = sorted(cutter.index[call] for call in segment.calls)
    places = {i: n for n, i in enumerate(inside)}
    form = []
    for i in inside:
        fed_by = tuple(
            "entry"
            if t.key == segment.entry
            else (places.get(cutter.index.get(t.key[:2])), t.key[2])
            for t in cutter.order[i].inputs
        )
        form.append((cutter.kinds[i], fed_by))
    return tuple(form)


def _chain(segments, start):
    chain = []
    while start in segments:
        chain.append(segments[start])
        start = chain[-1].exit
    return chain


def _repeated(chain, forms):
    """The stretch of a chain in which a pattern comes again and covers most."""
    forms = [forms[segment.entry] for segment in chain]
    best, most = None, 0
    for start in range(len(chain)):
        for period in range(1, (len(chain) - start) // 2 + 1):
            pattern, count = forms[start : start + period], 1
            while forms[start + count * period :][:period] == pattern:
                count += 1
            stretch = chain[start : start + count * period]
            covered = sum(len(segment.calls) for segment in stretch)
            if count > 1 and covered > most:
                best, most = (start, period, count), covered
    if best is None:
        return None
    start, period, count = best
    starts = range(start, start + count * period, period)
    return Stack(tuple(tuple(chain[i : i + period]) for i in starts))


def _residual(chain, cutter):
    """The longest row of residual segments, as one layer."""
    kinds = "".join("R" if len(cutter.users[s.entry]) > 1 else "." for s in chain)
    # Norms before the residual segments, or after each.
    found = [m for form in (r"R+", r"(?:R\.){2,}") for m in re.finditer(form, kinds)]
    rows = [chain[m.start() : m.end()] for m in found]
    row = max(rows, key=lambda r: sum(len(s.calls) for s in r), default=())
    return Stack((tuple(row),)) if row else None


# The deeper model.


def repeated(
    model: keras.Model, rows: list[tuple[Block, ...]], times: int
) -> tuple[dict, dict[str, str]]:
    """The config of a model in which rows of segments are called some more times.

    Args:
        model: a plain functional or Sequential model.
        rows: what is repeated, each as a whole and after itself.
        times: int. How many more times.

    Returns:
        The functional model's config, and a dict from the name of each new layer to that
        of the layer that it repeats.
    """
    config = graphs.as_functional(model).get_config()
    entries = {entry["name"]: entry for entry in config["layers"]}
    origin, moved = {}, {}
    for row in rows:
        first, last = row[0].entry, row[-1].exit
        names = {name for segment in row for name, _ in segment.calls}
        # What an earlier row gives out is now the last repetition's.
        first = moved.get(first, first)
        end = last
        for _ in range(times):
            new = {name: _free(name, entries) for name in sorted(names)}
            for name, other in new.items():
                entry = _renamed(copy.deepcopy(entries[name]), new, first, end)
                entry["name"] = entry["config"]["name"] = other
                entries[other] = entry
                origin[other] = name
            end = (new[last[0]], *last[1:])
        inside = names | {name for name, like in origin.items() if like in names}
        for name, entry in entries.items():
            if name not in inside:
                _redirect(entry["inbound_nodes"], last, end)
        moved[last] = end
    config["layers"] = list(entries.values())
    for last, end in moved.items():
        config["output_layers"] = _output(config["output_layers"], last, end)
    return config, origin


def _free(name, used):
    base, number = re.sub(r"_copy\d+$", "", name), 1
    while f"{base}_copy{number}" in used:
        number += 1
    used[f"{base}_copy{number}"] = None
    return f"{base}_copy{number}"


def _tensors(value):
    """The configs of all symbolic tensors in nested arguments."""
    if isinstance(value, dict):
        if value.get("class_name") == "__keras_tensor__":
            yield value["config"]
        else:
            for item in value.values():
                yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _renamed(entry, names, first: Key, end: Key):
    for tensor in _tensors(entry["inbound_nodes"]):
        name, node, output = tensor["keras_history"]
        if (name, node, output) == first:
            tensor["keras_history"] = list(end)
        elif name in names:
            tensor["keras_history"] = [names[name], node, output]
    return entry


def _redirect(nodes, old: Key, new: Key):
    for tensor in _tensors(nodes):
        if tuple(tensor["keras_history"]) == old:
            tensor["keras_history"] = list(new)


def _output(value, old: Key, new: Key):
    """The model's outputs, nested as they are, with one tensor in place of another."""
    if isinstance(value, dict):
        return {name: _output(item, old, new) for name, item in value.items()}
    if len(value) == 3 and isinstance(value[0], str):
        return list(new) if tuple(value) == old else value
    return [_output(item, old, new) for item in value]
