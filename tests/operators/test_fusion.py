"""`fuse`: what the fused model computes, and that it is a model of its own."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers
from models import (
    KINDS,
    LENGTH,
    VOCABULARY,
    Subclassed,
    data_for,
    functional,
    gpt2,
    mean_of,
    norm_free,
    numpy,
    outputs,
    perturbed,
    relative_change,
    subclassed,
    t5,
    values,
)

from keras_fusion import FusionOperator, fuse
from keras_fusion.models import tree


def assert_exact(model, x, factor=2):
    before = outputs(model, x)
    for mode in ("zeros", "paired"):
        fused = fuse(model, factor=factor, off_diagonal=mode, seed=0)
        assert relative_change(before, outputs(fused, x)) < 1e-5, mode
    return fused


@pytest.mark.core("functional", "subclassed", "t5", "gpt2")
@pytest.mark.parametrize("kind", KINDS)
def test_self_fusion_keeps_the_function(kind):
    model = perturbed(KINDS[kind]())
    x, _ = data_for(kind, 4)
    fused = assert_exact(model, x)
    assert type(fused) is type(model)
    assert fused.count_params() > 1.5 * model.count_params()


@pytest.mark.core("widths1")
@pytest.mark.parametrize("widths", [(32, 32), (32, 48), (16, 32, 24)])
def test_distinct_parents_without_norms_give_their_mean(widths):
    parents = [norm_free(width, seed) for seed, width in enumerate(widths)]
    x, _ = data_for("functional", 4)
    fused = fuse(parents)
    assert relative_change(mean_of(parents, x), outputs(fused, x)) < 1e-5
    assert fused.layers[1].output_dim == sum(widths)


def measured(model, x, shared=None):
    """A T5's outputs, and the mean squares that its norms measure, by place.

    With `shared` the norms divide by the roots of these mean squares instead.
    """
    squares = {}

    def replaced(address, norm):
        def call(h):
            own = keras.ops.mean(keras.ops.square(h), axis=-1, keepdims=True)
            squares[address] = numpy(own)
            used = own if shared is None else shared[address]
            return norm.weight * h * keras.ops.rsqrt(used + norm.epsilon)

        return call

    for address, layer in tree.walk(model):
        if type(layer).__name__ == "T5LayerNorm":
            layer.call = replaced(address, layer)
    return outputs(model, x), squares


@pytest.mark.parametrize("tied", [True, False])
def test_distinct_t5s_of_unequal_width_share_their_norms(tied):
    """A joint norm divides all features by their common root mean square.

    The fused model is the mean of the parents, each with its norms dividing by the
    fused norms' root mean squares instead of its own; and what the fused norms measure
    are the parents' mean squares, weighted by width.
    """
    widths = (8, 12)
    parents = [perturbed(t5(tied, width, width), width) for width in widths]
    x, _ = data_for("t5", 4)
    fused = fuse(parents, norms="joint")
    assert fused.backbone.hidden_dim == 20 and fused.backbone.num_heads == 5
    before = outputs(fused, x)
    _, joint = measured(fused, x)
    found = [measured(parent, x, shared=joint) for parent in parents]
    mean = np.mean([y for y, _ in found], axis=0)
    assert relative_change(mean, before) < 1e-5
    assert (
        len(joint) == 7
    )  # two in the encoder's block, three in the decoder's, two ends
    for address, square in joint.items():
        own = [squares[address] for _, squares in found]
        weighted = np.average(own, axis=0, weights=widths)
        np.testing.assert_allclose(square, weighted, rtol=1e-4)


def test_tied_readout_averages_unequal_parents():
    """With the last norms' output pinned to constants the mean is exact."""
    parents = [t5(True, width, width) for width in (8, 12)]
    for parent in parents:
        for variable in parent.backbone.decoder_transformer_layers[0].weights:
            variable.assign(keras.ops.zeros_like(variable))
        # All embeddings of equal size: then one norm is as good as two.
        table = parent.backbone.token_embedding.embeddings
        table.assign(np.sign(numpy(table)))
    x, _ = data_for("t5", 4)
    assert relative_change(mean_of(parents, x), outputs(fuse(parents), x)) < 1e-5


def test_a_tree_of_fusions():
    leaves = [norm_free(16, seed) for seed in range(4)]
    x, _ = data_for("functional", 4)
    root = fuse([fuse(leaves[:2]), fuse(leaves[2:])])
    assert relative_change(mean_of(leaves, x), outputs(root, x)) < 1e-5


