"""Growth under TensorFlow's distribution strategies, in processes of their own."""

import json
import os
import subprocess
import sys

import keras
import pytest

SCRIPT = """
import json
import keras, numpy as np, tensorflow as tf
import keras_fusion

cpu = tf.config.list_physical_devices("CPU")[0]
two = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(cpu, two)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert strategy.num_replicas_in_sync == 2

keras.utils.set_random_seed(0)
with strategy.scope():
    inputs = keras.Input((6,), dtype="int32")
    x = keras.layers.Embedding(20, 8)(inputs)
    h = keras.layers.LayerNormalization()(x)
    x = x + keras.layers.MultiHeadAttention(2, 4)(h, h)
    x = x + keras.layers.Dense(8)(keras.layers.Dense(16, activation="gelu")(x))
    model = keras.Model(inputs, keras.layers.Dense(20)(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss)
grow = keras_fusion.DeepFusion(at_step=[2, 9], seed=0, verbose=0)
ids = np.random.default_rng(0).integers(0, 20, (48, 6))
history = model.fit(ids, ids, batch_size=8, epochs=2, verbose=0, callbacks=[grow])
mirrored = [type(v.value).__name__ for v in model.trainable_variables]
moments = [type(v.value).__name__ for v in model.optimizer.variables]
print(json.dumps({
    "steps": [e.step for e in grow.events],
    "changes": [e.function_change for e in grow.events],
    "width": model.layers[1].output_dim,
    "losses": history.history["loss"],
    "mirrored": sorted(set(mirrored)) + sorted(set(moments)),
    "iterations": int(keras.ops.convert_to_numpy(model.optimizer.iterations)),
}))
"""


@pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="TensorFlow's strategies"
)
def test_mirrored_strategy():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["steps"] == [2, 9] and result["iterations"] == 12
    assert result["width"] == 32 and max(result["changes"]) < 1e-5
    assert result["losses"][1] < result["losses"][0]
    # The grown variables are copies on both devices, as the small ones were.
    assert all("Mirrored" in name for name in result["mirrored"])
