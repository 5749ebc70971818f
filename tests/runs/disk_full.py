"""A run whose disk is full from the second backup on; it does not come to its end.

Usage: python disk_full.py FOLDER
"""

import resource
import sys

import keras
from fitting import fit, live_model

import keras_fusion


class Full(keras.callbacks.Callback):
    """From the second epoch on no file may become larger."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))


backup = keras_fusion.BackupAndRestore(sys.argv[1])
grow = keras_fusion.DeepFusion(at_step=3, verbose=0)
fit(live_model(), backup, grow, Full(), epochs=3)
