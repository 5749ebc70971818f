"""Bytes on each device while a sharded model grows, against the grown model's share.

python benchmarks/sharded_growth.py [--width 1024] [--plain] [--output PATH.json]

Eight simulated CPU devices, `keras.distribution.ModelParallel`, Adam's slots included.
Seen after every value that is put on a device and some hundred times a second between:
all live arrays, a buffer that several of them share counted once. Space that a compiled
function needs for a moment is not seen.
"""

import argparse
import contextlib
import json
import os
import threading
from pathlib import Path

os.environ["KERAS_BACKEND"] = "jax"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import keras
import numpy as np

import keras_fusion
from keras_fusion.models import host, private
from keras_fusion.models.private import deferral

DEVICES, LAYERS = 8, 4
RESULTS = Path(__file__).with_name("results") / "sharded_growth.json"


class Watch:
    """The most bytes that were alive on one device while the watch was on."""

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

    def __enter__(self):
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
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        keras.Variable._direct_assign = self._put
        jax.make_array_from_callback = self._make


class Grow(keras_fusion.DeepFusion):
    """Grows under watch."""

    def grow(self):
        """As always, and keeps what was seen."""
        with Watch() as self.watch:
            return super().grow()


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
        grow = Grow(at_step=2, verbose=0)
        model.fit(x, x[:, :4], batch_size=8, callbacks=[grow], verbose=0)
    kernels = [v for v in model.variables if "hidden" in v.path and v.ndim == 2]
    return {
        "keras": keras.__version__,
        "jax": jax.__version__,
        "devices": DEVICES,
        "width": [width, 2 * width],
        "parameters": model.count_params(),
        "grown_share_bytes": share(model),
        "most_bytes_during_growth": grow.watch.most,
        "ratio": round(grow.watch.most / share(model), 3),
        "largest_kernel_bytes": max(4 * int(np.prod(v.shape)) for v in kernels),
        "largest_on_one_device_bytes": grow.watch.largest,
        "sharding": sorted({str(v.value.sharding.spec) for v in kernels}),
    }


def make_plain():
    """Makes and assigns values as Keras does it by itself, to compare with."""
    private.without_values = deferral.without_values = contextlib.nullcontext
    host.write = lambda variable, value: variable.assign(value)


def main():
    """Measures, prints, and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--plain", action="store_true", help=make_plain.__doc__)
    parser.add_argument("--output", type=Path, default=RESULTS, help="not if --plain")
    options = parser.parse_args()
    if options.plain:
        make_plain()
    result = measure(options.width)
    if not options.plain:
        options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
