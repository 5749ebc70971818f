"""Which widths of a functional model may grow, and how the parents lie in them.

A model's inputs and outputs keep their sizes, and so does every width that is tied to
them by an addition, a norm or an activation. All others grow. Two questions are
answered on the graph of the first parent:

- `fixed`: the layers whose output must keep its size (a readout, above all);
- `entries`: for the input of each layer, where each parent's features lie in the
  fused one's. They lie side by side, except after a `Flatten` or a `Concatenate`.
"""

import dataclasses
import math
from collections.abc import Sequence

import keras
import numpy as np

from keras_fusion.architecture.parents import Parents
from keras_fusion.errors import FusionError
from keras_fusion.models import graph as graphs
from keras_fusion.models import host, rules

_FIXED = "fixed"


@dataclasses.dataclass(frozen=True)
class Placement:
    """The places of the parents' features on the last axis of a fused tensor."""

    size: int
    blocks: tuple[np.ndarray, ...]

    @property
    def is_contiguous(self) -> bool:
        """Whether the parents lie side by side, in order, new capacity after them."""
        order = np.concatenate(self.blocks)
        return np.array_equal(order, np.arange(len(order)))


@dataclasses.dataclass
class Widths:
    """The widths that grow, by the id of the first parent's layer.

    Args:
        fixed: layers whose output must keep its size.
        entries: where the parents' features lie in the input of a layer.
        outputs: the same for its output.
        inputs: for a nested model one entry per input, `None` for one that did not
            grow.
        block_norms: whether norms over what grew get one statistic a parent.
        capacity: how much larger than the sum of the parents each width is to be.
        epsilon_divisor: what a joint norm's epsilon is divided by, since new capacity
            starts at zero and lowers what the epsilon is added to.
        overrides: config entries to set, by the layer's id.
        analysed: whether `entries` and `outputs` tell all that grows.
    """

    fixed: set[int] = dataclasses.field(default_factory=set)
    entries: dict[int, Placement] = dataclasses.field(default_factory=dict)
    outputs: dict[int, Placement] = dataclasses.field(default_factory=dict)
    inputs: dict[int, list] = dataclasses.field(default_factory=dict)
    block_norms: bool = False
    capacity: float = 1.0
    epsilon_divisor: float = 1.0
    overrides: dict[int, dict] = dataclasses.field(default_factory=dict)
    analysed: bool = False


def contiguous(sizes: Sequence[int]) -> tuple[np.ndarray, ...]:
    """Blocks of the given sizes, one after the other."""
    ends = np.cumsum(sizes)
    return tuple(
        np.arange(end - size, end) for size, end in zip(sizes, ends, strict=True)
    )


class _Classes:
    """Union-find over tensors: one class for all that must be equally wide.

    Attributes:
        nested: dict from the path of a nested model to its graph.
    """

    def __init__(self):
        self._root = {}
        self.nested = {}

    def find(self, key):
        while self._root.get(key, key) != key:
            key = self._root[key]
        return key

    def tie(self, a, b):
        a, b = self.find(a), self.find(b)
        if _FIXED in (a, b):
            a, b = (b, a) if b == _FIXED else (a, b)
            self._root[b] = a
        elif a != b:
            self._root[b] = a

    def is_fixed(self, key):
        return self.find(key) == _FIXED


def sets_its_width(call: graphs.Call) -> bool:
    """Whether a layer's config, and not its input, says how wide its output is."""
    rule = rules.find(call.operation) if _is_layer(call) else None
    if rule is None:
        return False
    if rule.output_width is not None:
        return call.config.get(rule.output_width) is not None
    return bool(rule.widths) and not call.features


def _is_layer(call):
    return isinstance(call.operation, keras.Layer)


def is_reverse(call: graphs.Call) -> bool:
    """Whether the call is an embedding used backwards, as a readout."""
    # By its attribute: keras-hub had a class of its own before Keras took it over.
    return bool(call.kwargs.get("reverse")) and hasattr(call.operation, "tie_weights")


def _plain_nested(call):
    return _is_layer(call) and graphs.is_plain(call.operation)