@pytest.mark.core
def test_features_that_do_not_lie_side_by_side():
    inputs = keras.Input((4, 4, 3))
    x = layers.Conv2D(4, 3, activation="relu")(inputs)
    x = layers.BatchNormalization()(x)
    x = layers.Flatten()(x)
    x = layers.Concatenate()([x, layers.Flatten()(inputs), layers.Dense(5)(x)])
    x = layers.LayerNormalization()(layers.Dense(6)(x))
    model = perturbed(keras.Model(inputs, layers.Dense(2)(x)))
    x = np.random.default_rng(0).standard_normal((3, 4, 4, 3)).astype("float32")
    assert_exact(model, x)
    assert_exact(model, x, factor=3)


def test_distinct_parents_around_a_flatten():
    def parent(filters, seed):
        keras.utils.set_random_seed(seed)
        inputs = keras.Input((4, 4, 3))
        x = layers.Flatten()(layers.Conv2D(filters, 3, activation="relu")(inputs))
        return perturbed(keras.Model(inputs, layers.Dense(2)(x)), seed)

    parents = [parent(3, 0), parent(5, 1)]
    x = np.random.default_rng(0).standard_normal((3, 4, 4, 3)).astype("float32")
    assert relative_change(mean_of(parents, x), outputs(fuse(parents), x)) < 1e-5


def test_widths_tied_to_the_input_stay():
    inputs = keras.Input((6,))
    x = inputs + layers.Dense(6)(layers.Dense(8, activation="relu")(inputs))
    model = perturbed(
        keras.Model(inputs, layers.Dense(2)(layers.LayerNormalization()(x)))
    )
    fused = assert_exact(model, np.random.default_rng(0).standard_normal((3, 6)))
    assert [layer.units for layer in fused.layers if hasattr(layer, "units")] == [
        16,
        6,
        2,
    ]


def test_nested_shared_and_several_outputs():
    inner_in = keras.Input((6,))
    inner = keras.Model(inner_in, layers.Dense(6, activation="tanh")(inner_in))
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    shared = layers.Dense(6)
    x, y = inner(shared(a)), inner(shared(b))
    model = keras.Model(
        {"a": a, "b": b}, {"sum": layers.Dense(2)(x + y), "x": layers.Dense(3)(x)}
    )
    perturbed(model)
    rng = np.random.default_rng(0)
    data = {k: rng.standard_normal((3, 4)).astype("float32") for k in "ab"}
    before = {k: numpy(v) for k, v in model(data).items()}
    for mode in ("zeros", "paired"):
        after = fuse(model, factor=2, off_diagonal=mode)(data)
        for key, value in before.items():
            assert relative_change(value, numpy(after[key])) < 1e-5


def test_tied_embedding_of_keras():
    inputs = keras.Input((LENGTH,), dtype="int32")
    embedding = layers.ReversibleEmbedding(VOCABULARY, 8)
    x = layers.LayerNormalization()(embedding(inputs))
    model = perturbed(keras.Model(inputs, embedding(x, reverse=True)))
    assert_exact(model, data_for("functional", 4)[0])


@pytest.mark.parametrize("as_function", [True, False])
def test_into(as_function):
    class NoConfig(keras.Model):
        def __init__(self, width):
            super().__init__()
            self.first = layers.Dense(width, activation="relu")
            self.second = layers.Dense(2)

        def call(self, x):
            return self.second(self.first(x))

    x = np.random.default_rng(0).standard_normal((3, 4)).astype("float32")
    model, bigger = NoConfig(5), NoConfig(10)
    model(x)
    fused = fuse(model, factor=2, into=(lambda: bigger) if as_function else bigger)
    assert fused is bigger
    assert relative_change(outputs(model, x), outputs(fused, x)) < 1e-6


def test_a_target_larger_than_the_sum():
    parents = [norm_free(32, seed) for seed in range(2)]
    x, _ = data_for("functional", 4)
    fused = fuse(parents, into=norm_free(96, 5))
    assert relative_change(mean_of(parents, x), outputs(fused, x)) < 1e-5


