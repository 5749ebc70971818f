"""Blocks found in a graph and repeated: by definition, and against models made by hand."""

import time

import keras
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from keras import layers

from keras_fusion.architecture.repeat import align, repeat
from keras_fusion.architecture.segments import calls_of, find
from keras_fusion.architecture.stacks import stacks
from keras_fusion.architecture.wiring import signature, wiring
from keras_fusion.models import graph as graphs

search = settings(
    max_examples=20, deadline=None, suppress_health_check=list(HealthCheck)
)
LENGTH = 3


def residual(x, kind, post, width, memory=None):
    """A residual block; `post` norms after the sum, `"plain"` adds nothing."""
    h = x if post else layers.LayerNormalization()(x)
    if kind == "attention":
        h = layers.MultiHeadAttention(1, 2)(h, h if memory is None else memory)
    elif kind == "gate":
        h = layers.Multiply()([layers.Dense(width)(h), layers.Dense(width)(h)])
    elif kind == "twice":
        dense = layers.Dense(width)
        h = dense(dense(h))
    elif kind == "mask":
        mask = keras.ops.cast(keras.ops.greater(h, 0), "float32")
        h = layers.Dense(width)(h * mask)
    else:
        h = layers.Dense(width)(layers.Dense(2 * width, activation="relu")(h))
    if kind == "plain":
        return h
    x = x + h
    return layers.LayerNormalization()(x) if post else x


KINDS = ["attention", "gate", "twice", "mask", "dense", "plain"]
block = st.tuples(st.sampled_from(KINDS), st.booleans())
specs = st.fixed_dictionaries(
    {
        "layer": st.lists(block, min_size=1, max_size=2),
        "encoder": st.integers(0, 2),
        "skip": st.booleans(),
        "nested": st.booleans(),
        "head": st.booleans(),
    }
)


def encoder_depth(spec):
    """How deep the encoder is; there is none if nothing attends to it."""
    attends = any(kind == "attention" for kind, _ in spec["layer"])
    return spec["encoder"] if attends and not spec["nested"] else 0


def build(spec, depth, encoder=None, width=2):
    """A functional model of `depth` layers, perhaps behind an encoder."""

    def layer(x, memory=None):
        for kind, post in spec["layer"]:
            x = residual(x, kind, post, width, memory)
        return x

    def called(x, memory):
        if not spec["nested"]:
            return layer(x, memory)
        inner = keras.Input(x.shape[1:])
        return keras.Model(inner, layer(inner))(x)

    encoder = encoder_depth(spec) if encoder is None else encoder
    inputs = [keras.Input((LENGTH, 4), name="x")]
    memory = None
    if encoder:
        inputs.append(keras.Input((LENGTH, width), name="memory"))
        memory = inputs[1]
        for _ in range(encoder):
            memory = layer(memory)
        memory = layers.Dense(width, name="bridge")(memory)
    x = first = layers.Dense(width)(inputs[0])
    for _ in range(depth):
        x = called(x, memory)
    if spec["skip"]:
        x = first + layers.Dense(width)(x)
    outputs = [layers.Dense(5)(layers.LayerNormalization()(x))]
    return keras.Model(inputs, outputs + [layers.Dense(4)(x)] * spec["head"])


def read(*args, **kwargs):
    return graphs.read(build(*args, **kwargs))


def form(graph):
    return wiring(graph).form


def blocks_by_definition(graph):
    """Dict from entry and exit to the calls between, by trying all pairs of tensors."""
    feeding = {c.key: {t.key[:2] for t in c.inputs} for c in graph.calls}
    calls = {c.key: {c.key} for c in graph.calls}  # with all that each depends on
    for call in graph.calls:
        for key in feeding[call.key] & calls.keys():
            calls[call.key] |= calls[key]
    users = {key: {c.key for c in some} for key, some in graph.users.items()}
    ends = {t.key for t in graph.outputs}
    found = {}
    floats = {key: t for key, t in graph.tensors.items() if t.is_float}
    for entry, start in floats.items():
        reached = {key for key in calls if calls[key] & users[entry]}
        for exit_key, end in floats.items():
            inside = reached & calls.get(exit_key[:2], set())
            made = [k for k in graph.tensors if k[:2] in inside and k != exit_key]
            closed = all(users[k] <= inside and k not in ends for k in made)
            names = {name for name, _ in inside}
            whole = all(key in inside for key in calls if key[0] in names)
            if inside and closed and whole and start.shape == end.shape:
                found[entry, exit_key] = inside
    return found