def analyse(parents: Parents, capacity: float = 1.0) -> Widths:
    """Finds the widths that may grow, for parents that are plain graph models.

    Args:
        parents: K functional or Sequential models of one architecture.
        capacity: float. How much larger than the sum each width is to be.

    Returns:
        A `Widths`; its keys are the ids of the first parent's layers.

    Raises:
        FusionError: for a layer that cannot stand where its input grows.
    """
    graph = parents.graph
    classes = _Classes()
    pending = []
    _tie(graph, (), classes, pending)
    for key in graph.inputs:
        classes.tie(_FIXED, ((), key))
    for tensor in graph.outputs:
        if tensor.is_float:
            classes.tie(_FIXED, ((), tensor.key))
    _settle(classes, pending)
    widths = Widths(capacity=capacity)
    _place(graph, (), parents.models, classes, {}, widths)
    return widths


def _tie(graph, path, classes, pending):
    """Ties the tensors of a graph that must be equally wide."""
    for call in graph.calls:
        for output in graph.made_by(call):
            key = (path, output.key)
            if is_reverse(call):
                classes.tie(_FIXED, key)
            elif _plain_nested(call):
                _tie_nested(call, output, path, classes, pending)
            elif not sets_its_width(call):
                rule = rules.find(call.operation) if _is_layer(call) else None
                if rule is not None and rule.merge == "concatenate":
                    pending.append((key, [(path, t.key) for t in call.features]))
                    continue
                for tensor in _tied_inputs(call, rule, output):
                    classes.tie((path, tensor.key), key)


def _tied_inputs(call, rule, output):
    """The inputs that are as wide as an output, because it is made of their features."""
    if isinstance(call.operation, keras.layers.Flatten):
        return call.features
    same = [t for t in call.features if t.shape and t.shape[-1] == output.shape[-1]]
    if rule is None or rule.merge == "all":
        return same
    return same[:1]


def _tie_nested(call, output, path, classes, pending):
    inner_path = (*path, call.name)
    if inner_path not in classes.nested:
        classes.nested[inner_path] = graphs.read(call.operation)
    inner = classes.nested[inner_path]
    _tie(inner, inner_path, classes, pending)
    for key, tensor in zip(inner.inputs, call.inputs, strict=True):
        classes.tie((path, tensor.key), (inner_path, key))
    classes.tie((inner_path, inner.outputs[output.key[2]].key), (path, output.key))


def _settle(classes, pending):
    """A joined tensor that must keep its size keeps that of its parts."""
    changed = True
    while changed:
        changed = False
        for output, parts in pending:
            for part in parts:
                if classes.is_fixed(output) and not classes.is_fixed(part):
                    classes.tie(_FIXED, part)
                    changed = True


def _place(graph, path, parents, classes, known, widths):
    """Follows the features through the graph, call by call.

    `known` maps tensors to placements; a tensor that is not in it did not grow.
    """
    siblings, capacity = siblings_of(parents), widths.capacity
    for call in graph.calls:
        placed = [known.get((path, t.key)) for t in call.features]
        layers = siblings.get(id(call.operation)) if _is_layer(call) else None
        entry = placed[0] if placed else None
        if any(placed):
            _check_allowed(call)
        if layers and entry is not None:
            widths.entries[id(layers[0])] = entry
        for output in graph.made_by(call):
            key = (path, output.key)
            if _plain_nested(call):
                known[key] = _place_nested(
                    call, layers, output, path, classes, known, widths
                )
                continue
            fixed = classes.is_fixed(key)
            if fixed and layers and sets_its_width(call) and not is_reverse(call):
                widths.fixed.add(id(layers[0]))
            known[key] = None if fixed else _output(call, layers, placed, capacity)
            if known[key] is not None:
                _check_activation(call)
            if layers and known[key] is not None and not is_reverse(call):
                widths.outputs[id(layers[0])] = known[key]


def _check_allowed(call):
    rule = rules.find(call.operation) if _is_layer(call) else None
    if rule is not None and rule.refuse:
        raise FusionError(
            f"Layer {call.name!r} of class {type(call.operation).__name__} cannot grow: "
            f"{rule.refuse}. Build the bigger model yourself and pass it as `into`."
        )
    if getattr(call.operation, "data_format", None) == "channels_first":
        raise FusionError(
            f"Layer {call.name!r} has data_format='channels_first'; the widths must be "
            "the last axis. Use data_format='channels_last'."
        )


