"""A functional model's graph: read from its config, indexed, and written back."""

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keras import layers
from models import bert, numpy, perturbed, subclassed

from keras_fusion.models import graph as graphs

search = settings(
    max_examples=15, deadline=None, suppress_health_check=list(HealthCheck)
)

# Random graphs: each step joins or transforms tensors that are there already.
steps = st.lists(
    st.tuples(
        st.sampled_from(["dense", "shared", "add", "operation", "attention", "cast"]),
        st.integers(0, 9),
        st.integers(0, 9),
    ),
    max_size=8,
)


def model_of(steps):
    """A functional model of random wiring, with ids and features among its tensors."""
    keras.utils.set_random_seed(0)
    shared = layers.Dense(4)
    inputs = {"b": keras.Input((3, 4), name="b"), "a": keras.Input((3, 4), name="a")}
    tensors = list(inputs.values())
    for kind, i, j in steps:
        x, y = tensors[i % len(tensors)], tensors[j % len(tensors)]
        if kind == "dense":
            tensors.append(layers.Dense(4)(x))
        elif kind == "shared":
            tensors.append(shared(x))
        elif kind == "add":
            tensors.append(layers.Add()([x, y]))
        elif kind == "operation":
            tensors.append(x * 2.0 - y)
        elif kind == "attention":
            tensors.append(layers.MultiHeadAttention(1, 4)(x, value=y))
        else:
            tensors.append(keras.ops.cast(keras.ops.cast(x, "int32"), "float32"))
    joined = layers.Add()([tensors[-1], *inputs.values()])
    return keras.Model(inputs, {"y": layers.Dense(2)(joined), "x": tensors[-1]})


def batch(model):
    rng = np.random.default_rng(0)
    return {x.name: rng.normal(size=(2, *x.shape[1:])) for x in model.inputs}


def flat(model, x):
    """Outputs as a flat list; in the order of Keras's, whatever their structure."""
    x = keras.tree.map_structure(lambda a: keras.ops.cast(a, "float32"), x)
    return [numpy(y) for y in keras.tree.flatten(model(x))]


@search
@given(steps)
def test_calls_come_after_those_that_feed_them(steps):
    graph = graphs.read(model_of(steps))
    made = {key[:2] for key in graph.inputs}
    for call in graph.calls:
        assert {t.key[:2] for t in call.inputs} <= made
        made.add(call.key)
    assert {t.key[:2] for t in graph.outputs} <= made
    assert len(made) == len(graph.calls) + len(graph.inputs)


@search
@given(steps)
def test_the_index_tells_what_a_search_through_all_calls_tells(steps):
    graph = graphs.read(model_of(steps))
    uses = [t.key for call in graph.calls for t in call.inputs]
    ends = [t.key for t in graph.outputs]
    assert set(graph.tensors) == {*uses, *ends}
    for key in graph.tensors:
        makers = [call for call in graph.calls if call.key == key[:2]]
        assert graph.producer(key) is (makers[0] if makers else None)
        assert (graph.producer(key) is None) == (key in graph.inputs)
        assert graph.consumers(key) == uses.count(key) + ends.count(key)
        users = [c for c in graph.calls if key in [t.key for t in c.inputs]]
        assert [c.key for c in graph.users[key]] == [c.key for c in users]
    for call in graph.calls:
        made = [t for t in graph.tensors.values() if t.key[:2] == call.key]
        assert list(graph.made_by(call)) == made
    assert graph.consumers(("nothing", 0, 0)) == 0


