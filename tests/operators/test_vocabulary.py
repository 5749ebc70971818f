"""Growth of vocabularies and classes: old logits stay, new rows are what was asked for."""

import keras
import numpy as np
import pytest
from keras import layers
from models import KINDS, LENGTH, data_for, functional, loss, numpy, outputs, perturbed

import keras_fusion
from keras_fusion import (
    AtStep,
    Chain,
    ClassGrowth,
    FusionError,
    FusionOperator,
    GrowModel,
    VocabularyGrowth,
)
from keras_fusion.testing import run_operator_test


def classifier(activation=None, softmax=None):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((5,))
    x = layers.Dense(8, activation="gelu")(inputs)
    x = layers.Dense(4, activation=activation, name="head")(x)
    return keras.Model(inputs, x if softmax is None else softmax(x))


def features(count=16):
    return np.random.default_rng(0).standard_normal((count, 5)).astype("float32")


def grown(model, operator):
    """The grown model, whose old weights are tested to be as they were."""
    plan = operator.plan(model)
    bigger = plan.fill()
    assert plan.exact and plan.extends
    for layout in plan.layouts:
        value = numpy(layout.target)
        for dimension, axis in enumerate(layout.axes):
            value = value.take(axis.positions(0), dimension)
        np.testing.assert_array_equal(value, numpy(layout.sources[0]))
    return bigger


# The law: logits of old tokens stay, and a new one's is the mean of those it is made of.


@pytest.mark.core("t5_untied")
@pytest.mark.parametrize("kind", ["functional", "sequential", "t5_untied", "gpt2"])
def test_logits_of_old_tokens_stay_and_new_ones_are_means(kind):
    model, (x, _) = perturbed(KINDS[kind]()), data_for(kind, 4)
    before = outputs(model, x)
    limit = 1e-6 * np.abs(before).max()
    after = outputs(grown(model, VocabularyGrowth(23)), x)
    assert after.shape == (*before.shape[:-1], 23)
    np.testing.assert_allclose(after[..., :20], before, atol=limit)
    mean = before.mean(axis=-1, keepdims=True)
    np.testing.assert_allclose(after[..., 20:], mean.repeat(3, -1), atol=1e-5)
    pieces = VocabularyGrowth(pieces=[[2, 5], [20, 7]])  # the second of the first
    after = outputs(grown(model, pieces), x)
    first = (before[..., 2] + before[..., 5]) / 2
    np.testing.assert_allclose(after[..., 20], first, atol=1e-5)
    np.testing.assert_allclose(after[..., 21], (first + before[..., 7]) / 2, atol=1e-5)


def test_a_new_token_is_read_as_the_mean_of_its_pieces():
    model = perturbed(functional())
    bigger = grown(model, VocabularyGrowth(pieces=[[3, 3], [1, 2]]))
    ids = np.random.default_rng(0).integers(0, 20, (4, LENGTH))
    ids[:, 2] = 3
    as_new = np.where(ids == 3, 20, ids)  # twice the same piece is that piece
    expected = outputs(bigger, ids)
    np.testing.assert_allclose(outputs(bigger, as_new), expected, atol=1e-5)
    table = numpy(bigger.layers[1].embeddings)
    np.testing.assert_allclose(table[21], table[1:3].mean(axis=0), atol=1e-6)


def test_given_rows():
    model = perturbed(functional())
    rows = np.random.default_rng(0).standard_normal((2, 8)).astype("float32")
    bigger = grown(model, VocabularyGrowth(rows=rows))
    np.testing.assert_array_equal(numpy(bigger.layers[1].embeddings)[20:], rows)
    kernel = numpy(bigger.layers[-1].kernel)
    mean = kernel[:, :20].mean(axis=1)
    np.testing.assert_allclose(kernel[:, 20], mean, atol=1e-6)
    head = grown(model, ClassGrowth(rows=rows)).layers[-1]
    np.testing.assert_array_equal(numpy(head.kernel)[:, 20:].T, rows)


