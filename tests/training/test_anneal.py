"""Block-wise norms that become the stock norms of one wide model, in steps."""

import keras
import numpy as np
import pytest
from keras import layers
from models import data_for, loss, numpy, outputs, relative_change
from processes import run_code
from transformers import transformer

from keras_fusion import AnnealBlockNorms, DeepFusion, FusionError, fuse

LOAD = """
import sys, numpy as np, keras
model = keras.saving.load_model(sys.argv[1] + "/model.keras")
x = np.load(sys.argv[1] + "/x.npy")
np.save(sys.argv[1] + "/y.npy", keras.ops.convert_to_numpy(model(x)))
assert "keras_fusion" not in sys.modules
"""


@pytest.mark.core("RMSNormalization")
@pytest.mark.parametrize("norm", ["LayerNormalization", "RMSNormalization"])
def test_annealing_ends_in_a_stock_model(norm, tmp_path):
    parents = [transformer("encoder", 8, i, getattr(layers, norm)) for i in range(2)]
    x, y = data_for("functional", 48)
    for parent in parents:
        parent.compile(keras.optimizers.Adam(0.01), loss())
        parent.fit(x, y, batch_size=8, verbose=0)
    live, partner = parents
    blends = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            norms = [v for v in self.model.variables if v.name == "blend"]
            blends.append(float(numpy(norms[0])) if norms else None)

    grow = DeepFusion(at_step=8, partners=[partner], norms="block", seed=0, verbose=0)
    anneal = AnnealBlockNorms(steps=4)
    stop = keras.callbacks.EarlyStopping(
        monitor="loss", patience=9, restore_best_weights=True
    )
    live.fit(
        x,
        y,
        batch_size=8,
        epochs=2,
        verbose=0,
        callbacks=[grow, anneal, Watch(), stop],
    )
    assert grow.events[0].function_change < 1e-5
    np.testing.assert_allclose(blends[2:6], [0.25, 0.5, 0.75, 1.0], atol=1e-6)
    assert blends[:2] + blends[6:] == [None] * len(blends[:2] + blends[6:])
    assert int(numpy(live.optimizer.iterations)) == 18
    assert not any("keras_fusion" in type(a).__module__ for a in live.layers)
    live.save(tmp_path / "model.keras")
    np.save(tmp_path / "x.npy", x)
    run_code(LOAD, tmp_path, KERAS_BACKEND=keras.config.backend())
    again = np.load(tmp_path / "y.npy")
    np.testing.assert_allclose(again, outputs(live, x), atol=1e-6)


def test_the_end_of_the_annealing_changes_nothing():
    """The stock model continues exactly where the blended one stood."""
    parents = [transformer("encoder", 8, seed) for seed in range(2)]
    fused = fuse(parents, norms="block")
    x, y = data_for("functional", 8)
    seen = {}

    class Before(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen["outputs"] = outputs(self.model, x)

    fused.compile("sgd", loss())
    fused.fit(x, y, verbose=0, callbacks=[Before(), AnnealBlockNorms(steps=1)])
    assert type(fused.layers[2]) is layers.LayerNormalization
    assert relative_change(seen["outputs"], outputs(fused, x)) < 1e-5


def test_steps_must_be_positive():
    with pytest.raises(FusionError, match="steps=0"):
        AnnealBlockNorms(steps=0)
