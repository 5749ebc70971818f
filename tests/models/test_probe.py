"""The probe: generated inputs that a model accepts, on every backend alike."""

import keras
import pytest
from models import LENGTH, bert, functional

from keras_fusion import FusionError
from keras_fusion.models import probe, samples


@pytest.mark.core
def test_ids_that_a_table_does_not_have_are_refused_and_not_looked_up():
    with pytest.raises(
        FusionError, match="(?s)accepts no generated inputs.* has 2 rows"
    ):
        samples.accepted(bert(), size=8, ids=20)
    inputs = samples.accepted(bert(), size=8, ids=2)
    assert {int(value.max()) for value in inputs.values()} == {1}


@pytest.mark.core
def test_a_checked_model_is_as_it_was():
    model = functional()
    inputs = samples.accepted(model)
    assert inputs.shape == (2, LENGTH)
    assert all("call" not in vars(layer) for layer in model.layers)


class Mapped(keras.layers.Layer):
    """Looks ids up row by row, in a call that the backend traces."""

    def __init__(self):
        super().__init__()
        self.table = keras.layers.Embedding(2, 4)

    def build(self, shape):
        self.table.build(shape)

    def call(self, ids):
        return keras.ops.vectorized_map(self.table, ids)


@pytest.mark.core
def test_ids_without_values_are_not_checked():
    inputs = keras.Input((LENGTH,), dtype="int32")
    model = keras.Model(inputs, Mapped()(inputs))
    assert samples.accepted(model).shape == (2, LENGTH)


class Noisy(keras.layers.Layer):
    """Adds noise whenever it is called."""

    def __init__(self):
        super().__init__()
        self.seeds = keras.random.SeedGenerator(1)

    def call(self, x):
        return x + keras.random.normal(keras.ops.shape(x), seed=self.seeds)


@pytest.mark.core
def test_random_models_are_recognized():
    inputs = keras.Input((4,))
    x = keras.layers.Dense(4)(inputs)
    still = keras.Model(inputs, keras.layers.Dropout(0.5)(x))
    noisy = keras.Model(inputs, Noisy()(x))
    assert not probe.is_random(still, probe.batch(still))
    assert probe.is_random(noisy, probe.batch(noisy))