@pytest.mark.core
@search
@given(steps)
def test_the_config_of_a_graph_makes_the_model_again(steps):
    model = perturbed(model_of(steps))
    graph = graphs.read(model)
    again = graphs.functional_class().from_config(graph.config())
    assert graphs.read(again).config() == graph.config()
    again.set_weights(model.get_weights())
    x = batch(model)
    inputs = [x[tensor.name] for tensor in model.inputs]  # a flat list, now
    for a, b in zip(flat(model, x), flat(again, inputs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_call_is_moved_to_other_tensors_in_all_its_arguments():
    inputs = keras.Input((3, 4), name="in")
    memory = layers.Dense(4, name="memory")(inputs)
    layer = layers.MultiHeadAttention(1, 4, name="attention")
    model = keras.Model(inputs, layer(inputs, value=memory, use_causal_mask=True))
    call = graphs.read(model).calls[-1]
    assert [t.key for t in call.inputs] == [("in", 0, 0), ("memory", 0, 0)]
    moved = call.moved("copy", lambda key: (key[0] + "2", 1, 0))
    assert moved.key == ("copy", 0) and moved.operation is layer
    assert [t.key for t in moved.inputs] == [("in2", 1, 0), ("memory2", 1, 0)]
    assert [t.shape for t in moved.inputs] == [t.shape for t in call.inputs]
    serialized = [moved.args[0], moved.kwargs["value"]]
    histories = [s["config"]["keras_history"] for s in serialized]
    assert histories == [["in2", 1, 0], ["memory2", 1, 0]]
    assert moved.kwargs["use_causal_mask"] is True
    assert call.kwargs["value"]["config"]["keras_history"] == ["memory", 0, 0]


@pytest.mark.parametrize("kind", ["functional", "sequential", "both"])
def test_the_output_of_a_nested_model_is_made_by_its_call(kind):
    """Keras counts a functional model's own node there, and nowhere else in a config."""

    def nested():
        inner = keras.Input((4,))
        return keras.Model(inner, layers.Dense(4)(inner))

    chain = keras.Sequential([keras.Input((4,)), layers.Dense(4)])
    inputs = keras.Input((4,))
    x, body = inputs, nested()
    for part in [body] * (kind != "sequential") + [chain] * (kind != "functional"):
        x = part(part(x))
    model = keras.Model(inputs, [x, layers.Dense(2)(x)])
    graph = graphs.read(model)
    for tensor in graph.outputs:
        assert graph.producer(tensor.key) is not None
    assert graph.consumers(graph.outputs[0].key) == 2
    again = graphs.functional_class().from_config(graph.config())
    again.set_weights(model.get_weights())
    x = np.ones((1, 4), "float32")
    np.testing.assert_allclose(flat(model, x)[1], flat(again, x)[1], rtol=1e-5)


def test_copies_of_layers_are_written_under_their_own_names():
    inputs = keras.Input((4,), name="in")
    model = keras.Model(inputs, layers.Dense(4, name="a", activation="relu")(inputs))
    graph = graphs.read(model)
    copy = graph.calls[0].moved("b", lambda key: ("a", 0, 0))
    longer = graphs.Graph(
        (*graph.calls, copy),
        graph.inputs,
        (graphs.Tensor(("b", 0, 0), (None, 4), "float32"),),
        graph.serialized,
    )
    made = graphs.functional_class().from_config(longer.config({"b": "a"}))
    assert [layer.name for layer in made.layers] == ["in", "a", "b"]
    assert made.layers[2].activation is keras.activations.relu


def test_plain_models_have_no_class_of_their_own():
    inputs = keras.Input((4,))
    functional = keras.Model(inputs, layers.Dense(2)(inputs))
    assert graphs.is_plain(functional)
    assert graphs.is_plain(keras.Sequential([keras.Input((4,)), layers.Dense(2)]))
    for other in (
        subclassed(),
        bert().backbone,  # functional, of a class with a config of its own
        keras.Sequential([layers.Dense(2)]),  # not built
        layers.Dense(2),
        "Add",
    ):
        assert not graphs.is_plain(other)
    assert graphs.is_graph_model(bert().backbone)
    assert not graphs.is_graph_model(subclassed())


def test_looking_at_a_model_does_not_move_the_numbers_of_names_on():
    def names(look):
        keras.utils.clear_session()
        graphs.functional_class.cache_clear()
        model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
        if look:
            assert graphs.is_plain(model)
            graphs.read(model)
        inputs = keras.Input((4,))
        later = keras.Model(inputs, layers.Dense(2)(inputs))
        return [later.name, *(layer.name for layer in later.layers)]

    assert names(look=True) == names(look=False)


def test_only_floating_point_tensors_hold_features():
    ids = keras.Input((3,), dtype="int32")
    x = layers.Embedding(5, 4)(ids)
    model = keras.Model(ids, layers.Dense(2)(x))
    embedding, dense = graphs.read(model).calls
    assert embedding.features == () and embedding.inputs[0].dtype == "int32"
    assert dense.features == dense.inputs
    half = graphs.Tensor(("x", 0, 0), (None, 4), "bfloat16")
    assert half.is_float


def test_outputs_keep_the_order_of_the_models():
    inputs = [keras.Input((n,)) for n in (2, 3)]
    heads = {"z": layers.Dense(1)(inputs[0]), "a": layers.Dense(5)(inputs[1])}
    model = keras.Model(inputs, heads)
    graph = graphs.read(model)
    assert [t.shape for t in graph.outputs] == [tuple(t.shape) for t in model.outputs]
