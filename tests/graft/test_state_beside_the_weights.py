"""State that is none of the model's weights outlives a growth, and the errors after it."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops
from models import numpy

from keras_fusion import DeepFusion, DepthStacking, FusionError, GrowModel
from keras_fusion.training.schedules import AtStep

pytestmark = pytest.mark.core

X = np.random.default_rng(0).standard_normal((32, 4)).astype("float32")
Y = X[:, :1]


def compiled(model, optimizer="adam"):
    model.compile(optimizer, "mse", jit_compile=False)
    return model


def net(width=8):
    return keras.Sequential(
        [keras.Input((4,)), layers.Dense(width, "relu"), layers.Dense(1)]
    )


# What Keras's training loops hold.


class BrokenData(keras.utils.PyDataset):
    """Four batches, one of which cannot be read."""

    def __init__(self, bad):
        super().__init__()
        self.bad = bad

    def __len__(self):
        return 4

    def __getitem__(self, i):
        if i == self.bad:
            raise OSError("broken file")
        return X[8 * i : 8 * i + 8], Y[8 * i : 8 * i + 8]


class Stop(keras.callbacks.Callback):
    """Raises before a batch, once the training loop has taken the model's values."""

    def __init__(self, batch):
        super().__init__()
        self.batch = batch

    def on_train_batch_begin(self, batch, logs=None):
        if batch == self.batch:
            raise OSError("broken file")


@pytest.mark.parametrize("bad", [2, 3])
def test_data_that_breaks_after_a_growth(bad):
    """The error is the data's own, and the model what it was after the last step."""
    model, grow = compiled(net()), DeepFusion(at_step=bad, verbose=0)
    with pytest.raises(Exception, match="broken file"):
        model.fit(BrokenData(bad), shuffle=False, verbose=0, callbacks=[grow])
    assert model.layers[0].units == 16 and numpy(model(X)).shape == (32, 1)
    history = model.fit(X, Y, batch_size=8, verbose=0).history
    assert np.isfinite(history["loss"][0]) and model.layers[0].units == 16


def test_a_callback_that_breaks_after_a_growth():
    model, grow = compiled(net()), DeepFusion(at_step=2, verbose=0)
    with pytest.raises(OSError, match="broken file"):
        model.fit(X, Y, batch_size=8, verbose=0, callbacks=[grow, Stop(2)])
    assert model.layers[0].units == 16
    model.fit(X, Y, batch_size=8, verbose=0)


# Metrics inside layers.


@keras.saving.register_keras_serializable("state")
class Watch(layers.Layer):
    """Measures what passes, in an attribute or in a dict."""

    def __init__(self, held="attribute", **options):
        super().__init__(**options)
        self.held = held
        seen = keras.metrics.Mean(name="seen")
        if held == "attribute":
            self.seen = seen
        else:
            self.all_seen = {"seen": seen}

    def call(self, x):
        seen = self.seen if self.held == "attribute" else self.all_seen["seen"]
        seen.update_state(ops.mean(x))
        return x

    def compute_output_shape(self, shape):
        return shape

    def get_config(self):
        return super().get_config() | {"held": self.held}


def watched(held, nested=False):
    inputs = keras.Input((4,))
    x = layers.Dense(1)(layers.Dense(8, "relu")(inputs))
    if nested:
        inner = keras.Input((1,))
        return keras.Model(inputs, keras.Model(inner, Watch(held)(inner))(x))
    return keras.Model(inputs, Watch(held)(x))


IN_LAYERS = pytest.mark.skipif(
    keras.config.backend() == "jax", reason="Keras has no metrics in layers on JAX."
)


@IN_LAYERS
@pytest.mark.parametrize(
    ("held", "nested"), [("attribute", False), ("dict", False), ("attribute", True)]
)
def test_metric_of_a_layer_goes_on(held, nested):
    """At a rate of 0 nothing moves, so that each epoch measures the same."""
    model, seen = compiled(watched(held, nested), keras.optimizers.SGD(0.0)), []
    for callbacks in [], [DeepFusion(at_step=7, verbose=0)], []:
        history = model.fit(
            X, Y, batch_size=8, shuffle=False, verbose=0, callbacks=callbacks
        ).history
        seen.append(history["seen"][0])
    np.testing.assert_allclose(seen, seen[0], rtol=1e-5)
    assert model.count_params() > 49


