"""Measures the peak of memory while two models of some 80M parameters become one of 305M.

python -m experiments.growth_memory
KERAS_BACKEND=jax python -m experiments.growth_memory
python -m experiments.growth_memory --write           # only the table

Two GPT-2s of 15 layers, trained for a step with Adam, are fused in `fit`, their
optimizers' state too. A thread reads the process's resident memory all the while. Counted
is what comes on top of the process before the first parent, in which a small growth has
warmed everything up. Writes experiments/results and docs/growth_cost.md.
"""

import argparse
import gc
import json
import math
import os
import threading
import time

import keras
import numpy as np

import keras_fusion
from experiments.growth_cost import PAGE, RESULTS, results
from experiments.timing import gpt2, random_tokens
from keras_fusion.t5 import markdown

VOCABULARY, LENGTH = 8192, 16
PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")


def main():
    """Measures, prints, and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=1280, help="of the grown model")
    parser.add_argument("--layers", type=int, default=15)
    parser.add_argument("--write", action="store_true", help="measure nothing")
    arguments = parser.parse_args()
    if not arguments.write:
        grown_once(128, 2)  # Warms up.
        gc.collect()
        report = grown_once(arguments.width, arguments.layers)
        print(json.dumps(report, indent=1))
        path = RESULTS / f"growth_memory_{keras.config.backend()}.json"
        path.write_text(json.dumps(report, indent=1) + "\n")
    write()


def grown_once(width, layers):
    """Trains two parents for two steps, grows them into one, and trains that for one."""
    watch, data = Watch(), random_tokens(3, LENGTH, VOCABULARY)
    watch.start()
    sizes = {"layers": layers, "head": 64, "length": LENGTH}
    model, partner = (gpt2(width // 2, VOCABULARY, **sizes, seed=s) for s in range(2))
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
    return sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in items)


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
        return int(file.read().split()[1]) * PAGE_SIZE


def write():
    """Puts the table into the page."""
    head = "backend", "grown parameters", "sum, MB", "peak of growth, MB", "ratio"
    rows = [(backend, *_row(found)) for backend, found in results("growth_memory")]
    table = markdown.table((*head, "to the strict sum"), rows)
    markdown.insert(table + "\n", PAGE, "memory")


def _row(found):
    sizes = found["bytes"]
    names = "parents_weights", "grown_weights", "grown_optimizer"
    strict = sum(sizes[name] for name in names)
    total, peak = strict + sizes["parents_optimizers"], sizes["peak_growth"]
    return (
        f"{found['parameters']['grown'] / 1e6:.0f}M",
        f"{total / 1e6:.0f}",
        f"{peak / 1e6:.0f}",
        f"{peak / total:.2f}",
        f"{peak / strict:.2f}",
    )


if __name__ == "__main__":
    main()
