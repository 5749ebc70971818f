"""Factors on the learning rate that are no finite positive numbers."""

import json

import keras
import numpy as np
import pytest
from keras import layers
from models import values

from keras_fusion import DeepFusion, FusionError

pytestmark = [pytest.mark.core, pytest.mark.eager]

X = np.random.default_rng(0).standard_normal((32, 4)).astype("float32")


def made(rate=0.001):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(8), layers.Dense(1)])
    model.compile(keras.optimizers.Adam(rate), "mse", jit_compile=False)
    return model


def fit(model, *callbacks, epochs=1):
    options = {"batch_size": 8, "verbose": 0, "shuffle": False}
    return model.fit(X, X[:, :1], epochs=epochs, callbacks=list(callbacks), **options)


class Remember(keras.callbacks.Callback):
    """The weights after the second step, before a growth."""

    def on_train_batch_end(self, batch, logs=None):
        if batch == 1:
            if hasattr(self.model, "jax_state_sync"):
                self.model.jax_state_sync()
            self.values = values(self.model)


BAD = {
    "None": None,
    "text": "half",
    "two numbers": [0.5, 0.5],
    "NaN": float("nan"),
    "infinite": float("inf"),
    "zero": 0.0,
    "negative": -1.0,
    "too large for the rate": 1e60,
    "too small for the rate": 1e-60,
}


@pytest.mark.parametrize("case", BAD)
def test_bad_measured_factor_undoes_the_growth(case, tmp_path):
    path, before, model = tmp_path / "growth.json", Remember(), made()
    grow = DeepFusion(
        at_step=2,
        learning_rate_factor=lambda model, blocks, optimizer: BAD[case],
        record=path,
        verbose=0,
    )
    with pytest.raises(FusionError, match="has not grown"):
        fit(model, before, grow)
    assert model.layers[0].units == 8 and grow.events == [] and grow.blocks is None
    assert float(model.optimizer.learning_rate) == np.float32(0.001)
    for ours, theirs in zip(values(model), before.values, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert not path.exists()
    # The run goes on with a factor that works.
    grow.learning_rate_factor = 0.5
    fit(model, grow)
    assert model.layers[0].units == 16 and len(grow.events) == 1
    assert float(model.optimizer.learning_rate) == np.float32(0.0005)


def test_second_growth_with_a_bad_factor_leaves_the_first_on_record(tmp_path):
    path, factors = tmp_path / "growth.json", iter([0.5, float("nan")])
    grow = DeepFusion(
        at_step=[2, 3],
        learning_rate_factor=lambda model, blocks, optimizer: next(factors),
        record=path,
        verbose=0,
    )
    model = made()
    with pytest.raises(FusionError, match="Received: nan"):
        fit(model, grow)
    (change,) = json.loads(path.read_text())["body"]["changes"]
    assert change["step"] == 2 and change["ramps"][0]["factor"] == 0.5
    assert [event.step for event in grow.events] == [2]
    assert model.layers[0].units == 16


@pytest.mark.parametrize("factor", [1e60, 1e-60])
def test_constant_that_makes_the_rate_useless(factor):
    model = made()
    with pytest.raises(FusionError, match="must be finite and positive"):
        fit(model, DeepFusion(at_step=2, learning_rate_factor=factor, verbose=0))
    assert model.layers[0].units == 8


def test_numbers_of_every_kind_are_factors():
    for factor in 0.5, np.float32(0.5), np.array([0.5]), keras.ops.array(0.5):
        model, grow = (
            made(),
            DeepFusion(
                at_step=2,
                learning_rate_factor=lambda *_, factor=factor: factor,
                verbose=0,
            ),
        )
        fit(model, grow)
        assert float(model.optimizer.learning_rate) == np.float32(0.0005)
