"""Writes the files of this folder, with the keras_fusion that is installed.

They were written by keras_fusion 0.1.0; `test_saved_files.py` loads them with the
keras_fusion of today. To add what a new release saves, run this in an empty folder:

    KERAS_BACKEND=tensorflow python write.py FOLDER
"""

import json
import sys
from pathlib import Path

import keras
import numpy as np

import keras_fusion as kf


def build(units=4):
    """A small network with both norms that can be block-wise."""
    inputs = keras.Input((3,))
    x = keras.layers.Dense(units)(inputs)
    x = x + keras.layers.Dense(units, "relu")(keras.layers.LayerNormalization()(x))
    x = keras.layers.RMSNormalization()(x)
    return keras.Model(inputs, keras.layers.Dense(2)(x))


def data():
    """Inputs of shape (16, 3) and targets of shape (16, 2)."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((16, 3)).astype("float32")
    return x, x[:, :2]


def callbacks(folder):
    """The callbacks of the run that was cut off, and of the one that resumes it."""
    return [
        kf.BackupAndRestore(folder / "backup", delete_checkpoint=False),
        kf.DeepFusion(at_step=3, off_diagonal_scale=0.1, seed=1, verbose=0),
    ]


def recorded(folder):
    """A callback whose growths are on record."""
    operator = kf.HyperCloning(noise=0.1, seed=2)
    return kf.GrowModel(
        operator, kf.AtStep(2), record=folder / "record.json", verbose=0
    )


def configured():
    """Callbacks and operators with other than default arguments, by name."""
    width = kf.FusionOperator(factor=3, off_diagonal_scale=0.5, seed=7)
    made = {
        "DeepFusion": kf.DeepFusion(at_epoch=2, factor=1.5, off_diagonal_scale=0.3),
        "AnnealBlockNorms": kf.AnnealBlockNorms(steps=9),
        "GrowModel": kf.GrowModel(width, kf.OnPlateau("loss", patience=2)),
        "HyperCloning": kf.HyperCloning(factor=3, noise=0.2, seed=1),
        "Net2Net": kf.Net2Net(factor=1.5, draw="random", exact=False, noise=0.3),
        "StagedTraining": kf.StagedTraining(noise=0.4, seed=3),
        "ZeroPadding": kf.ZeroPadding(factor=3),
        "Lemon": kf.Lemon(factor=3, spread=0.1, noise=0.6, seed=4),
        "DepthStacking": kf.DepthStacking(factor=3, order="interleaved"),
    }
    both = kf.Chain([kf.HyperCloning(noise=0.1), kf.DepthStacking(identity=True)])
    return made | {"Chain": both}


def compiled(model):
    """The model, compiled with a schedule that will be ramped."""
    rate = keras.optimizers.schedules.CosineDecay(0.01, 100)
    model.compile(keras.optimizers.Adam(rate), "mse")
    return model


def main(folder):
    """Writes all files."""
    keras.utils.set_random_seed(0)
    x, y = data()
    configs = {
        name: keras.saving.serialize_keras_object(thing)
        for name, thing in configured().items()
    }
    (folder / "configs.json").write_text(json.dumps(configs, indent=1))

    fused = kf.fuse([build(4), build(6)], norms="block")
    fused.save(folder / "block_norms.keras")

    grown = compiled(build())
    half = kf.DeepFusion(
        at_step=2, seed=0, learning_rate_factor=0.5, rewarmup_steps=20, verbose=0
    )
    grown.fit(x, y, batch_size=4, verbose=0, callbacks=[half])
    grown.save(folder / "grown.keras")

    run = compiled(build())
    run.fit(x, y, batch_size=4, epochs=2, verbose=0, callbacks=callbacks(folder))
    stopped = compiled(build())
    stopped.fit(x, y, batch_size=4, verbose=0, callbacks=[recorded(folder)])
    stopped.save_weights(folder / "recorded.weights.h5")
    outputs = {
        "block_norms": fused.predict(x, verbose=0),
        "grown": grown.predict(x, verbose=0),
        "resumed": run.predict(x, verbose=0),
        "recorded": stopped.predict(x, verbose=0),
    }
    np.savez(folder / "outputs.npz", **outputs)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
