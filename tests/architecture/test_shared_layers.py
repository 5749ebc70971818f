"""A layer at several places, or in several models, and nested models as last layers."""

import keras
import pytest
from bodies import (
    ROW,
    around,
    assert_copies_fuse,
    assert_distinct_fuse,
    assert_refused,
    batch,
    dense,
)
from keras import layers, ops
from models import outputs, perturbed, relative_change

from keras_fusion import fuse

pytestmark = pytest.mark.core


# One layer at several places.


def called_twice(x, units):
    layer = layers.Dense(4, "tanh")
    return dense(layer(layer(x)), units, "relu")


def norm_called_twice(x, units):
    norm = layers.BatchNormalization()
    return dense(norm(dense(norm(x), 4, "tanh")), units, "relu")


def in_two_orders(x, units):
    one, other, layer = dense(x, 4), dense(x, 12), layers.Dense(units, "tanh")
    join = layers.Concatenate()
    return layer(join([one, other])) + layer(join([other, one]))


def nested_called_twice(x, units):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, dense(dense(inputs, units, "relu"), 4, "tanh"))
    return model(model(x))


SHARED = {
    "on inputs and hidden features": called_twice,
    "a norm": norm_called_twice,
    "in two orders": in_two_orders,
}


@pytest.mark.parametrize("name", SHARED)
def test_a_layer_called_on_features_of_two_kinds(name):
    assert_copies_fuse(SHARED[name], ROW)
    message = "is called on features that grow and on others"
    assert_refused(SHARED[name], ROW, message, distinct=True)


def test_a_nested_model_called_on_inputs_and_hidden_features():
    assert_copies_fuse(nested_called_twice, ROW)


def test_where_only_such_a_layer_could_grow_it_is_named():
    def body(x, units):
        layer = layers.Dense(4, name="twice")
        return layer(layer(x))

    assert_refused(body, ROW, "'twice' of class Dense is called on features that grow")


def shared_by_two_models(x, units):
    layer = layers.Dense(units, "tanh")
    inputs = [keras.Input((4,)) for _ in range(2)]
    models = [
        keras.Model(i, dense(layer(i), 4 + 2 * k, "relu")) for k, i in enumerate(inputs)
    ]
    return layers.Concatenate()([model(x) for model in models])


def in_and_outside_of_a_model(x, units):
    layer, inputs = layers.Dense(units, "tanh"), keras.Input((4,))
    return keras.Model(inputs, layer(inputs))(x) + dense(layer(x), units)


@pytest.mark.parametrize("body", [shared_by_two_models, in_and_outside_of_a_model])
def test_a_layer_that_several_models_share(body):
    fused = assert_copies_fuse(body, ROW)
    assert_distinct_fuse(body, ROW)
    assert len({id(v) for v in fused.weights}) == len(around(body, ROW).weights)


def test_a_layer_twice_in_a_sequential_model():
    layer = layers.Dense(4, "tanh")
    stack = [keras.Input((4,)), layer, layer, layers.Dense(6, "relu"), layers.Dense(2)]
    model = perturbed(keras.Sequential(stack))
    fused = fuse(model, factor=2)
    assert (
        relative_change(outputs(model, batch(ROW)), outputs(fused, batch(ROW))) < 1e-5
    )


# Nested models as last layers.


def mlp(inputs, units):
    x = keras.Input((inputs,))
    return keras.Model(x, dense(dense(x, 6, "relu"), units))


def autoencoder():
    x = keras.Input((4,))
    return keras.Model(x, mlp(2, 4)(mlp(4, 2)(x)))


def called_for_each_input():
    x, y, model = keras.Input((4,)), keras.Input((4,)), mlp(4, 2)
    return keras.Model([x, y], [model(x), model(y)])


NESTED = {
    "autoencoder": autoencoder,
    "sequential": lambda: keras.Sequential([keras.Input((4,)), mlp(4, 2)]),
    "two inputs": called_for_each_input,
    "in a nested one": lambda: keras.Sequential([keras.Input((4,)), autoencoder()]),
}


@pytest.mark.parametrize("name", NESTED)
def test_a_nested_model_as_last_layer(name):
    model = perturbed(NESTED[name]())
    x = [batch(ROW, i) for i in range(len(model.inputs))]
    x = x if len(x) > 1 else x[0]
    fused = fuse(model, factor=2)
    assert fused.count_params() > model.count_params()
    for before, after in zip(
        keras.tree.flatten(model(x)), keras.tree.flatten(fused(x)), strict=True
    ):
        before, after = (ops.convert_to_numpy(y) for y in (before, after))
        assert relative_change(before, after) < 1e-5
