"""One of the processes of a run on JAX, four devices together, with a growth in `fit`.

Usage: python processes_of_one_run.py OUTPUT.npz PORT COUNT RANK. Trains under
`DataParallel`, then under a `ModelParallel` whose shards lie in all processes, and saves
the final weights. Each process must be given its share of the devices (`XLA_FLAGS`).
"""

import contextlib
import io
import json
import sys

import keras
import numpy as np
from jax.experimental import multihost_utils

import keras_fusion
from experiments import runs_of_processes
from keras_fusion.models import shards
from keras_fusion.t5 import __main__ as command_line

OUTPUT, PORT, COUNT, RANK = sys.argv[1], *map(int, sys.argv[2:])
BATCH, STEPS = 8, 4


def data_parallel():
    return keras.distribution.DataParallel(auto_shard_dataset=False)


def model_parallel():
    """Kernels over all devices, and so over all processes."""
    return runs_of_processes.model_parallel(
        {
            "sequential/dense/kernel": (None, "model"),
            "sequential/dense_1/kernel": ("model", None),
        }
    )


def own_part(array):
    """This process's examples of each batch."""
    batches = array.reshape(STEPS, COUNT, BATCH // COUNT, *array.shape[1:])
    return batches[:, RANK].reshape(-1, *array.shape[1:])


def train(distribution):
    keras.backend.clear_session()
    keras.distribution.set_distribution(distribution)
    keras.utils.set_random_seed(0)
    sizes = [keras.layers.Dense(8, activation="relu"), keras.layers.Dense(4)]
    model = keras.Sequential([keras.Input((6,)), *sizes])
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse")
    # The processes draw different seeds for the noise, and must agree on one.
    np.random.seed(RANK)
    grow = keras_fusion.DeepFusion(at_step=2)
    x = np.random.default_rng(0).standard_normal((BATCH * STEPS, 6), "float32")
    y, batch_size = x[:, :4], BATCH
    if distribution.num_model_replicas > 1:
        x, y, batch_size = own_part(x), own_part(y), BATCH // COUNT
    options = {"batch_size": batch_size, "shuffle": False, "verbose": 0}
    with shards.used(True):  # The devices of all processes make their parts.
        model.fit(x, y, callbacks=[grow], **options)
    weights = [
        multihost_utils.process_allgather(v.value, tiled=True) for v in model.weights
    ]
    return weights, {
        "change": grow.events[0].function_change,
        "specs": {v.path: str(v.value.sharding.spec) for v in model.weights},
        "whole": [v.value.is_fully_addressable for v in model.weights],
    }


def pretrain():
    """What T5's command says in one of several processes."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        status = command_line.main(
            [
                "pretrain",
                "--scale",
                "tiny",
                "--tree",
                "M(S, S)",
                "--output",
                f"{OUTPUT}-t5",
            ]
        )
    return [status, said.getvalue()]


def main():
    runs_of_processes.join(PORT, COUNT, RANK)
    weights, reports = {}, {}
    for name, make in ("data", data_parallel), ("model", model_parallel):
        values, reports[name] = train(make())
        weights |= {f"{name}/{i}": value for i, value in enumerate(values)}
    if RANK == 0:
        np.savez(OUTPUT, **weights)
    if COUNT > 1:
        reports["pretrain"] = pretrain()
    print(json.dumps(reports))


if __name__ == "__main__":
    main()