@pytest.mark.core
def test_the_fused_model_is_independent():
    model = functional()
    x, y = data_for("functional")
    before, state = outputs(model, x), values(model)
    fused = fuse(model, factor=2, off_diagonal="paired", seed=0)
    fused.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    fused.fit(x, y, verbose=0)
    np.testing.assert_array_equal(before, outputs(model, x))
    for a, b in zip(state, values(model), strict=True):
        np.testing.assert_array_equal(a, b)
    shared = {id(v) for v in model.variables} & {id(v) for v in fused.variables}
    assert not shared


def test_seed_reproduces_the_noise():
    model = functional()
    first, again, other = (
        values(fuse(model, factor=2, off_diagonal="random", seed=s)) for s in (1, 1, 2)
    )
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_names_are_kept(kind):
    model = KINDS[kind]()
    fused = fuse(model, factor=2)
    assert fused.name == model.name
    assert [v.path for v in fused.weights] == [v.path for v in model.weights]
    assert [x.name for x in fused.layers] == [x.name for x in model.layers]


def test_trainability_is_kept():
    model = gpt2()
    model.backbone.transformer_layers[0].trainable = False
    model.backbone.token_embedding.trainable = False
    fused = fuse(model, factor=2)
    trained = [v.path for v in model.trainable_variables]
    assert [v.path for v in fused.trainable_variables] == trained
    assert 0 < len(trained) < len(model.weights)


def test_dropout_draws_on_where_it_was():
    model = functional(dropout=0.5)
    x, _ = data_for("functional", 4)
    model(x, training=True)
    states = [numpy(v) for v in model.variables if "seed" in v.path]
    fused = fuse(model, factor=2)
    new = [numpy(v) for v in fused.variables if "seed" in v.path]
    assert states and all(
        np.array_equal(a, b) for a, b in zip(states, new, strict=True)
    )


def test_policies_regularizers_and_constraints_are_kept():
    inputs = keras.Input((4,))
    dense = layers.Dense(
        6,
        kernel_regularizer=keras.regularizers.L2(0.1),
        bias_constraint=keras.constraints.NonNeg(),
        dtype="mixed_bfloat16",
    )
    model = keras.Model(inputs, layers.Dense(2)(dense(inputs)))
    grown = fuse(model, factor=2).layers[1]
    assert grown.kernel_regularizer.l2 == pytest.approx(0.1)
    assert isinstance(grown.bias_constraint, keras.constraints.NonNeg)
    assert grown.dtype_policy.name == "mixed_bfloat16"


def test_preprocessing_state_is_copied():
    normalize = layers.Normalization()
    normalize.adapt(np.random.default_rng(0).standard_normal((20, 4)) * 3 + 1)
    inputs = keras.Input((4,))
    x = layers.Dense(6, activation="relu")(normalize(inputs))
    model = keras.Model(inputs, layers.Dense(2)(x))
    assert_exact(model, np.random.default_rng(1).standard_normal((3, 4)))


def test_subclassed_attributes_follow_the_width():
    fused = fuse(subclassed(8), factor=2)
    assert isinstance(fused, Subclassed)
    assert (fused.dim, fused.heads) == (16, 4)


def test_lazy_sequential():
    model = keras.Sequential([layers.Dense(5, activation="relu"), layers.Dense(2)])
    x = np.random.default_rng(0).standard_normal((3, 4)).astype("float32")
    model(x)
    assert_exact(model, x)


def test_operations_between_layers():
    inputs = keras.Input((LENGTH,), dtype="int32")
    x = layers.Embedding(VOCABULARY, 8)(inputs)
    x = keras.ops.mean(x, axis=1) + x[:, 0] * 2.0
    model = perturbed(keras.Model(inputs, layers.Dense(3)(keras.ops.tanh(x))))
    assert_exact(model, data_for("functional", 4)[0])


EQUAL = "have equal weights.*stay equal"


def test_equal_parents_that_nothing_tells_apart_give_a_warning():
    model, twin = norm_free(), norm_free()
    twin.set_weights(model.get_weights())
    with pytest.warns(UserWarning, match=f"{EQUAL}.*'paired'"):
        fuse(model, factor=2, off_diagonal="zeros")
    with pytest.warns(UserWarning, match=f"{EQUAL}.*'random'"):
        fuse([model, twin])
    with pytest.warns(UserWarning, match=EQUAL):
        FusionOperator(off_diagonal="zeros").plan(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fuse(model, factor=2)
        fuse([model, norm_free(seed=1)])
        fuse(model, factor=1.5, off_diagonal="zeros")  # One copy.