@pytest.mark.parametrize(
    "model",
    [
        lambda: classifier(),
        lambda: classifier("sigmoid"),
        lambda: classifier("softmax"),
        lambda: classifier("log_softmax"),
        lambda: classifier(softmax=layers.Softmax()),
        lambda: classifier(softmax=keras.ops.softmax),
    ],
    ids=["logits", "sigmoid", "softmax", "log_softmax", "layer", "operation"],
)
def test_classes_are_added_behind_any_activation(model):
    model, x = perturbed(model()), features()
    before = outputs(model, x)
    event = keras_fusion.grow(model, ClassGrowth(like=[[1], [0, 3]]), verbose=0)
    assert event.function_change < 1e-5 and event.argmax_agreement == 1
    after = outputs(model, x)
    assert model.output_shape == (None, 6) == (None, after.shape[-1])
    old = after[:, :4]
    if np.allclose(before.sum(axis=1), 1):
        old = old / old.sum(axis=1, keepdims=True)
    elif (before < 0).all():
        old = old - np.log(np.exp(old).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(old, before, atol=1e-5)
    np.testing.assert_allclose(after[:, 4], after[:, 1], atol=1e-6)


def test_classes_of_keras_hub_and_of_a_class_of_ones_own():
    model, (x, _) = perturbed(KINDS["bert"]()), data_for("bert", 4)
    before = outputs(model, x)
    after = outputs(grown(model, ClassGrowth(5)), x)
    assert after.shape == (4, 5)
    np.testing.assert_allclose(after[:, :3], before, atol=1e-5)
    tokens = outputs(grown(model, VocabularyGrowth(30)), x)
    np.testing.assert_array_equal(tokens, before)  # no output grows

    @keras.saving.register_keras_serializable("tests")
    class Tagger(keras.Model):
        def __init__(self, words=7, tags=3, **kwargs):
            super().__init__(**kwargs)
            self.words, self.tags = words, tags
            self.table = layers.Embedding(words, 4)
            self.head = layers.Dense(tags)

        def call(self, ids):
            return self.head(self.table(ids))

        def get_config(self):
            return super().get_config() | {"words": self.words, "tags": self.tags}

    keras_fusion.register(Tagger, widths=())
    model, ids = Tagger(), np.arange(6).reshape(2, 3)
    before = outputs(model, ids)
    both = Chain([VocabularyGrowth(9, only="words"), ClassGrowth(4, only=["tags"])])
    keras_fusion.grow(model, both, verbose=0)
    assert (model.words, model.tags, model.table.input_dim) == (9, 4, 9)
    np.testing.assert_allclose(outputs(model, ids)[..., :3], before, atol=1e-6)


# In training.


@pytest.mark.parametrize(
    ("operator", "optimizer"),
    [
        (VocabularyGrowth(24), "adam"),
        (VocabularyGrowth(pieces=[[1, 2]]), "adafactor"),
        (ClassGrowth(21), {"class_name": "SGD", "config": {"momentum": 0.9}}),
        (Chain([VocabularyGrowth(22), FusionOperator(seed=0)]), "adam"),
    ],
    ids=str,
)
def test_in_fit(operator, optimizer):
    x, y = data_for("functional", 16)
    model = perturbed(functional())
    run_operator_test(operator, model, x, y, loss=loss(), optimizer=optimizer)


@pytest.mark.compiled
def test_the_optimizer_goes_on_and_new_tokens_are_learnt():
    model, (x, y) = functional(), data_for("functional", 64)
    model.compile(keras.optimizers.Adam(0.01), loss())
    model.fit(x, y, batch_size=16, verbose=0)
    before = [numpy(v).copy() for v in model.optimizer._momentums]
    second = [numpy(v).copy() for v in model.optimizer._velocities]
    old_weights = model.get_weights()
    keras_fusion.grow(model, VocabularyGrowth(22), verbose=0)
    optimizer = model.optimizer
    for old, new in zip(before, optimizer._momentums, strict=True):
        part = tuple(map(slice, old.shape))
        np.testing.assert_array_equal(numpy(new)[part], old)
        assert np.sum(np.abs(numpy(new))) == pytest.approx(np.sum(np.abs(old)))
    for old, new in zip(second, optimizer._velocities, strict=True):
        assert np.mean(numpy(new)) == pytest.approx(np.mean(old), rel=1e-4)
    assert int(optimizer.iterations) == 4
    x = np.where(x == 3, 21, x)  # a word that has got a token of its own
    first = model.evaluate(x, x, verbose=0)
    model.fit(x, x, batch_size=16, epochs=30, verbose=0)
    assert model.evaluate(x, x, verbose=0) < 0.5 * first
    predicted = outputs(model, x).argmax(axis=-1)
    assert np.mean(predicted[x == 21] == 21) > 0.9
    model.set_weights(old_weights)  # from before the growth, as EarlyStopping does
    table = numpy(model.layers[1].embeddings)
    np.testing.assert_allclose(table[21], old_weights[0].mean(axis=0), atol=1e-6)


def test_preview_and_config():
    model = functional()
    model.compile("adam", loss())
    operator = VocabularyGrowth(pieces=[[1, 2], [20, 3]])
    grow = GrowModel(operator, AtStep(2), verbose=0)
    seen = grow.preview(model)
    assert seen.exact and seen.refused is None
    rows = {x.name.rpartition("/")[2]: x for x in seen.layers}
    assert rows["logits"].after == {"kernel": (8, 22), "bias": (22,)}
    assert rows["logits"].note == "exact, with new capacity"
    event = keras_fusion.grow(model, operator, verbose=0)
    assert event.operator == "vocabulary of 2 more tokens"
    assert seen.params == (event.params_before, event.params_after)
    again = VocabularyGrowth.from_config(operator.get_config())
    assert again.get_config() == operator.get_config()
    given = ClassGrowth(rows=np.ones((1, 8)))
    again = ClassGrowth.from_config(given.get_config())
    np.testing.assert_array_equal(again.rows, given.rows)


# Which layers grow.


def with_positions():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((LENGTH,), dtype="int32")
    positions = layers.Embedding(LENGTH, 8, name="positions")
    x = layers.Embedding(20, 8, name="tokens")(inputs)
    x = x + positions(keras.ops.cumsum(keras.ops.ones_like(inputs), axis=1) - 1)
    return keras.Model(inputs, layers.Dense(20, name="head")(x))


def test_tables_of_several_sizes_must_be_named():
    model = with_positions()
    with pytest.raises(FusionError, match=r"'positions' \(input_dim=6\).*by `only`"):
        VocabularyGrowth(30).plan(model)
    bigger = VocabularyGrowth(30, only=["tokens", "he*"]).plan(model).fused
    sizes = [v.shape[0] for v in bigger.weights if "embeddings" in v.path]
    assert sorted(sizes) == [6, 30] and bigger.output_shape[-1] == 30
    alone = VocabularyGrowth(30, only="tokens").plan(model).fused
    assert alone.output_shape[-1] == 20


def tagger(head):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,), dtype="int32")
    x = layers.LSTM(8, return_sequences=True)(layers.Embedding(10, 8)(inputs))
    return keras.Model(inputs, head(x))


