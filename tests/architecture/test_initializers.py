"""Initializers of one shape only: the grown model has others, and its file loads."""

import keras
import numpy as np
import pytest
from keras import initializers, layers
from models import numpy

from keras_fusion import DeepFusion, fuse

pytestmark = pytest.mark.core

TABLE = np.random.default_rng(0).standard_normal((20, 8)).astype("float32")
IDS = np.random.default_rng(1).integers(0, 20, (32, 6))


@keras.saving.register_keras_serializable("initializers")
class FromTable(initializers.Initializer):
    """Gives a table, and nothing of another shape."""

    def __init__(self, rows):
        self.rows = rows

    def __call__(self, shape, dtype=None):
        values = np.asarray(self.rows, "float32")
        assert values.shape == tuple(shape), f"{values.shape} is not {shape}"
        return keras.ops.convert_to_tensor(values, dtype)

    def get_config(self):
        return {"rows": np.asarray(self.rows).tolist()}


@keras.saving.register_keras_serializable("initializers")
def from_table(shape, dtype=None):
    assert tuple(shape) == TABLE.shape, shape
    return keras.ops.convert_to_tensor(TABLE, dtype)


TABLES = {
    "constant": lambda: initializers.Constant(TABLE),
    "constant list": lambda: initializers.Constant(TABLE.tolist()),
    "constant row": lambda: initializers.Constant(TABLE[0]),
    "own class": lambda: FromTable(TABLE),
    "function": lambda: from_table,
}


def net(initializer, trainable):
    inputs = keras.Input((6,), dtype="int32")
    x = layers.Embedding(20, 8, initializer, trainable=trainable)(inputs)
    return keras.Model(inputs, layers.Dense(1)(layers.GlobalAveragePooling1D()(x)))


def assert_loads(model, path, x):
    model.save(path)
    again = keras.models.load_model(path)
    np.testing.assert_allclose(numpy(again(x)), numpy(model(x)), rtol=1e-5, atol=1e-6)


@pytest.mark.core("True-own class", "False-constant row")
@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("trainable", [False, True])
def test_table_of_an_embedding(kind, trainable, tmp_path):
    model = net(TABLES[kind](), trainable)
    model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
    grow = DeepFusion(at_step=2, verbose=0)
    model.fit(IDS, IDS[:, :1], batch_size=8, verbose=0, callbacks=[grow])
    assert model.layers[1].output_dim == 16
    model.compile("sgd", "mse")  # Of the weights alone.
    assert_loads(model, tmp_path / "grown.keras", IDS)


@pytest.mark.parametrize("kind", ["constant", "function"])
def test_new_capacity_gets_values(kind, tmp_path):
    model = net(TABLES[kind](), True)
    fused = fuse(model, factor=1.5)
    np.testing.assert_allclose(numpy(fused(IDS)), numpy(model(IDS)), rtol=1e-4)
    assert_loads(fused, tmp_path / "grown.keras", IDS)


def test_initializers_that_fit_stay(tmp_path):
    """Also a constant number, and a table of what does not grow."""
    x = np.random.default_rng(0).standard_normal((4, 4)).astype("float32")
    inputs = keras.Input((4,))
    hidden = layers.Dense(8, bias_initializer=initializers.Constant(0.5))(inputs)
    bias = initializers.Constant(np.arange(3.0))
    outputs = layers.Dense(3, "tanh", bias_initializer=bias)(hidden)
    fused = fuse(keras.Model(inputs, outputs), factor=2)
    assert fused.layers[1].bias_initializer.value == 0.5
    assert np.shape(fused.layers[2].bias_initializer.value) == (3,)
    assert_loads(fused, tmp_path / "grown.keras", x)


def test_kernel_whose_input_alone_grows(tmp_path):
    x = np.random.default_rng(0).standard_normal((4, 4)).astype("float32")
    inputs = keras.Input((4,))
    kernel = initializers.Constant(TABLE[:8, :3])
    outputs = layers.Dense(3, kernel_initializer=kernel)(layers.Dense(8)(inputs))
    assert_loads(fuse(keras.Model(inputs, outputs), factor=2), tmp_path / "m.keras", x)
