"""What a growth costs: the event, the filling, and the steps before and after it.

python benchmarks/growth_cost.py                     # about 11M and 98M parameters
KERAS_BACKEND=jax python benchmarks/growth_cost.py

A GPT-2 of 12 layers is fused with itself in `fit`. Each ratio is of medians over rounds
in which both sides take turns, in one process. Writes benchmarks/results and
docs/growth_cost.md.
"""

import argparse
import gc
import json
import os
import statistics
import time
from pathlib import Path

import growth_cost_report
import keras
import keras_hub
import numpy as np

import keras_fusion

RESULTS = Path(__file__).parent / "results"
# Name: width and vocabulary of the grown model.
SIZES = {"10M": (256, 8192), "100M": (768, 16384)}
LAYERS, BATCH, LENGTH = 12, 2, 64


def main():
    """Measures, prints, and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    backend = keras.config.backend()
    path = RESULTS / f"growth_cost_{backend}.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    for size in arguments.sizes:
        found[size] = measure(*SIZES[size], arguments.rounds)
        print(json.dumps({size: found[size]}, indent=1))
        path.write_text(json.dumps(found, indent=1) + "\n")
    growth_cost_report.write()


def measure(width, vocabulary, rounds):
    """All figures of one size."""
    data = batches(vocabulary)
    build = {"native": lambda: compiled(gpt2(width, vocabulary))}
    build["small"] = lambda: compiled(gpt2(width // 2, vocabulary))
    native_event(build["small"], data)  # The first model of a process sets much up.
    events = {"native": [], "grown": []}
    for _ in range(rounds):
        native = build["native"]
        gc.collect()
        events["native"].append(native_event(native, data)[0])
        gc.collect()
        events["grown"].append(growth_event(build["small"], data)[0])
    _, native = native_event(build["native"], data)
    _, grown = growth_event(build["small"], data)
    report = {
        "parameters": native.count_params(),
        "load": os.getloadavg()[0],
        "event": summary(events),
        "step_after": summary(alternating(native, grown, data, 12 * rounds)),
    }
    del native, grown
    report["step_before"] = summary(before_growth(build["small"](), data, rounds))
    report["fill"] = filling(build["small"](), rounds)
    return report


def gpt2(width, vocabulary):
    """The model: heads of 32 features in the small ones, of 64 in the large."""
    keras.utils.set_random_seed(0)
    head = 32 if width < 384 else 64
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=vocabulary,
        num_layers=LAYERS,
        num_heads=width // head,
        hidden_dim=width,
        intermediate_dim=4 * width,
        dropout=0.0,
        max_sequence_length=LENGTH,
    )
    return keras_hub.models.GPT2CausalLM(backbone, preprocessor=None)


def compiled(model):
    """The model, ready for next tokens."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-4), loss)
    return model


def batches(vocabulary):
    """Random tokens; what is learned does not matter here."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, vocabulary, (BATCH, LENGTH)).astype("int32")
    return {"token_ids": tokens, "padding_mask": np.ones_like(tokens)}, tokens


class Clock(keras.callbacks.Callback):
    """Notes the wall's and the processor's time at the end of each batch."""

    def __init__(self):
        super().__init__()
        self.times = []

    def on_train_batch_end(self, batch, logs=None):
        """Takes the time."""
        self.times.append((time.perf_counter(), time.process_time()))

    @property
    def seconds(self):
        """Pairs of wall and processor seconds from each batch's end to the next's."""
        pairs = zip(self.times, self.times[1:], strict=False)
        return [tuple(b - a for a, b in zip(*pair, strict=True)) for pair in pairs]


def fit(model, data, steps, callbacks):
    """Trains on one batch again and again."""
    x, y = data
    repeated = {
        k: np.repeat(v[None], steps, 0).reshape(-1, LENGTH) for k, v in x.items()
    }
    targets = np.repeat(y[None], steps, 0).reshape(-1, LENGTH)
    model.fit(repeated, targets, batch_size=BATCH, verbose=0, callbacks=callbacks)


class Never(keras_fusion.GrowthSchedule):
    """Waits for a moment that does not come."""

    def should_grow(self, moment):
        """Whether to grow now."""
        return False


def native_event(build, data):
    """Building, compiling and the first step of a model."""
    clock = Clock()
    clock.on_train_batch_end(-1)
    model = build()
    fit(model, data, 1, [clock])
    return clock.seconds[0], model


def growth_event(build, data):
    """The growth, compiling anew and the first step of the grown model."""
    model, clock = build(), Clock()
    grow = keras_fusion.GrowModel(
        keras_fusion.FusionOperator(), keras_fusion.AtStep(2), verbose=0
    )
    fit(model, data, 3, [clock, grow])
    assert grow.events
    return clock.seconds[1], model


def alternating(native, grown, data, rounds):
    """Steps of both models in turns."""
    spent = {"native": [], "grown": []}
    for _ in range(rounds + 2):
        for name, model in (("native", native), ("grown", grown)):
            spent[name].append(clocked(lambda m=model: m.train_on_batch(*data)))
    return {name: seconds[2:] for name, seconds in spent.items()}


def before_growth(model, data, rounds, steps=40):
    """Batches in `fit` without the callback, and with one whose time has not come."""
    spent = {"plain": [], "waiting": []}
    for _ in range(rounds + 1):
        for name in spent:
            clock = Clock()
            grow = keras_fusion.GrowModel(
                keras_fusion.FusionOperator(), Never(), verbose=0
            )
            fit(model, data, steps, [clock] + [grow] * (name == "waiting"))
            spent[name].append(clock.seconds[2:])
    return {k: [s for run in v[1:] for s in run] for k, v in spent.items()}


def filling(model, rounds):
    """The filling of the weights alone, and plain copies of as many bytes."""
    spent = {"copy": [], "copy into memory in use": []}
    for mode in ("zeros", "paired"):
        spent[mode] = []
    for _ in range(rounds):
        for mode in ("zeros", "paired"):
            plan = keras_fusion.FusionOperator(off_diagonal=mode, seed=0).plan(model)
            gc.collect()
            spent[mode].append(clocked(plan.fill))
        weights = plan.fused.get_weights()
        del plan
        for name, seconds in plain_copies(weights).items():
            spent[name].append(seconds)
    return {"bytes": sum(w.nbytes for w in weights)} | summary(spent)


def plain_copies(weights):
    """Copies arrays to new memory, and once more into the same."""
    copies = []
    new = clocked(lambda: copies.extend(map(np.copy, weights)))
    used = clocked(lambda: list(map(np.copyto, copies, weights)))
    return {"copy": new, "copy into memory in use": used}


def clocked(action):
    """Wall and processor seconds of an action."""
    began = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - began[0], time.process_time() - began[1]


def summary(spent):
    """Medians of each, in seconds."""
    return {
        name: {
            "seconds": statistics.median(wall for wall, _ in pairs),
            "processor_seconds": statistics.median(cpu for _, cpu in pairs),
            "rounds": len(pairs),
        }
        for name, pairs in spent.items()
    }


if __name__ == "__main__":
    main()
