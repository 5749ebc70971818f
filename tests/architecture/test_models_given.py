"""Bigger models that are given as `into`, and classes that train in their own way."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from models import numpy

from keras_fusion import DeepFusion, FusionError, fuse

pytestmark = pytest.mark.core

X = np.random.default_rng(0).standard_normal((32, 4)).astype("float32")


class Apply(layers.Layer):
    """A layer without a config."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, x):
        return self.function(x)


MIDDLES = {
    "Reshape": lambda h, w: layers.Flatten()(layers.Reshape((1, w))(h)),
    "Lambda": lambda h, w: layers.Lambda(lambda x: 2 * x)(h),
    "without a config": lambda h, w: Apply(ops.tanh)(h),
}


def net(width, middle):
    inputs = keras.Input((4,))
    hidden = MIDDLES[middle](layers.Dense(width)(inputs), width)
    return keras.Model(inputs, layers.Dense(2)(hidden))


@pytest.mark.parametrize("middle", MIDDLES)
def test_the_bigger_model_is_the_way_out(middle):
    """Where the error without it says so, and the copies compute what they did."""
    parent = net(8, middle)
    if middle != "Reshape":  # Its constants are grown.
        with pytest.raises(FusionError, match="into`"):
            fuse(parent, factor=2)
    fused = fuse([parent, parent], into=net(16, middle))
    assert fused.layers[1].units == 16
    np.testing.assert_allclose(numpy(fused(X)), numpy(parent(X)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("middle", ["Reshape", "Lambda"])
def test_distinct_parents_in_a_given_model_are_their_mean(middle):
    parents = [net(8, middle), net(8, middle)]
    fused = fuse(parents, into=net(16, middle))
    mean = sum(numpy(parent(X)) for parent in parents) / 2
    np.testing.assert_allclose(numpy(fused(X)), mean, rtol=1e-4, atol=1e-6)


def test_no_error_advises_what_was_just_done():
    def build(width):
        inputs = keras.Input((4,))
        hidden = Apply(ops.softmax)(layers.Dense(width)(inputs))
        return keras.Model(inputs, layers.Dense(2)(hidden))

    with pytest.raises(FusionError) as error:
        fuse([build(8), build(8)], into=build(16))
    assert "pass it as `into`" not in str(error.value)


def test_a_bigger_model_that_computes_something_else_is_refused():
    inputs = keras.Input((4,))
    hidden = layers.Lambda(lambda x: ops.softmax(x))(layers.Dense(8)(inputs))
    parent = keras.Model(inputs, layers.Dense(2)(hidden))

    def bigger():
        inputs = keras.Input((4,))
        hidden = layers.Lambda(lambda x: ops.softmax(x))(layers.Dense(16)(inputs))
        return keras.Model(inputs, layers.Dense(2)(hidden))

    with pytest.raises(FusionError, match="should compute what its parents do"):
        fuse([parent, parent], into=bigger)


# Functional models of a class of their own.


class Counting(keras.Model):
    """Keras's guide shows this way to a step of one's own."""

    steps = 0

    def train_step(self, *arguments, **options):
        type(self).steps += 1
        return super().train_step(*arguments, **options)


@keras.saving.register_keras_serializable("given")
class WithMethod(keras.Model):
    def twice(self, x):
        return 2 * self(x)


@keras.saving.register_keras_serializable("given")
class WithOwnCall(keras.Model):
    """Its call is not its graph, so that the graph tells nothing."""

    def call(self, inputs, training=None):
        return 3 * super().call(inputs, training=training)


def graph_model(cls, width=8):
    inputs = keras.Input((4,))
    return cls(inputs, layers.Dense(1)(layers.Dense(width, "relu")(inputs)))


def compiled(model):
    model.compile("adam", "mse", jit_compile=False)
    return model


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("cls", [Counting, WithMethod])
def test_functional_subclass_grows(cls, given):
    model = compiled(graph_model(cls))
    into = (lambda: graph_model(cls, 16)) if given else None
    grow = DeepFusion(at_step=2, verbose=0, into=into)
    Counting.steps = 0
    model.fit(X, X[:, :1], batch_size=8, verbose=0, callbacks=[grow])
    assert type(model) is cls and model.layers[1].units == 16
    assert cls is not Counting or Counting.steps > 0


@pytest.mark.parametrize("cls", [Counting, WithMethod])
def test_fused_functional_subclass_is_of_its_class(cls):
    parents = [graph_model(cls), graph_model(cls)]
    fused = fuse(parents)
    assert type(fused) is cls
    mean = (numpy(parents[0](X)) + numpy(parents[1](X))) / 2
    np.testing.assert_allclose(numpy(fused(X)), mean, rtol=1e-4, atol=1e-6)


def test_functional_subclass_within_a_model():
    inputs = keras.Input((4,))
    hidden = graph_model(WithMethod)(layers.Dense(4, "tanh")(inputs))
    model = keras.Model(inputs, layers.Dense(1)(hidden))
    fused = fuse(model, factor=2)
    np.testing.assert_allclose(numpy(fused(X)), numpy(model(X)), rtol=1e-4, atol=1e-6)


def test_functional_subclass_with_a_call_of_its_own_must_be_registered():
    with pytest.raises(FusionError, match="WithOwnCall"):
        fuse(graph_model(WithOwnCall), factor=2)
