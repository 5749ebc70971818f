"""Growths are verified where it can be seen, and what departs is named."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_fusion
from keras_fusion import DeepFusion, FusionError, fuse

rng = np.random.default_rng(0)
X = rng.standard_normal((32, 4)).astype("float32")


def numpy(tensor):
    return np.asarray(ops.convert_to_numpy(tensor))


def net(body, head=None, shape=(4,), seed=0):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input(shape)
    return keras.Model(inputs, (head or layers.Dense(2))(body(inputs)))


@keras.saving.register_keras_serializable("tests_verification")
class Gate(layers.Layer):
    """Multiplies each feature by another one: twice as wide, the others are others."""

    def call(self, x):
        return x * ops.sigmoid(ops.roll(x, x.shape[-1] // 2, axis=-1))


@keras.saving.register_keras_serializable("tests_verification")
class Minus(layers.Layer):
    """Subtracts a number that is made of all features."""

    def __init__(self, operator, **options):
        super().__init__(**options)
        self.operator = operator

    def call(self, x):
        return x - getattr(ops, self.operator)(x, axis=-1, keepdims=True)

    def get_config(self):
        return super().get_config() | {"operator": self.operator}


# Here the user is wrong.
for cls in (Gate, Minus):
    keras_fusion.register(cls)


def gate(x):
    return Gate()(layers.Dense(8)(x))


def dead():
    model = net(gate, layers.Dense(1, "relu"))
    model.layers[-1].bias.assign([-6.0])
    return model


def saturated():
    model = net(gate, layers.Dense(3, "softmax"))
    model.layers[-1].bias.assign([60.0, 0.0, 0.0])
    return model


def zero():
    return net(gate, layers.Dense(3, kernel_initializer="zeros"))


def hidden_gate(x):
    """A wrong branch that a layer of zeros keeps from the outputs."""
    h = layers.Dense(8)(x)
    return h + layers.Dense(8, kernel_initializer="zeros")(gate(h))


WRONG = {
    "NaN": lambda: net(lambda x: gate(ops.log(x))),
    "dead": dead,
    "saturated": saturated,
    "zero": zero,
    "a branch of zeros": lambda: net(hidden_gate),
    "sqrt": lambda: net(lambda x: gate(ops.sqrt(x - 0.2))),
}


@pytest.mark.core
@pytest.mark.parametrize("case", WRONG)
def test_what_the_outputs_do_not_show_is_found(case):
    message = "(?s)first layer that departs is Dense.*its input.*Gate"
    with pytest.raises(FusionError, match=message):
        fuse(WRONG[case](), factor=2)


def fine(head, bias=None):
    model = net(layers.Dense(8, "relu"), head)
    if bias is not None:
        model.layers[-1].bias.assign(bias)
    return model


RIGHT = {
    "dead": lambda: fine(layers.Dense(1, "relu"), [-6.0]),
    "saturated": lambda: fine(layers.Dense(2, "softmax"), [60.0, 0.0]),
    "zero": lambda: fine(layers.Dense(2, kernel_initializer="zeros")),
}


@pytest.mark.core
@pytest.mark.parametrize("case", RIGHT)
def test_what_is_right_is_verified_where_the_outputs_show_nothing(case):
    model = RIGHT[case]()
    x = 1000 * X
    change = np.max(np.abs(numpy(fuse(model, factor=2)(x)) - numpy(model(x))))
    assert change <= 1e-4 * max(1.0, np.max(np.abs(numpy(model(x)))))


@pytest.mark.core
@pytest.mark.parametrize("operator", ["max", "logsumexp", "var"])
def test_new_capacity_that_will_be_seen_later_is_found(operator):
    def body(x):
        return Minus(operator)(layers.Dense(8)(x))

    with pytest.raises(FusionError, match="departs|changes the outputs"):
        fuse(net(body), factor=1.5)


@pytest.mark.core
@pytest.mark.parametrize(
    ("layer", "name", "bad"),
    [(1, "kernel", np.nan), (1, "bias", np.inf), (2, "moving_variance", -np.inf)],
)
def test_a_diverged_model_is_not_grown(layer, name, bad):
    model = net(lambda x: layers.BatchNormalization()(layers.Dense(8, "relu")(x)))
    model.compile("adam", "mse")
    variable = getattr(model.layers[layer], name)
    value = np.array(numpy(variable))
    value[..., 0] = bad
    variable.assign(value)
    with pytest.raises(FusionError, match=f"{name}.*not finite"):
        model.fit(X, X[:, :2], verbose=0, callbacks=[DeepFusion(at_step=1, verbose=0)])
    assert model.layers[1].units == 8


@keras.saving.register_keras_serializable("tests_verification")
class OnlyInTraining(layers.Layer):
    """Divides by the width, in training only."""

    def call(self, x, training=False):
        return x / x.shape[-1] if training else x


@pytest.mark.core
def test_what_acts_only_in_training_is_seen():
    model = net(lambda x: OnlyInTraining()(layers.Dense(8)(x)))
    with pytest.raises(FusionError, match="in training mode"):
        fuse(model, factor=2)
    still = net(lambda x: layers.Dropout(0.5)(layers.Dense(8)(x)))
    assert fuse(still, factor=2).layers[1].units == 16


# Distinct parents, without norms.


def attention_free(x):
    h = layers.Dense(8, "relu")(x)
    return layers.Concatenate()([h, layers.Dense(6)(x)])


def flip(x):
    return ops.flip(layers.Dense(8)(x), axis=-1)


def normalized(x):
    return ops.normalize(layers.Dense(8)(x), axis=-1)


def sorted_features(x):
    return ops.sort(layers.Dense(8)(x), axis=-1)


@pytest.mark.core
@pytest.mark.parametrize("body", [gate, flip, normalized, sorted_features])
def test_distinct_parents_are_refused_where_they_are_not_their_mean(body):
    with pytest.raises(FusionError, match="departs is Dense|cannot share such a width"):
        fuse([net(body, seed=k) for k in range(2)])


@pytest.mark.core
@pytest.mark.parametrize("activation", [None, "softmax", "sigmoid"])
def test_distinct_parents_are_their_mean(activation):
    parents = [
        net(attention_free, layers.Dense(2, activation), seed=k) for k in range(2)
    ]
    fused = fuse(parents)
    logits = [keras.Model(p.inputs, p.layers[-1].input) for p in parents]
    mean = sum(
        numpy(hidden(X)) @ numpy(p.layers[-1].kernel) + numpy(p.layers[-1].bias)
        for hidden, p in zip(logits, parents, strict=True)
    )
    expected = numpy(keras.activations.get(activation)(ops.convert_to_tensor(mean / 2)))
    assert np.max(np.abs(numpy(fused(X)) - expected)) < 1e-5


# Constraints, which the next update applies.

CONSTRAINTS = {
    "NonNeg": keras.constraints.NonNeg,
    "UnitNorm": lambda: keras.constraints.UnitNorm(axis=0),
    "MaxNorm": lambda: keras.constraints.MaxNorm(1.0),
    "MinMaxNorm": lambda: keras.constraints.MinMaxNorm(0.5, 1.0),
}


def constrained(make, readout=None):
    def body(x):
        for _ in range(2):
            x = layers.Dense(8, "relu", kernel_constraint=make())(x)
        return x

    model = net(body, layers.Dense(1, kernel_constraint=readout))
    model.compile(keras.optimizers.SGD(0.0), "mse")
    model.fit(X, X[:, :1], batch_size=8, verbose=0)  # It obeys from here on.
    return model


@pytest.mark.core
@pytest.mark.parametrize("case", CONSTRAINTS)
def test_the_function_is_kept_by_the_update_after_the_growth(case):
    model = constrained(CONSTRAINTS[case])
    before = numpy(model(X))
    grow = DeepFusion(at_step=6, seed=0, verbose=0)
    model.fit(X, X[:, :1], batch_size=8, verbose=0, callbacks=[grow])
    assert grow.events[0].function_change < 1e-5
    assert np.max(np.abs(numpy(model(X)) - before)) < 1e-5 * np.max(np.abs(before))


@pytest.mark.core
def test_a_constraint_that_the_growth_breaks_is_named():
    model = constrained(CONSTRAINTS["UnitNorm"], keras.constraints.UnitNorm(axis=0))
    with pytest.raises(FusionError, match="(?s)next update.*constraint of .*kernel"):
        fuse(model, factor=2)


# Known before the first step.


class Count(keras.callbacks.Callback):
    """Counts the batches that were trained."""

    count = 0

    def on_train_batch_end(self, batch, logs=None):
        self.count += 1


@keras.saving.register_keras_serializable("tests_verification")
class Always(layers.Layer):
    """Adds noise in inference, too."""

    def __init__(self, **options):
        super().__init__(**options)
        self.seeds = keras.random.SeedGenerator(1)

    def call(self, x):
        return x + keras.random.normal(ops.shape(x), seed=self.seeds)


keras_fusion.register(Always)


def image():
    inputs = keras.Input((None, None, 3))
    x = layers.MaxPooling2D(4)(layers.Conv2D(8, 7, activation="relu")(inputs))
    outputs = layers.Dense(1)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, outputs), rng.standard_normal((8, 24, 24, 3))


def strided():
    inputs = keras.Input((None, 3))
    x = inputs
    for _ in range(4):
        x = layers.Conv1D(8, 3, strides=2)(x)
    outputs = layers.Dense(1)(layers.GlobalMaxPooling1D()(x))
    return keras.Model(inputs, outputs), rng.standard_normal((8, 64, 3))


def noisy():
    return net(lambda x: Always()(layers.Dense(8)(x)), layers.Dense(1)), X


@pytest.mark.core
@pytest.mark.parametrize("make", [image, strided, noisy])
def test_inputs_of_all_kinds_get_a_probe_that_fits(make):
    model, x = make()
    model.compile("adam", "mse")
    grow = DeepFusion(at_step=2, verbose=0)
    model.fit(x, np.zeros((len(x), 1)), batch_size=2, verbose=0, callbacks=[grow])
    assert len(grow.events) == 1


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="strings")
def test_a_model_of_words_grows():
    import tensorflow as tf

    inputs = keras.Input((1,), dtype="string")
    ids = layers.StringLookup(vocabulary=["red", "green"])(inputs)
    x = layers.Flatten()(layers.Embedding(3, 8)(ids))
    model = keras.Model(inputs, layers.Dense(1)(x))
    model.compile("adam", "mse")
    words = tf.constant([["red"], ["green"]] * 4)
    grow = DeepFusion(at_step=1, verbose=0)
    model.fit(words, np.zeros((8, 1)), batch_size=4, verbose=0, callbacks=[grow])
    assert grow.events[0].function_change < 1e-5


@pytest.mark.core
@pytest.mark.parametrize("body", [gate, flip, normalized])
def test_what_cannot_grow_is_refused_before_the_first_step(body):
    model, count = net(body), Count()
    model.compile("adam", "mse")
    factor = 1.5 if body is flip else 2
    grow = DeepFusion(at_step=6, factor=factor, verbose=0)
    with pytest.raises(FusionError, match="departs|cannot grow"):
        model.fit(X, X[:, :2], batch_size=4, verbose=0, callbacks=[count, grow])
    assert count.count == 0


OPERATORS = [
    keras_fusion.HyperCloning,
    keras_fusion.Lemon,
    keras_fusion.Net2Net,
    keras_fusion.StagedTraining,
    keras_fusion.ZeroPadding,
    keras_fusion.FusionOperator,
]


@pytest.mark.core
@pytest.mark.parametrize("cls", OPERATORS)
def test_every_operator_takes_a_probe(cls):
    """This model takes nothing that could be made up."""

    class Picky(layers.Layer):
        def compute_output_spec(self, x):
            return keras.KerasTensor(x.shape, x.dtype)

        def call(self, x):
            if not bool(ops.all(x == 7.0)):
                raise ValueError("Only sevens.")
            return x

    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(2)(layers.Dense(8)(Picky()(inputs))))
    sevens = np.full((8, 4), 7.0, "float32")
    plan = cls(probe=sevens).plan(model, 0)
    assert plan.fill().layers[-2].units == 16
    with pytest.raises(FusionError, match="Pass a batch of your data as `probe`"):
        fuse(model, factor=2)
    with pytest.raises(FusionError, match="does not accept the `probe`"):
        fuse(model, factor=2, probe=X)
    assert fuse(model, factor=2, probe=sevens).layers[-2].units == 16


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="tf.function")
def test_layers_inside_of_a_compiled_function_are_not_watched():
    import tensorflow as tf

    @keras.saving.register_keras_serializable("tests")
    class Compiled(keras.Model):
        def __init__(self, width=8, **kwargs):
            super().__init__(**kwargs)
            self.width = width
            self.hidden, self.readout = layers.Dense(width, "relu"), layers.Dense(2)
            self.compiled = tf.function(lambda x: self.readout(self.hidden(x)))

        def call(self, x):
            return self.compiled(x)

        def get_config(self):
            return super().get_config() | {"width": self.width}

    keras_fusion.register(Compiled, widths=("width",))
    model, x = Compiled(), np.ones((4, 3), "float32")
    model(x)
    fused = fuse(model, factor=2)
    assert fused.width == 16
    np.testing.assert_allclose(fused(x), model(x), atol=1e-6)
