"""Times training steps of the studies' small decoder on this backend.

for backend in tensorflow jax torch; do
    KERAS_BACKEND=$backend taskset -c 0 python -m experiments.backend_speed
done

keras-hub's Llama of four layers, 64 wide (0.33M parameters), on 32 rows of 64 tokens.
`taskset` gives each one core; where other work disturbs the wall's time, compare the
processor's.
"""

import argparse
import types

import keras
import numpy as np

from experiments.harness.study import Model, Size
from experiments.harness.tasks import Decoder
from experiments.timing import Clock, clocked, summary

OPTIMIZER = {"name": "AdamW", "beta_2": 0.95, "global_clipnorm": 1.0}
SETTINGS = Model("decoder", OPTIMIZER, row_length=64, batch_size=32)
VOCABULARY = 1024


def main():
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--jit", action="store_true", help="XLA, on TensorFlow")
    options = parser.parse_args()
    vocabulary = types.SimpleNamespace(size=VOCABULARY)
    task = Decoder(SETTINGS, types.SimpleNamespace(vocabulary=vocabulary))
    model = task.compiled(Size(64, 4), 0, 1e-3)
    if keras.config.backend() == "jax" or options.jit:
        model.jit_compile = True
    rows = np.random.default_rng(0).integers(0, VOCABULARY, (32 * options.steps, 65))
    x, y, _ = task.example(rows.astype("int32"), None)
    clock = Clock()
    fit = {"batch_size": 32, "verbose": 0, "shuffle": False, "callbacks": [clock]}
    whole, _ = clocked(lambda: model.fit(x, y, **fit))
    found = summary({"step": clock.seconds[3:]})["step"]
    steady = found["seconds"] * options.steps
    print(
        f"{keras.config.backend()}{' (XLA)' * options.jit}: {model.count_params():,} "
        f"parameters, {1e3 * found['processor_seconds']:.1f} ms of the processor and "
        f"{1e3 * found['seconds']:.1f} ms of wall time per step; starting took "
        f"{whole - steady:.1f} s"
    )


if __name__ == "__main__":
    main()