@search
@given(specs, st.integers(1, 3))
def test_segments_are_the_parts_that_all_that_can_be_repeated_is_made_of(spec, depth):
    graph = read(spec, depth)
    segments, blocks = find(graph), blocks_by_definition(graph)
    following = {s.entry: s for s in segments if s.uses_up}
    users = {key: {c.key for c in some} for key, some in graph.users.items()}
    runs = set()
    for segment in segments:
        assert blocks[segment.entry, segment.exit] == segment.calls
        inside = users[segment.entry] & segment.calls
        assert (
            segment.uses
            == len(inside)
            == len(users[segment.entry]) - len(segment.shared_with)
        )
        # No smaller block begins with the same uses.
        assert not any(
            calls < segment.calls and inside <= calls
            for (entry, _), calls in blocks.items()
            if entry == segment.entry
        )
        calls, part = frozenset(), segment
        while part is not None:
            calls |= part.calls
            runs.add((segment.entry, part.exit, calls))
            part = following.get(part.exit)
    for (entry, exit_key), calls in blocks.items():
        assert (entry, exit_key, frozenset(calls)) in runs


def is_sorted(graph):
    """Whether each call comes after those that feed it."""
    made = {key[:2] for key in graph.inputs}
    for call in graph.calls:
        if not {t.key[:2] for t in call.inputs} <= made:
            return False
        made.add(call.key)
    return {t.key[:2] for t in graph.outputs} <= made


@search
@given(specs, st.integers(1, 2), st.integers(1, 2), st.integers(0, 99))
def test_a_repetition_adds_copies_and_nothing_else(spec, depth, times, number):
    graph = read(spec, depth)
    segments = find(graph)
    assume(segments)
    run = (segments[number % len(segments)],)
    longer, origin = repeat(graph, [(run, times)])
    assert is_sorted(longer)
    old = {call.name for call in graph.calls}
    new = [call for call in longer.calls if call.name not in old]
    assert len(longer.calls) - len(new) == len(graph.calls)
    assert len(new) == times * len(run[0].calls)
    assert origin.keys() == {call.name for call in new}
    for call in new:
        assert (origin[call.name], call.index) in run[0].calls
    # The entry is used as often as before, and the exit by the first copy only.
    entry, exit_key = run[0].entry, run[0].exit
    assert longer.consumers(entry) == graph.consumers(entry)
    users = longer.users[exit_key]
    assert len(users) == run[0].uses and all(c.name in origin for c in users)
    assert graphs.functional_class().from_config(longer.config(origin))


residual_specs = specs.filter(
    lambda spec: (
        not spec["skip"]
        and all(kind != "plain" and not post for kind, post in spec["layer"])
    )
)


@search
@given(residual_specs, st.integers(2, 3), st.sampled_from([0, 2, 3]))
def test_stacks_repeated_are_the_model_of_twice_the_depth(spec, depth, encoder):
    encoder *= bool(encoder_depth(spec | {"encoder": 1}))
    # A decoder that ends with its cross-attention is one block of its memory as well.
    assume(not encoder or spec["layer"][-1][0] != "attention")
    graph = read(spec, depth, encoder)
    found = stacks(graph)
    assert len(found) == (1 if encoder == 0 else 2)
    longer, _ = repeat(graph, [(stack.run, 1) for stack in found])
    assert form(longer) == form(read(spec, 2 * depth, 2 * encoder))
    each = [(layer, 1) for stack in found for layer in stack.layers]
    assert form(repeat(graph, each)[0]) == form(longer)


@pytest.mark.core
@search
@given(specs, st.integers(1, 2), st.integers(0, 2), st.integers(0, 1))
def test_any_shallower_model_is_aligned_with_a_deeper_one(spec, depth, more, encoder):
    shallow, more_encoder = read(spec, depth), encoder * bool(encoder_depth(spec))
    deep = read(spec, depth + more, encoder_depth(spec) + more_encoder, width=4)
    rows = align(shallow, deep)
    if rows is None:  # Two streams of blocks that are alike may be refused.
        assert encoder_depth(spec) and (more or more_encoder)
        return
    kinds = {call.name: signature(call) for call in (*shallow.calls, *deep.calls)}
    layer = {c.name for c in deep.calls if isinstance(c.operation, keras.Layer)}
    assert {name for name, *_ in rows} == layer and len(rows) == len(layer)
    kept = [like for _, like, is_new in rows if not is_new]
    own = {c.name for c in shallow.calls if isinstance(c.operation, keras.Layer)}
    assert set(kept) == own and len(kept) == len(own)
    assert {like for _, like, _ in rows} <= own
    assert any(is_new for *_, is_new in rows) == bool(more or more_encoder)
    for name, like, _ in rows:
        assert kinds[name] == kinds[like]
    if more or more_encoder:
        assert align(deep, shallow) is None


def simple(depth=2, **options):
    spec = {"layer": [("dense", False)], "encoder": 0, "skip": False}
    return build(spec | {"nested": False, "head": False} | options, depth)