@pytest.mark.parametrize(
    "head",
    [
        layers.TimeDistributed(layers.Dense(10)),
        layers.Bidirectional(layers.LSTM(5, return_sequences=True)),
        layers.BatchNormalization(),
    ],
    ids=lambda head: type(head).__name__,
)
def test_a_head_whose_size_nobody_tells_is_refused(head):
    head = type(head).from_config(head.get_config())
    if isinstance(head, layers.BatchNormalization):
        made, head = head, lambda x: made(layers.Dense(10)(x))
    with pytest.raises(
        FusionError, match="makes 10 outputs, as many as the vocabulary"
    ):
        keras_fusion.grow(tagger(head), VocabularyGrowth(12), verbose=0)
    wider = tagger(layers.Dense(10))
    keras_fusion.grow(wider, VocabularyGrowth(12), verbose=0)
    assert wider.output_shape == (None, 4, 12)


def two_heads():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((5,))
    x = layers.Dense(8, "gelu")(inputs)
    sick = layers.Dense(1, "sigmoid", name="sick")(x)
    return keras.Model(inputs, {"sick": sick, "age": layers.Dense(1, name="age")(x)})


def test_several_heads_must_be_named():
    """A regression may have as many outputs as there are classes."""
    model = two_heads()
    with pytest.raises(FusionError, match="several heads: .*'sick'.*Say by `only`"):
        keras_fusion.grow(model, ClassGrowth(3), verbose=0)
    keras_fusion.grow(model, ClassGrowth(3, only="sick"), verbose=0)
    made = model(features(2))
    assert {name: made[name].shape[-1] for name in made} == {"sick": 3, "age": 1}


