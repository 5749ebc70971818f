"""Trains with the operator of docs/custom_operator.md; kills itself after the growth.

    python custom_operator.py FOLDER KILL

`FOLDER` keeps the backup, `KILL` is the batch of the third epoch at whose end the process
kills itself, or -1. Prints the sha256 of the final weights and the number of growths.
"""

import json
import os
import re
import signal
import sys
from pathlib import Path

import keras
import numpy as np

import keras_fusion
from keras_fusion.models.host import weights_digest

PAGE = Path(__file__).parents[2] / "docs" / "custom_operator.md"
(SOURCE, *_) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
exec(compile(SOURCE, str(PAGE), "exec"))


class Kill(keras.callbacks.Callback):
    """Ends the process as a power cut would."""

    def __init__(self, at):
        super().__init__()
        self.at, self.epoch = at, 0

    def on_epoch_begin(self, epoch, logs=None):
        """Remembers the epoch."""
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        """Kills the process at its batch."""
        if (self.epoch, batch) == (2, self.at):
            os.kill(os.getpid(), signal.SIGKILL)


def main(folder, kill):
    """Trains for four epochs of four batches, with a growth after the second."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(8, activation="relu"),
            keras.layers.LayerNormalization(),
            keras.layers.Dense(2),
        ]
    )
    model.compile("adam", "mse")
    x = np.random.default_rng(0).standard_normal((16, 4)).astype("float32")
    grow = keras_fusion.GrowModel(
        Tile(factor=2),  # noqa: F821, defined by the page
        keras_fusion.AtEpoch(2),
        verbose=0,
    )
    backup = keras_fusion.BackupAndRestore(folder, delete_checkpoint=False)
    callbacks = [backup, grow, Kill(kill)]
    options = {"batch_size": 4, "epochs": 4, "verbose": 0, "shuffle": False}
    model.fit(x, x[:, :2], callbacks=callbacks, **options)
    print(json.dumps([weights_digest(model), len(grow.events), model.count_params()]))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
