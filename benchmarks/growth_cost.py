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
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    backend = keras.config.backend()
    path = RESULTS / f"growth_cost_{backend}.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    for size in arguments.sizes:
        sides = Sides(*SIZES[size])
        for part in arguments.parts:
            measured = PARTS[part](sides, arguments.rounds)
            print(json.dumps({size: {part: measured}}, indent=1), flush=True)
            found.setdefault(size, {"parameters": sides.parameters})[part] = measured
            path.write_text(json.dumps(found, indent=1) + "\n")
    growth_cost_report.write()


class Sides:
    """The models of one size, and their data.

    Args:
        width: int. Of the grown model.
        vocabulary: int.
    """

    def __init__(self, width, vocabulary):
        self.width, self.vocabulary = width, vocabulary
        self.data = batches(vocabulary)
        self.parameters = gpt2(width, vocabulary).count_params()

    def native(self):
        """A model of the grown size."""
        return compiled(gpt2(self.width, self.vocabulary))

    def small(self):
        """A model that grows to it."""
        return compiled(gpt2(self.width // 2, self.vocabulary))


def event(sides, rounds):
    """The growth against building and compiling a native model."""
    native_event(sides.small, sides.data)  # A process's first model sets much up.
    spent = {"native": [], "grown": []}
    for _ in range(rounds):
        gc.collect()
        spent["native"].append(native_event(sides.native, sides.data)[0])
        gc.collect()
        spent["grown"].append(growth_event(sides.small, sides.data)[0])
    return summary(spent)


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


def step_after(sides, rounds):
    """Steps of a native and of a grown model in turns."""
    models = {
        "native": native_event(sides.native, sides.data)[1],
        "grown": growth_event(sides.small, sides.data)[1],
    }
    spent = {name: [] for name in models}
    for _ in range(12 * rounds + 2):
        for name, model in models.items():
            spent[name].append(clocked(lambda m=model: m.train_on_batch(*sides.data)))
    return summary({name: seconds[2:] for name, seconds in spent.items()})


def step_before(sides, rounds, steps=40):
    """Batches in `fit` without the callback, and with one whose time has not come."""
    model, data = sides.small(), sides.data
    spent = {"plain": [], "waiting": []}
    for _ in range(rounds + 1):
        for name in spent:
            clock = Clock()
            grow = keras_fusion.GrowModel(
                keras_fusion.FusionOperator(), Never(), verbose=0
            )
            fit(model, data, steps, [clock] + [grow] * (name == "waiting"))
            spent[name].append(clock.seconds[2:])
    return summary({k: [s for run in v[1:] for s in run] for k, v in spent.items()})


def fill(sides, rounds):
    """The filling of the weights alone, and plain copies of as many bytes."""
    model = sides.small()
    spent = {
        name: [] for name in ("zeros", "paired", "copy", "copy into memory in use")
    }
    held = []  # What was freed would be given out again, to one side or the other.
    for _ in range(rounds):
        for mode in ("zeros", "paired"):
            plan = keras_fusion.FusionOperator(off_diagonal=mode, seed=0).plan(model)
            gc.collect()
            spent[mode].append(clocked(plan.fill))
            held.append(plan.fused)
        weights, copies = plan.fused.get_weights(), []
        for name, seconds in plain_copies(weights, copies).items():
            spent[name].append(seconds)
        held += [weights, copies]
    return {"bytes": sum(w.nbytes for w in weights)} | summary(spent)


def plain_copies(weights, copies):
    """Copies arrays to new memory, and once more into the same."""
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


PARTS = {
    "event": event,
    "step_after": step_after,
    "step_before": step_before,
    "fill": fill,
}


if __name__ == "__main__":
    main()