def normalized(by_all):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((5,))
    logits = layers.Dense(4, name="head")(inputs)
    return keras.Model(inputs, by_all(logits))


@pytest.mark.parametrize(
    ("make", "operator", "pattern"),
    [
        (functional, VocabularyGrowth(20), "`vocabulary_size=20`.* has 20 already"),
        (functional, VocabularyGrowth(25, [[1]]), "makes 5 new rows.*`pieces` has 1"),
        (functional, VocabularyGrowth(pieces=[[21]]), r"row 20 of \[21\].*below 20"),
        (functional, VocabularyGrowth(rows=np.ones((1, 5))), "rows of 5 .* have 8"),
        (functional, VocabularyGrowth(30, only="no"), r"names \['no'\].*'embedding"),
        (classifier, VocabularyGrowth(30), "does not tell the size of its vocabulary"),
        (
            lambda: KINDS["gpt2"](),
            ClassGrowth(30),
            "does not tell the number of its classes",
        ),
        (
            lambda: normalized(lambda x: x - keras.ops.mean(x, -1, keepdims=True)),
            ClassGrowth(6, like=None, rows=10 * np.ones((2, 5))),
            "should compute what its parents do, but its outputs changed",
        ),
        (
            lambda: normalized(layers.BatchNormalization()),
            ClassGrowth(6),
            "does not tell the number of its classes",
        ),
    ],
)
def test_what_cannot_grow_is_refused_and_nothing_changes(make, operator, pattern):
    model = perturbed(make())
    before = model.get_weights()
    with pytest.raises(FusionError, match=pattern):
        keras_fusion.grow(model, operator, verbose=0)
    assert all(map(np.array_equal, before, model.get_weights()))


def test_a_metric_by_class_is_refused():
    model, x = classifier("softmax"), features()
    y = np.eye(4)[np.arange(16) % 4]
    model.compile("adam", "categorical_crossentropy", metrics=[keras.metrics.F1Score()])
    model.fit(x, y, verbose=0)
    with pytest.raises(FusionError, match="'f1_score'.* a state for 4 classes"):
        keras_fusion.grow(model, ClassGrowth(5), verbose=0)


@pytest.mark.parametrize(
    ("make", "pattern"),
    [
        (lambda: VocabularyGrowth(), "Give `vocabulary_size`, `pieces` or `rows`"),
        (lambda: VocabularyGrowth(2.5), "`vocabulary_size` must be.*=2.5"),
        (lambda: VocabularyGrowth(pieces=[[]]), "`pieces` must be a list"),
        (lambda: VocabularyGrowth(pieces=[[1.5]]), "`pieces` must be a list"),
        (lambda: ClassGrowth(like=3), "`like` must be a list"),
        (lambda: ClassGrowth(rows=[1.0]), "`rows` must be an array"),
        (lambda: ClassGrowth(rows=[[np.nan]]), "`rows` must be an array"),
        (lambda: ClassGrowth(like=[[1]], rows=[[1.0]]), "and so does `like`"),
        (lambda: ClassGrowth(3, only=[]), "`only` must be"),
    ],
)
def test_arguments_are_checked(make, pattern):
    with pytest.raises(FusionError, match=pattern):
        make()
