"""Which widths of a functional model may grow, and where the parents' features lie then.

All goes through `study`: what `widths.analyse` found, by the names of layers.
"""

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keras import layers
from models import perturbed

from keras_fusion import FusionError, fuse
from keras_fusion.architecture import widths
from keras_fusion.architecture.parents import Parents
from keras_fusion.models import tree

search = settings(
    max_examples=20, deadline=None, suppress_health_check=list(HealthCheck)
)


class Study:
    """What was found about parents that a function makes of widths."""

    def __init__(self, make, sizes=(4, 4), capacity=1.0):
        parents = [make(size) for size in sizes]
        self.found = widths.analyse(Parents.of(parents), capacity)
        self.layers = {layer.name: layer for _, layer in tree.walk(parents[0])}
        by_id = {id(layer): name for name, layer in self.layers.items()}
        self.fixed = {by_id[key] for key in self.found.fixed}
        self.grown = {by_id[key] for key in self.found.outputs}

    def entry(self, name):
        """The size of what goes into a layer, and each parent's places in it."""
        return self._placed(self.found.entries.get(id(self.layers[name])))

    def output(self, name):
        """The same for what comes out."""
        return self._placed(self.found.outputs.get(id(self.layers[name])))

    @staticmethod
    def _placed(placement):
        if placement is None:
            return None
        return placement.size, *([int(i) for i in b] for b in placement.blocks)


def dense(x, units, name, **options):
    return layers.Dense(units, name=name, **options)(x)


def ranges(*sizes):
    """Places side by side."""
    ends = np.cumsum(sizes)
    return [list(range(e - s, e)) for s, e in zip(sizes, ends, strict=True)]


# What may grow, and what is fixed.


def perceptron(width):
    inputs = keras.Input((3,))
    x = dense(inputs, width, "hidden", activation="relu")
    return keras.Model(inputs, dense(x, 2, "readout"))


def residual(width):
    inputs = keras.Input((3,))
    x = dense(inputs, width, "first")
    x = x + dense(dense(x, 2 * width, "up"), width, "down")
    x = layers.LayerNormalization(name="norm")(x)
    return keras.Model(inputs, dense(x, 2, "readout"))


def around_the_input(width):
    """A residual stream that begins with the input keeps its size."""
    inputs = keras.Input((3,))
    x = inputs + dense(dense(inputs, width, "up"), 3, "down")
    return keras.Model(inputs, dense(x, 2, "readout"))


def into_the_output(width):
    """What is added to an output is as wide as the output."""
    inputs = keras.Input((3,))
    x = dense(inputs, width, "hidden")
    skip = layers.LayerNormalization(name="norm")(dense(inputs, 2, "skip"))
    return keras.Model(inputs, dense(x, 2, "readout") + skip)


def hidden_as_output(width):
    inputs = keras.Input((3,))
    x = dense(inputs, 5, "first")
    y = dense(layers.ReLU()(x), width, "second")
    return keras.Model(inputs, [dense(y, 2, "readout"), x])


def tied(width):
    ids = keras.Input((4,), dtype="int32")
    embedding = layers.ReversibleEmbedding(7, width, name="embedding")
    x = layers.LayerNormalization(name="norm")(embedding(ids))
    return keras.Model(ids, embedding(x, reverse=True))


def joined_output(width):
    """A concatenation that is an output fixes its parts."""
    inputs = keras.Input((3,))
    x = dense(inputs, width, "hidden")
    parts = [dense(x, 2, "a"), layers.ReLU()(dense(x, 3, "b"))]
    return keras.Model(inputs, layers.Concatenate()(parts))