def _check_activation(call):
    """An activation must treat each feature by itself (a softmax does not)."""
    function = getattr(call.operation, "activation", None)
    if not callable(function):
        return
    features = np.linspace(-2.0, 2.0, 12, dtype="float32").reshape(2, 6)
    joint = host.host(function(keras.ops.convert_to_tensor(features)))
    parts = [
        host.host(function(keras.ops.convert_to_tensor(part)))
        for part in np.split(features, 2, axis=-1)
    ]
    if not np.allclose(joint, np.concatenate(parts, axis=-1), atol=1e-5):
        name = getattr(function, "__name__", function)
        raise FusionError(
            f"The activation {name!r} of layer {call.name!r} mixes the features of one "
            "parent with those of another. Use one that treats each feature by itself, "
            "or pass the bigger model as `into`."
        )


def _place_nested(call, layers, output, path, classes, known, widths):
    inner_path = (*path, call.name)
    inner = classes.nested[inner_path]
    placed = [known.get((path, tensor.key)) for tensor in call.inputs]
    widths.inputs[id(layers[0])] = placed
    for key, placement in zip(inner.inputs, placed, strict=True):
        known[(inner_path, key)] = placement
    _place(inner, inner_path, layers, classes, known, widths)
    return known.get((inner_path, inner.outputs[output.key[2]].key))


def _output(call, layers, placed, capacity):
    """The placement of a call's output that may grow."""
    rule = rules.find(call.operation) if _is_layer(call) else None
    if layers and sets_its_width(call):
        return _new_placement(layers, rule, capacity)
    if not any(placed):
        return None
    if rule is not None and rule.merge == "concatenate":
        return _concatenate(call, placed)
    if isinstance(call.operation, keras.layers.Flatten):
        return _flatten(call, placed[0])
    return next(p for p in placed if p)


def _new_placement(layers, rule, capacity):
    """Side by side, as the parents' outputs lie in a layer that sets its own width."""
    if rule.output_width is None:
        shapes = [layer.get_build_config()["input_shape"] for layer in layers]
        pairs = zip(layers, shapes, strict=True)
        sizes = [layer.compute_output_shape(shape)[-1] for layer, shape in pairs]
        return Placement(round(sum(sizes) * capacity), contiguous(sizes))
    configs = [layer.get_config() for layer in layers]
    sizes = [_last(config[rule.output_width]) for config in configs]
    if rule.grow is not None:
        grown = _last(rule.grow(configs * 2, False)[rule.output_width])
        if grown != 2 * sum(sizes):
            return None  # Another axis than the last grew: the heads.
    return Placement(round(sum(sizes) * capacity), contiguous(sizes))


def _last(size):
    return size[-1] if isinstance(size, (list, tuple)) else size


def _concatenate(call, placed):
    count = len(next(p for p in placed if p).blocks)
    if call.config.get("axis", -1) not in (-1, len(call.features[0].shape) - 1):
        return next(p for p in placed if p)
    blocks, offset = [[] for _ in range(count)], 0
    for tensor, part in zip(call.features, placed, strict=True):
        size = part.size if part else tensor.shape[-1]
        for parent in range(count):
            # Features that did not grow are the same rows for every parent.
            local = part.blocks[parent] if part else np.arange(size)
            blocks[parent].append(offset + local)
        offset += size
    return Placement(offset, tuple(np.concatenate(b) for b in blocks))


def _flatten(call, placement):
    positions = call.features[0].shape[1:-1]
    if any(p is None for p in positions):
        raise FusionError(
            f"Layer {call.name!r} flattens axes of unknown length {positions}. Give the "
            "model's Input a full shape, or pool instead of flattening."
        )
    starts = np.arange(math.prod(positions)) * placement.size
    blocks = tuple(
        (starts[:, None] + block[None, :]).ravel() for block in placement.blocks
    )
    return Placement(math.prod(positions) * placement.size, blocks)


def siblings_of(parents: Sequence[keras.Model]) -> dict[int, tuple]:
    """The parents' corresponding layers, by the id of the first parent's."""
    stacks = zip(*(p.layers for p in parents), strict=True)
    return {id(layers[0]): layers for layers in stacks}
