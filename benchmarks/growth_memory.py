"""The peak of memory while two models of some 80M parameters become one of 305M.

python benchmarks/growth_memory.py
KERAS_BACKEND=jax python benchmarks/growth_memory.py

Two GPT-2s of 15 layers, trained for a step with Adam, are fused in `fit`, their
optimizers' state too. A thread reads the process's resident memory all the while. Counted
is what comes on top of the process before the first parent, in which a small growth has
warmed everything up. Writes benchmarks/results and docs/growth_cost.md.
"""

import argparse
import gc
import json
import os
import threading
import time
from pathlib import Path

import growth_cost_report
import keras
import keras_hub
import numpy as np

import keras_fusion

RESULTS = Path(__file__).parent / "results"
VOCABULARY, LENGTH = 8192, 16
PAGE = os.sysconf("SC_PAGE_SIZE")


def main():
    """Measures, prints, and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=1280, help="of the grown model")
    parser.add_argument("--layers", type=int, default=15)
    arguments = parser.parse_args()
    grown_once(128, 2, Watch())  # Warms up.
    gc.collect()
    report = grown_once(arguments.width, arguments.layers, Watch())
    print(json.dumps(report, indent=1))
    path = RESULTS / f"growth_memory_{keras.config.backend()}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    growth_cost_report.write()


def grown_once(width, layers, watch):
    """Trains two parents for two steps, grows them into one, and trains that for one."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, VOCABULARY, (3, LENGTH)).astype("int32")
    data = {"token_ids": tokens, "padding_mask": np.ones_like(tokens)}, tokens
    watch.start()
    model, partner = (parent(width // 2, layers, seed) for seed in range(2))
    partner.fit(*data, batch_size=1, verbose=0)
    grow = keras_fusion.GrowModel(
        keras_fusion.FusionOperator([partner]), keras_fusion.AtStep(2), verbose=0
    )
    grow.watchers.append(watch)
    model.fit(*data, batch_size=1, verbose=0, callbacks=[grow])
    watch.stop()
    return {
        "parameters": {"parent": partner.count_params(), "grown": model.count_params()},
        "bytes": {
            # Both parents are of one size.
            "parents_weights": 2 * size(partner.variables),
            "parents_optimizers": 2 * size(partner.optimizer.variables),
            "grown_weights": size(model.variables),
            "grown_optimizer": size(model.optimizer.variables),
        }
        | watch.report(),
    }


def size(variables):
    """Bytes of variables."""
    items = ((v.shape, keras.backend.standardize_dtype(v.dtype)) for v in variables)
    return sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in items)


class Watch:
    """Reads the resident memory all the while; notes the growth's part of it."""

    def __init__(self):
        self.peaks = {"before": 0, "growth": 0, "after": 0}
        self.marks = {}
        self._phase, self._running = "before", True
        self._thread = threading.Thread(target=self._read, daemon=True)

    def start(self):
        """Takes the level from which all is counted."""
        gc.collect()
        self.marks["start"] = resident()
        self._thread.start()

    def before_growth(self, callback):
        """As a watcher of `GrowModel`."""
        self._phase = "growth"
        self.marks["before_growth"] = resident()

    def after_growth(self, callback):
        """As a watcher of `GrowModel`."""
        self.marks["at_the_end_of_growth"] = resident()
        self._phase = "after"

    def stop(self):
        """Ends the reading."""
        self._running = False
        self._thread.join()

    def report(self):
        """Bytes above the start: at the marks, and the peaks of each phase."""
        found = self.marks | {f"peak_{k}": v for k, v in self.peaks.items()}
        start = found.pop("start")
        return {name: value - start for name, value in found.items()}

    def _read(self):
        while self._running:
            self.peaks[self._phase] = max(self.peaks[self._phase], resident())
            time.sleep(0.002)


def resident():
    """The process's resident memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * PAGE


def parent(width, layers, seed):
    """A GPT-2 with heads of 64 features, compiled."""
    keras.utils.set_random_seed(seed)
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=VOCABULARY,
        num_layers=layers,
        num_heads=width // 64,
        hidden_dim=width,
        intermediate_dim=4 * width,
        dropout=0.0,
        max_sequence_length=LENGTH,
    )
    model = keras_hub.models.GPT2CausalLM(backbone, preprocessor=None)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-4), loss)
    return model


if __name__ == "__main__":
    main()
