"""A grown model loads, and trains on, where keras_fusion was never imported."""

import json

import keras
import numpy as np
import pytest
from models import KINDS, data_for, loss, outputs
from processes import run_code

from keras_fusion import DeepFusion

pytestmark = pytest.mark.eager

SCRIPT = """
import json, sys
import numpy as np
import keras
if sys.argv[2] == "hub":
    import keras_hub
model = keras.saving.load_model(sys.argv[1] + "/model.keras")
with np.load(sys.argv[1] + "/data.npz") as data:
    x = {k[2:]: data[k] for k in data if k.startswith("x_")}
    x = x if "" not in x else x[""]
    y = data["y"]
predictions = keras.ops.convert_to_numpy(model(x))
parameters = model.count_params()
if sys.argv[2] == "hub":
    # A task's compile() is not called by load_model; the state waits in the file.
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss)
    model.optimizer.build(model.trainable_variables)
    model.load_weights(sys.argv[1] + "/model.keras")
iterations = int(keras.ops.convert_to_numpy(model.optimizer.iterations))
model.reset_metrics()
losses = [float(np.ravel(model.train_on_batch(x, y))[0]) for _ in range(3)]
np.save(sys.argv[1] + "/predictions.npy", predictions)
assert "keras_fusion" not in sys.modules
print(json.dumps([parameters, iterations, losses]))
"""


@pytest.mark.parametrize("kind", ["functional", "sequential", "t5", "gpt2"])
def test_reload_without_keras_fusion(kind, tmp_path):
    model = KINDS[kind]()
    x, y = data_for(kind, 16)
    model.compile(keras.optimizers.Adam(0.01), loss())
    grow = DeepFusion(at_step=2, seed=0, verbose=0)
    model.fit(x, y, batch_size=4, verbose=0, shuffle=False, callbacks=[grow])
    model.save(tmp_path / "model.keras")
    named = x if isinstance(x, dict) else {"": x}
    np.savez(tmp_path / "data.npz", y=y, **{f"x_{k}": v for k, v in named.items()})
    library = "hub" if kind in ("t5", "gpt2") else "keras"
    backend = keras.config.backend()
    printed = run_code(SCRIPT, tmp_path, library, KERAS_BACKEND=backend)
    parameters, iterations, losses = json.loads(printed.splitlines()[-1])
    assert parameters == model.count_params()
    again = np.load(tmp_path / "predictions.npy")
    np.testing.assert_allclose(again, outputs(model, x), atol=1e-6)
    assert iterations == 4
    model.reset_metrics()
    own = [float(np.ravel(model.train_on_batch(x, y))[0]) for _ in range(3)]
    np.testing.assert_allclose(losses, own, rtol=1e-4)