def attention(width):
    inputs = keras.Input((5, 3))
    x = dense(inputs, width, "first")
    x = x + layers.MultiHeadAttention(width // 2, 2, name="attention")(x, x)
    return keras.Model(inputs, dense(x, 2, "readout"))


@pytest.mark.parametrize(
    ("make", "grown", "fixed"),
    [
        (perceptron, {"hidden"}, {"readout"}),
        (residual, {"first", "up", "down", "norm"}, {"readout"}),
        (around_the_input, {"up"}, {"down", "readout"}),
        (into_the_output, {"hidden"}, {"readout", "skip"}),
        (hidden_as_output, {"second"}, {"readout", "first"}),
        (tied, {"embedding", "norm"}, set()),
        (joined_output, {"hidden"}, {"a", "b"}),
        (attention, {"first", "attention"}, {"readout"}),
    ],
)
def test_what_grows_and_what_keeps_its_size(make, grown, fixed):
    study = Study(make)
    assert study.fixed == fixed
    assert {name for name in study.grown if "re_lu" not in name} == grown


# Where the parents lie.


@search
@given(st.lists(st.sampled_from([2, 4, 6]), min_size=1, max_size=4))
def test_parents_lie_side_by_side(sizes):
    study = Study(residual, sizes)
    doubled = [2 * size for size in sizes]
    assert study.entry("first") is None  # the model's input did not grow
    assert study.output("first") == (sum(sizes), *ranges(*sizes))
    assert study.entry("up") == (sum(sizes), *ranges(*sizes))
    assert study.entry("down") == (sum(doubled), *ranges(*doubled))
    assert study.entry("norm") == study.entry("readout") == study.entry("up")
    assert study.output("readout") is None


@pytest.mark.parametrize("capacity", [1.5, 2.0])
def test_new_capacity_lies_behind_the_parents(capacity):
    study = Study(residual, (4, 8), capacity)
    assert study.entry("up") == (12 * capacity, *ranges(4, 8))
    assert study.entry("down") == (24 * capacity, *ranges(8, 16))


def test_the_parents_alternate_behind_a_flatten():
    """A position's features stay together, so each parent has some in every position."""

    def make(width):
        inputs = keras.Input((3, 2))
        x = layers.Flatten(name="flat")(dense(inputs, width, "first"))
        return keras.Model(inputs, dense(x, 2, "readout"))

    size, one, other = Study(make, (1, 2)).entry("readout")
    assert (size, one, other) == (9, [0, 3, 6], [1, 2, 4, 5, 7, 8])
    size, one, other = Study(make, (1, 2), capacity=2.0).entry("readout")
    assert (size, one, other) == (18, [0, 6, 12], [1, 2, 7, 8, 13, 14])


def concatenated(width):
    inputs = keras.Input((2,))
    x, y = dense(inputs, width, "x"), dense(inputs, 2 * width, "y")
    x = layers.Concatenate(name="joined")([x, inputs, y])
    return keras.Model(inputs, dense(dense(x, 3, "last"), 2, "readout"))


def test_each_part_of_a_concatenation_holds_all_parents():
    """What did not grow is the same rows for every parent."""
    size, one, other = Study(concatenated, (1, 2)).entry("last")
    assert size == 3 + 2 + 6
    assert one == [0] + [3, 4] + [5, 6]
    assert other == [1, 2] + [3, 4] + [7, 8, 9, 10]


def test_a_concatenation_along_another_axis_joins_no_features():
    def make(width):
        inputs = keras.Input((3, 2))
        x = [dense(inputs, width, "x"), dense(inputs, width, "y")]
        x = layers.Concatenate(axis=1)(x)
        return keras.Model(inputs, dense(x, 2, "readout"))

    assert Study(make, (1, 2)).entry("readout") == (3, *ranges(1, 2))


def test_a_flatten_behind_a_concatenation():
    def make(width):
        inputs = keras.Input((2, 1))
        x = layers.Concatenate()([inputs, dense(inputs, width, "x")])
        return keras.Model(inputs, dense(layers.Flatten()(x), 2, "readout"))

    # Positions of [input, parent 0, parent 1, parent 1].
    size, one, other = Study(make, (1, 2)).entry("readout")
    assert (size, one, other) == (8, [0, 1, 4, 5], [0, 2, 3, 4, 6, 7])


@search
@given(st.lists(st.integers(1, 3), min_size=2, max_size=3), st.booleans())
def test_parents_share_no_places_but_those_that_did_not_grow(sizes, flatten):
    def make(width):
        inputs = keras.Input((2, 2))
        x = layers.Concatenate()([dense(inputs, width, "x"), inputs])
        x = layers.Flatten()(x) if flatten else x
        return keras.Model(inputs, dense(x, 2, "readout"))

    size, *blocks = Study(make, sizes).entry("readout")
    positions = 2 if flatten else 1
    assert [len(b) for b in blocks] == [positions * (width + 2) for width in sizes]
    shared = set.intersection(*map(set, blocks))
    assert len(shared) == positions * 2  # the model's inputs
    own = [i for block in blocks for i in block if i not in shared]
    assert sorted([*own, *shared]) == list(range(size))
    assert all(block == sorted(block) for block in blocks)


def test_only_parents_side_by_side_are_contiguous():
    blocks = widths.contiguous([2, 1])
    assert [list(b) for b in blocks] == [[0, 1], [2]]
    assert widths.Placement(4, blocks).is_contiguous  # with new capacity
    alternating = (np.array([0, 2]), np.array([1, 3]))
    assert not widths.Placement(4, alternating).is_contiguous
    assert not widths.Placement(3, blocks[::-1]).is_contiguous


# Nested models.


def nested(width, body=None):
    inner = keras.Input((width,), name="inner_in")
    x = dense(inner, 2 * width, "up", activation="relu")
    x = inner + dense(x, width, "down")
    model = keras.Model(inner, x, name="nested")
    inputs = keras.Input((3,))
    x = model(model(dense(inputs, width, "first")))
    return keras.Model(inputs, dense(x, 2, "readout"))


def test_layers_of_a_nested_model_are_found_with_the_widths_around_it():
    study = Study(nested, (2, 3))
    assert study.fixed == {"readout"}
    assert study.entry("up") == study.output("first") == (5, *ranges(2, 3))
    assert study.entry("down") == (10, *ranges(4, 6))
    assert study.entry("readout") == (5, *ranges(2, 3))
    (placement,) = study.found.inputs[id(study.layers["nested"])]
    assert study._placed(placement) == (5, *ranges(2, 3))


def test_a_nested_model_between_input_and_output_keeps_both_sizes():
    def make(width):
        inner = keras.Input((3,))
        x = inner + dense(dense(inner, width, "up"), 3, "down")
        body = keras.Model(inner, x, name="nested")
        inputs = keras.Input((3,))
        return keras.Model(inputs, dense(body(inputs), 2, "readout"))

    study = Study(make, (2, 3))
    assert study.fixed == {"down", "readout"}
    assert study.entry("down") == (5, *ranges(2, 3))
    assert study.found.inputs[id(study.layers["nested"])] == [None]


def test_a_nested_model_with_several_inputs_and_outputs():
    def make(width):
        a, b = keras.Input((width,)), keras.Input((3,))
        outs = [dense(a, 2 * width, "a"), dense(b, 3, "b")]
        body = keras.Model([a, b], outs, name="nested")
        inputs = keras.Input((3,))
        x, y = body([dense(inputs, width, "first"), inputs])
        return keras.Model(inputs, [dense(x, 2, "readout"), y])

    study = Study(make, (2, 3))
    assert study.fixed == {"b", "readout"}
    assert study.entry("readout") == (10, *ranges(4, 6))
    grown, kept = study.found.inputs[id(study.layers["nested"])]
    assert kept is None and study._placed(grown) == (5, *ranges(2, 3))


def test_a_nested_model_that_makes_the_output():
    """Its readout is fixed from outside."""

    def make(width):
        inner = keras.Input((width,))
        x = dense(dense(inner, width, "hidden", activation="relu"), 2, "readout")
        head = keras.Model(inner, x, name="head")
        inputs = keras.Input((3,))
        return keras.Model(inputs, head(dense(inputs, width, "first")))

    study = Study(make, (2, 3))
    assert study.fixed == {"readout"}
    assert study.entry("readout") == (5, *ranges(2, 3))
    model = perturbed(make(4))
    x = np.ones((2, 3), "float32")
    fused = fuse([model, perturbed(make(2))])
    assert fused.output_shape == (None, 2)
    np.testing.assert_allclose(fuse(model, factor=2)(x), model(x), rtol=1e-4)


# Refusals.


def refused(layer, shape=(4, 3)):
    def make(width):
        inputs = keras.Input(shape)
        x = layer()(dense(inputs, width, "first"))
        return keras.Model(inputs, dense(x, 2, "readout"))

    return make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            refused(lambda: layers.Softmax(name="mixing")),
            "'mixing' of class Softmax cannot grow: it mixes the features",
        ),
        (
            refused(lambda: layers.Dense(2, activation="softmax", name="mixing")),
            "'softmax' of layer 'mixing' mixes the features",
        ),
        (
            refused(
                lambda: layers.Conv1D(4, 1, data_format="channels_first", name="c")
            ),
            "'c' has data_format='channels_first'",
        ),
        (
            refused(lambda: layers.Reshape((-1, 2), name="shape")),
            "'shape' of class Reshape cannot grow: its target shape holds",
        ),
    ],
    ids=["layer", "activation", "channels_first", "reshape"],
)
def test_what_cannot_stand_where_its_input_grows_is_refused(make, message):
    with pytest.raises(FusionError, match=message):
        Study(make)


def test_what_does_not_grow_may_be_anything():
    inputs = keras.Input((4, 3))
    x = layers.Softmax(name="before")(inputs)
    x = dense(x, 4, "hidden")
    model = keras.Model(inputs, layers.Softmax()(dense(x, 2, "readout")))
    found = widths.analyse(Parents.of([model, model]))
    assert id(model.get_layer("readout")) in found.fixed
    assert id(model.get_layer("hidden")) in found.outputs


def test_a_flatten_of_unknown_length_is_refused():
    def make(width):
        inputs = keras.Input((None, 3))
        x = layers.Flatten(name="flat")(dense(inputs, width, "first"))
        x = keras.ops.sum(x, axis=-1, keepdims=True)
        return keras.Model(inputs, dense(x, 2, "readout"))

    with pytest.raises(FusionError, match=r"'flat' flattens axes of unknown .*None"):
        Study(make)
