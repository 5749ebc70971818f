"""Counts the bytes on each device while a sharded model grows.

python -m experiments.sharded_growth [--width 1024] [--output PATH.json]
python -m experiments.sharded_growth --times --width 4096 --layers 2   # two ways to fill

Eight simulated CPU devices, `keras.distribution.ModelParallel`, Adam's slots included.
Seen after every value that is put on a device and some hundred times a second between:
all live arrays, a buffer that several of them share counted once. What the programs of the
growth need for themselves is what their compiler says.

`--times` grows by values made on the devices and by values made in the host's memory in
turn, six times each, and compares the medians; the first time, which includes compiling,
is told apart.
"""

import argparse
import gc
import json
import os
import statistics
import threading
import time
from pathlib import Path

if __name__ == "__main__":  # Tests import it, with an environment of their own.
    os.environ["KERAS_BACKEND"] = "jax"
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import keras
import numpy as np

import keras_fusion
from keras_fusion import graft
from keras_fusion.models import shards
from keras_fusion.values import device_programs, device_statistics

DEVICES, LAYERS, ROUNDS = 8, 4, 6
RESULTS = Path(__file__).with_name("results") / "sharded_growth.json"


class Watch:
    """The most bytes that were alive on one device during a growth, as its watcher."""

    def __init__(self):
        self.most = self.largest = self.temporary = 0
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

        self._makers = device_programs.program, device_statistics.summing
        device_programs.program = self._watched(device_programs.program)
        device_statistics.summing = self._watched(device_statistics.summing)
        keras.Variable._direct_assign = watched_put
        jax.make_array_from_callback = watched_make
        self._thread = threading.Thread(target=self._look_often)
        self._thread.start()

    def _watched(self, maker):
        """A maker of compiled programs, which looks at what each needs for itself."""

        def make(*key):
            function = maker(*key)

            def call(arguments):
                memory = function.lower(arguments).compile().memory_analysis()
                self.temporary = max(self.temporary, memory.temp_size_in_bytes)
                return function(arguments)

            return call

        return make

    def after_growth(self, callback):
        """Ends counting."""
        device_programs.program, device_statistics.summing = self._makers
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


def network(width, layers=LAYERS):
    """A network in which hidden kernels dominate."""
    inputs = keras.Input((16,))
    x = keras.layers.Dense(width, name="first")(inputs)
    for i in range(layers):
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
        "temporary_bytes_of_a_program": watch.temporary,
        "largest_kernel_bytes": max(4 * int(np.prod(v.shape)) for v in kernels),
        "largest_on_one_device_bytes": watch.largest,
        "sharding": sorted({str(v.value.sharding.spec) for v in kernels}),
    }


def times(width, layers):
    """Grows by values made on the devices and in the host's memory; the seconds of each."""
    seconds = {"devices": [], "host": []}
    for name in [*seconds] * ROUNDS:
        with distribution().scope(), shards.used(name == "devices"):
            keras.utils.set_random_seed(0)
            model = network(width, layers)
            model.optimizer.build(model.trainable_variables)
            plan = keras_fusion.FusionOperator(off_diagonal="paired").plan(model, 0)
            start = time.perf_counter()
            optimizer = graft.grown_optimizer(filled(plan), "carry", False)
            values = [*plan.fused.variables, *optimizer.variables]
            jax.block_until_ready([v.value for v in values])
            seconds[name].append(round(time.perf_counter() - start, 2))
        parameters = plan.fused.count_params()
        del model, plan, optimizer, values
        gc.collect()
    later = {name: statistics.median(own[1:]) for name, own in seconds.items()}
    return {
        "parameters": parameters,
        "seconds": seconds,
        "first_devices_over_host": round(seconds["devices"][0] / seconds["host"][0], 2),
        "devices_over_host": round(later["devices"] / later["host"], 2),
    }


def filled(plan):
    """The plan, after it has been filled."""
    plan.fill()
    return plan


def main():
    """Measures, prints, and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--times", action="store_true")
    parser.add_argument("--layers", type=int, default=LAYERS)
    options = parser.parse_args()
    if options.times:
        print(json.dumps(times(options.width, options.layers)))
        return
    result = measure(options.width)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
