"""One of two workers under `MultiWorkerMirroredStrategy`, with a growth in `fit`.

Usage: python workers.py OUTPUT.npz RANK; `TF_CONFIG` tells the rest. Trains what
`mirrored.py` does, and saves the final weights of this worker.
"""

import json
import sys

import models
import numpy as np
import tensorflow as tf
from mirrored import CASES, train

import keras_fusion


def main(output, rank):
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    with keras_fusion.multi_worker_fit():
        # The workers draw different seeds for the noise, and must agree on one.
        model, report = train(*CASES["functional"], strategy, draw=int(rank))
        x, y = models.data_for("functional", 8)
        report["loss"] = model.evaluate(x, y, batch_size=8, verbose=0)
    np.savez(output, *models.values(model))
    print(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
