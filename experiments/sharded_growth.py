"""Counts the bytes on each device while a sharded model grows.

python -m experiments.sharded_growth [--width 1024] [--output PATH.json]

Eight simulated CPU devices, `keras.distribution.ModelParallel`, Adam's slots included.
Seen after every value that is put on a device and some hundred times a second between:
all live arrays, a buffer that several of them share counted once. Space that a compiled
function needs for a moment is not seen.
"""

import argparse
import json
import os
import threading
from pathlib import Path

if __name__ == "__main__":  # Tests import it, with an environment of their own.
    os.environ["KERAS_BACKEND"] = "jax"
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import keras
import numpy as np

import keras_fusion

DEVICES, LAYERS = 8, 4
RESULTS = Path(__file__).with_name("results") / "sharded_growth.json"


class Watch:
    """The most bytes that were alive on one device during a growth, as its watcher."""

    def __init__(self):
        self.most = self.largest = 0
        self._stop = threading.Event()

    def look(self):
        """Counts now."""
        held, seen = dict.fromkeys(jax.devices(), 0), set()
        for array in jax.live_arrays():
            if array.is_deleted():
                continue
            for shard in array.addressable_shards:
                place = shard.device, shard.data.unsafe_buffer_pointer()
                if place not in seen:
                    seen.add(place)
                    held[shard.device] += shard.data.nbytes
                    self.largest = max(self.largest, shard.data.nbytes)
        self.most = max(self.most, *held.values())

    def _look_often(self):
        while not self._stop.wait(0.005):
            self.look()

    def before_growth(self, callback):
        """Begins to count."""
        put = self._put = keras.Variable._direct_assign
        make = self._make = jax.make_array_from_callback

        def watched_put(variable, value):
            self.look()
            put(variable, value)
            self.look()

        def watched_make(*args, **kwargs):
            array = make(*args, **kwargs)
            self.look()
            return array

        keras.Variable._direct_assign = watched_put
        jax.make_array_from_callback = watched_make
        self._thread = threading.Thread(target=self._look_often)
        self._thread.start()

    def after_growth(self, callback):
        """Ends counting."""
        self._stop.set()
        self._thread.join()
        keras.Variable._direct_assign = self._put
        jax.make_array_from_callback = self._make


def distribution():
    """Kernels of hidden layers over all devices, the rest on each."""
    mesh = keras.distribution.DeviceMesh((1, DEVICES), ("batch", "model"))
    layouts = keras.distribution.LayoutMap(mesh)
    layouts[".*hidden.*kernel"] = (None, "model")
    return keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="batch")


def network(width):
    """A network in which hidden kernels dominate."""
    inputs = keras.Input((16,))
    x = keras.layers.Dense(width, name="first")(inputs)
    for i in range(LAYERS):
        h = keras.layers.LayerNormalization()(x)
        h = keras.layers.Dense(width, activation="gelu", name=f"hidden_{i}")(h)
        x = keras.layers.Add()([x, h])
    model = keras.Model(inputs, keras.layers.Dense(4, name="readout")(x))
    model.compile("adam", "mse")
    return model


def share(model):
    """The most bytes of a model and its optimizer's state on one device."""
    held = dict.fromkeys(jax.devices(), 0)
    for variable in [*model.variables, *model.optimizer.variables]:
        for shard in variable.value.addressable_shards:
            held[shard.device] += shard.data.nbytes
    return max(held.values())


def measure(width):
    """Grows in the middle of an epoch; returns the figures."""
    x = np.random.default_rng(0).standard_normal((32, 16)).astype("float32")
    with distribution().scope():
        keras.utils.set_random_seed(0)
        model = network(width)
        watch, grow = Watch(), keras_fusion.DeepFusion(at_step=2, verbose=0)
        grow.watchers.append(watch)
        before, during, after = grow.preview(model).device_bytes
        model.fit(x, x[:, :4], batch_size=8, callbacks=[grow], verbose=0)
    kernels = [v for v in model.variables if "hidden" in v.path and v.ndim == 2]
    return {
        "keras": keras.__version__,
        "jax": jax.__version__,
        "devices": DEVICES,
        "width": [width, 2 * width],
        "parameters": model.count_params(),
        "grown_share_bytes": share(model),
        "most_bytes_during_growth": watch.most,
        "predicted_bytes": {"before": before, "during": during, "after": after},
        "ratio": round(watch.most / share(model), 3),
        "largest_kernel_bytes": max(4 * int(np.prod(v.shape)) for v in kernels),
        "largest_on_one_device_bytes": watch.largest,
        "sharding": sorted({str(v.value.sharding.spec) for v in kernels}),
    }


def main():
    """Measures, prints, and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    result = measure(options.width)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
