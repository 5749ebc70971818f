"""A second optimizer, wherever a model keeps it, is refused when training begins."""

import types

import keras
import numpy as np
import pytest

from keras_fusion import DeepFusion, FusionError

pytestmark = pytest.mark.core

X = np.random.default_rng(0).standard_normal((16, 4)).astype("float32")


def net(*widths):
    inputs = keras.Input((4,))
    x = inputs
    for width in widths:
        x = keras.layers.Dense(width, "relu")(x)
    return keras.Model(inputs, keras.layers.Dense(1)(x))


class Pair(keras.Model):
    """Two networks, trained by a step of the class's own."""

    def __init__(self, width=8):
        super().__init__()
        self.width = width
        self.first, self.second = net(width), net(width)

    def call(self, x):
        return self.first(x) + self.second(x)

    def train_step(self, *arguments):
        return super().train_step(*arguments)


def pair(width=8):
    model = Pair(width)
    model(X)
    return model


def in_a_dict(model, optimizer):
    model.optimizers = {"critic": optimizer}


def in_a_list(model, optimizer):
    model.optimizers = [optimizer]


def in_nested_containers(model, optimizer):
    model.state = {"train": [{"critic": optimizer}]}


def in_an_object(model, optimizer):
    model.options = types.SimpleNamespace(critic=optimizer)


def in_a_sub_model(model, optimizer):
    model.second.compile(optimizer, "mse")


def in_a_layer(model, optimizer):
    model.second.layers[1].own_optimizer = optimizer


PLACES = {
    in_a_dict: r"optimizers\['critic'\]",
    in_a_list: r"optimizers\[0\]",
    in_nested_containers: r"state\['train'\]\[0\]\['critic'\]",
    in_an_object: r"options\.critic",
    in_a_sub_model: r"second\.optimizer",
    in_a_layer: r"own_optimizer",
}


def fit(model, **options):
    grow = DeepFusion(at_step=2, verbose=0, into=lambda: pair(16), **options)
    model.fit(X, X[:, :1], batch_size=4, verbose=0, callbacks=[grow])


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_second_optimizer_is_refused_by_its_place(place):
    model = pair()
    model.compile("adam", "mse")
    place(model, keras.optimizers.SGD(0.1))
    before = model.count_params()
    with pytest.raises(FusionError, match=f"second optimizer.*{PLACES[place]}"):
        fit(model)
    assert model.count_params() == before and int(model.optimizer.iterations) == 0


def test_the_models_own_optimizer_may_have_other_names():
    model = pair()
    model.compile("adam", "mse")
    model.optimizers = {"main": model.optimizer}
    fit(model)
    assert model.first.layers[1].units == 16


def test_a_sub_model_may_have_been_trained_on_its_own():
    """Keras's own step does not use the optimizer that it was compiled with."""
    encoder = net(8)
    encoder.compile("sgd", "mse")
    encoder.fit(X, X[:, :1], verbose=0)
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(1)(encoder(inputs)))
    model.compile("adam", "mse")
    grow = DeepFusion(at_step=2, verbose=0)
    model.fit(X, X[:, :1], batch_size=4, verbose=0, callbacks=[grow])
    assert len(grow.events) == 1