def test_wiring_knows_no_names_and_no_widths():
    one = form(graphs.read(simple()))
    keras.utils.clear_session()
    spec = {"layer": [("dense", False)], "encoder": 0, "skip": False}
    spec |= {"nested": False, "head": False}
    assert one == form(read(spec, 2, width=6)) == form(graphs.read(simple()))
    assert one != form(graphs.read(simple(3)))
    assert one != form(graphs.read(simple(skip=True)))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda x, y: x - y, lambda x, y: y - x),
        (lambda x, y: x + y, lambda x, y: x - y),
        (lambda x, y: 2.0 * x + y, lambda x, y: 3.0 * x + y),
        (
            lambda x, y: layers.MultiHeadAttention(1, 2)(x, y),
            lambda x, y: layers.MultiHeadAttention(1, 2)(x, y, use_causal_mask=True),
        ),
        (lambda x, y: [x + y, x], lambda x, y: [x, x + y]),
        (
            lambda x, y: keras.Sequential([layers.Dense(2)])(x + y),
            lambda x, y: keras.Sequential([layers.Dense(2), layers.ReLU()])(x + y),
        ),
    ],
    ids=["order", "operation", "constant", "option", "outputs", "nested"],
)
def test_wiring_knows_what_calls_compute_and_how_they_are_joined(one, other):
    def made(function):
        inputs = [keras.Input((3, 2)), keras.Input((3, 2))]
        dense = [layers.Dense(2)(x) for x in inputs]
        return form(graphs.read(keras.Model(inputs, function(*dense))))

    assert made(one) == made(one)
    assert made(one) != made(other)


def test_a_long_skip_does_not_keep_the_first_block_from_being_repeated():
    """As in networks for super-resolution: the input of the body is added to its output."""
    rows = align(graphs.read(simple(1, skip=True)), graphs.read(simple(3, skip=True)))
    assert sum(is_new for *_, is_new in rows) == 2 * 3  # of a norm and two Denses


def test_a_layer_that_is_called_outside_cannot_be_repeated():
    inputs = keras.Input((2,))
    x, dense = inputs, layers.Dense(2)
    for _ in range(3):
        x = x + dense(x)
    graph = graphs.read(keras.Model(inputs, x))
    # All calls together can be, or none.
    names = [[name for name, _ in s.calls].count(dense.name) for s in find(graph)]
    assert sorted(set(names)) == [0, 3]
    (stack,) = stacks(graph)
    assert len(calls_of(stack.run)) == len(graph.calls)


def test_a_model_without_blocks_has_no_stacks():
    inputs = keras.Input((4,))
    x = layers.Dense(3)(layers.Dense(8, activation="relu")(inputs))
    assert stacks(graphs.read(keras.Model(inputs, x))) == []
    assert find(graphs.read(keras.Model(inputs, x))) == []


def test_what_blocks_give_out_is_given_out_by_the_last_copy():
    inputs = keras.Input((2,))
    x = first = layers.Dense(2, name="first")(inputs)
    hidden = []
    for i in range(2):
        x = layers.Add(name=f"add{i}")([x, layers.Dense(2, name=f"dense{i}")(x)])
        hidden.append(x)
    graph = graphs.read(keras.Model(inputs, [first, *hidden]))
    (stack,) = stacks(graph)
    longer, origin = repeat(graph, [(layer, 2) for layer in stack.layers])
    names = [tensor.key[0] for tensor in longer.outputs]
    assert names == ["first", "add0_copy2", "add1_copy2"]
    assert origin["dense1_copy2"] == "dense1"
    order = [call.name for call in longer.calls if "add" in call.name]
    assert order == [f"add{i}{copy}" for i in "01" for copy in ("", "_copy1", "_copy2")]


def test_copies_of_copies_are_numbered_on():
    inputs = keras.Input((2,))
    x = layers.Add(name="sum")([inputs, layers.Dense(2, name="dense")(inputs)])
    model = keras.Model(inputs, layers.Dense(3, name="last")(x))
    for expected in (["", "_copy1"], ["", "_copy1", "_copy2", "_copy3"]):
        graph = graphs.read(model)
        longer, origin = repeat(graph, [(s.run, 1) for s in stacks(graph)])
        model = graphs.functional_class().from_config(longer.config(origin))
        names = {layer.name for layer in model.layers if "dense" in layer.name}
        assert names == {f"dense{end}" for end in expected}


def test_time_grows_with_the_depth_and_not_with_its_square():
    inputs = keras.Input((2,))
    x = layers.Dense(2)(inputs)
    for _ in range(150):
        x = x + layers.Dense(2)(layers.LayerNormalization()(x))
    graph = graphs.read(keras.Model(inputs, layers.Dense(3)(x)))
    start = time.process_time()
    (stack,) = stacks(graph)
    assert len(stack.layers) == 150
    # A hundredth of it is enough; by trying pairs of tensors it would be minutes.
    assert time.process_time() - start < 10