@IN_LAYERS
def test_metric_of_a_layer_goes_on_in_a_deeper_model():
    inputs = keras.Input((4,))
    x = layers.Dense(8)(inputs)
    for _ in range(2):
        x = x + layers.Dense(8, "relu", kernel_initializer="zeros")(x)
    model = keras.Model(inputs, Watch()(layers.Dense(1)(x)))
    compiled(model, keras.optimizers.SGD(0.0))
    grow = GrowModel(DepthStacking(), AtStep(2), verbose=0)
    options = {"batch_size": 8, "shuffle": False, "verbose": 0}
    before = model.fit(X, Y, **options).history["seen"]
    model.fit(X, Y, **options, callbacks=[GrowModel(DepthStacking(), AtStep(6))])
    after = model.fit(X, Y, **options, callbacks=[]).history["seen"]
    np.testing.assert_allclose(before, after, rtol=1e-5)
    assert grow.events == []


class Sums(keras.metrics.Metric):
    """One sum for each feature."""

    def __init__(self, width, **options):
        super().__init__(**options)
        self.sums = self.add_variable((width,), "zeros", name="sums")

    def update_state(self, x):
        self.sums.assign_add(ops.sum(x, 0))

    def result(self):
        return ops.max(self.sums)


class PerFeature(layers.Layer):
    def build(self, shape):
        self.seen = Sums(shape[-1], name="features")

    def call(self, x):
        self.seen.update_state(x)
        return x

    def compute_output_shape(self, shape):
        return shape


@IN_LAYERS
def test_metric_as_wide_as_what_grows_is_refused():
    inputs = keras.Input((4,))
    x = PerFeature(name="watch")(layers.Dense(8)(inputs))
    model = compiled(keras.Model(inputs, layers.Dense(1)(x)))
    with pytest.raises(FusionError, match="'watch' of class PerFeature"):
        model.fit(X, Y, verbose=0, callbacks=[DeepFusion(at_step=1, verbose=0)])


# Other models that hold the one that grows.


def functional_around(inner):
    inputs = keras.Input((4,))
    return keras.Model(inputs, 2 * inner(inputs))


def sequential_around(inner):
    return keras.Sequential([keras.Input((4,)), inner, layers.Rescaling(2.0)])


class Around(keras.Model):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def call(self, x):
        return 2 * self.inner(x)


@pytest.mark.parametrize("around", [functional_around, sequential_around, Around])
def test_outer_model_sees_what_has_grown(around):
    inner = compiled(net())
    outer, twice = around(inner), functional_around(around(inner))
    outer.predict(X, verbose=0), twice.predict(X, verbose=0)
    inner.fit(X, Y, batch_size=8, verbose=0, callbacks=[DeepFusion(at_step=2)])
    expected = 2 * inner.predict(X, verbose=0)
    np.testing.assert_allclose(outer.predict(X, verbose=0), expected, rtol=1e-4)
    np.testing.assert_allclose(twice.predict(X, verbose=0), 2 * expected, rtol=1e-4)


def test_outer_model_that_trains_is_told_to_compile():
    inner = compiled(net())
    outer = compiled(functional_around(inner))
    outer.fit(X, Y, verbose=0)
    with pytest.warns(
        UserWarning, match="its optimizer trains the variables from befo"
    ):
        inner.fit(X, Y, verbose=0, callbacks=[DeepFusion(at_step=1, verbose=0)])
    compiled(outer).fit(X, Y, verbose=0)
    assert inner.layers[0].units == 16


def functional():
    inputs = keras.Input((4,))
    x = layers.Dense(8, "relu")(inputs)
    return keras.Model(inputs, layers.Dense(1)(x))


def added():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(8)])
    model.add(layers.Dense(1))
    return model


def nested():
    inputs = keras.Input((4,))
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(8)])
    return keras.Model(inputs, layers.Dense(1)(inner(inputs)))


def features_of(model):
    """A model of the user's own over the layers of another."""
    return keras.Model(model.inputs, model.layers[-2].output, name="features")


def head_of(model):
    inputs = keras.Input((8,))
    return keras.Model(inputs, model.layers[-1](inputs), name="head")


def test_models_that_share_layers_are_told_that_they_stay_behind():
    model = compiled(functional())
    beside = [features_of(model), head_of(model)]
    with pytest.warns(UserWarning, match="shares layers with") as said:
        model.fit(X, Y, verbose=0, callbacks=[DeepFusion(at_step=1, verbose=0)])
    told = [str(w.message) for w in said if "shares layers" in str(w.message)]
    assert sorted(text.split("'")[1] for text in told) == ["features", "head"]
    assert [len(m.trainable_variables) for m in beside] == [2, 2]


@pytest.mark.parametrize("made", [net, added, functional, nested])
def test_of_models_that_nobody_uses_nothing_is_told(made):
    """Those of Keras's and of this package's own, and those that are dropped."""
    model = compiled(made())
    features_of(model)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Model .* shares layers")
        model.fit(X, Y, verbose=0, callbacks=[DeepFusion(at_step=1, verbose=0)])
    assert model.count_params() > 60
