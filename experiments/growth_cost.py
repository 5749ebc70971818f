"""Measures what a growth costs: the event, the filling, and the steps around it.

python -m experiments.growth_cost                     # about 11M and 98M parameters
KERAS_BACKEND=jax python -m experiments.growth_cost
python -m experiments.growth_cost --write             # only the tables

A GPT-2 of 12 layers is fused with itself in `fit`. Each ratio is of medians over rounds
in which both sides alternate, in one process. Writes experiments/results and the tables
of docs/growth_cost.md.
"""

import argparse
import gc
import json
from pathlib import Path

import keras
import numpy as np

import keras_fusion
from experiments.timing import Clock, clocked, gpt2, random_tokens, summary
from keras_fusion.t5 import markdown

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "growth_cost.md"
# Name: width and vocabulary of the grown model.
SIZES = {"10M": (256, 8192), "100M": (768, 16384)}
LAYERS, BATCH, LENGTH = 12, 2, 64


class Sides:
    """The models of one size, and their data.

    Args:
        width: int. Of the grown model.
        vocabulary: int.
    """

    def __init__(self, width, vocabulary):
        self.width, self.vocabulary = width, vocabulary
        self.data = random_tokens(BATCH, LENGTH, vocabulary)
        self.parameters = self.native().count_params()

    def native(self):
        """A model of the grown size."""
        return self._model(self.width)

    def small(self):
        """A model that grows to it."""
        return self._model(self.width // 2)

    def _model(self, width):
        head = 32 if width < 384 else 64
        return gpt2(width, self.vocabulary, layers=LAYERS, head=head, length=LENGTH)


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


def fit(model, data, steps, callbacks):
    """Trains on one batch again and again."""
    x, y = keras.tree.map_structure(lambda a: np.tile(a, (steps, 1)), data)
    model.fit(x, y, batch_size=BATCH, verbose=0, callbacks=callbacks)


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
    """The growth, compiling again and the first step of the grown model."""
    model, clock = build(), Clock()
    fit(model, data, 3, [clock, growing(keras_fusion.AtStep(2))])
    return clock.seconds[1], model


def growing(schedule):
    """A self-fusion by a schedule."""
    operator = keras_fusion.FusionOperator()
    return keras_fusion.GrowModel(operator, schedule, verbose=0)


def step_after(sides, rounds):
    """Alternating steps of a native and of a grown model."""
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
    model, spent = sides.small(), {"plain": [], "waiting": []}
    for number in range(rounds + 1):
        for name in spent:
            clock = Clock()
            waiting = [growing(Never())] if name == "waiting" else []
            fit(model, sides.data, steps, [clock, *waiting])
            spent[name] += clock.seconds[2:] if number else []
    return summary(spent)


def fill(sides, rounds):
    """The filling of the weights alone, and plain copies of as many bytes."""
    model, held = sides.small(), []
    names = "zeros", "paired", "copy", "copy into memory in use"
    spent = {name: [] for name in names}
    for _ in range(rounds):
        for mode in ("zeros", "paired"):
            plan = keras_fusion.FusionOperator(off_diagonal=mode, seed=0).plan(model)
            gc.collect()
            spent[mode].append(clocked(plan.fill))
            held.append(plan.fused)
        weights, copies = plan.fused.get_weights(), []
        for name, seconds in plain_copies(weights, copies).items():
            spent[name].append(seconds)
        # What was freed would be given out again, to one side or the other.
        held += [weights, copies]
    return {"bytes": sum(w.nbytes for w in weights)} | summary(spent)


def plain_copies(weights, copies):
    """Copies arrays to new memory, and once more into the same."""
    new = clocked(lambda: copies.extend(map(np.copy, weights)))
    used = clocked(lambda: list(map(np.copyto, copies, weights)))
    return {"copy": new, "copy into memory in use": used}


PARTS = {
    "event": event,
    "step_after": step_after,
    "step_before": step_before,
    "fill": fill,
}


# The page.


def write():
    """Puts the tables into the page, between the marks of their names."""
    ratios = "ratio", "of processor time"
    event_head = "backend", "parameters", "native, s", "growth and step, s", *ratios
    steps_head = "backend", "parameters", "after", ratios[1], "before", ratios[1]
    fill_head = (
        *("backend", "bytes", "copy, s", "into memory in use"),
        *("zeros, s", "ratio", "paired, s", "ratio"),
    )
    for name, head, cells in (
        ("event", event_head, _event),
        ("fill", fill_head, _fill),
        ("steps", steps_head, _steps),
    ):
        rows = [
            (backend, *cells(found))
            for backend, sizes in results("growth_cost")
            for found in sizes.values()
        ]
        markdown.insert(markdown.table(head, rows) + "\n", PAGE, name)


def results(name):
    """Pairs of the backends and what was measured on them."""
    paths = sorted(RESULTS.glob(f"{name}_*.json"), reverse=True)
    return [(p.stem.rsplit("_", 1)[1], json.loads(p.read_text())) for p in paths]


def _event(found):
    event = found["event"]
    seconds = (f"{event[name]['seconds']:.2f}" for name in ("native", "grown"))
    return _size(found), *seconds, *_ratios(event, "grown", "native", 2)


def _fill(found):
    fill = found["fill"]
    seconds = {name: f"{fill[name]['seconds']:.3f}" for name in fill if name != "bytes"}
    return (
        f"{fill['bytes'] / 1e6:.0f} MB",
        seconds["copy"],
        seconds["copy into memory in use"],
        *(seconds["zeros"], _ratios(fill, "zeros", "copy", 2)[0]),
        *(seconds["paired"], _ratios(fill, "paired", "copy", 2)[0]),
    )


def _steps(found):
    after = _ratios(found["step_after"], "grown", "native", 3)
    return _size(found), *after, *_ratios(found["step_before"], "waiting", "plain", 3)


def _size(found):
    return f"{found['parameters'] / 1e6:.1f}M"


def _ratios(pair, over, under, digits):
    """That of the wall's time, and that of the processor's."""
    return tuple(
        f"{pair[over][key] / pair[under][key]:.{digits}f}"
        for key in ("seconds", "processor_seconds")
    )


def main():
    """Measures, prints, and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="measure nothing")
    arguments = parser.parse_args()
    path = RESULTS / f"growth_cost_{keras.config.backend()}.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    for size in [] if arguments.write else arguments.sizes:
        sides = Sides(*SIZES[size])
        for part in arguments.parts:
            measured = PARTS[part](sides, arguments.rounds)
            print(json.dumps({size: {part: measured}}, indent=1), flush=True)
            found.setdefault(size, {"parameters": sides.parameters})[part] = measured
            path.write_text(json.dumps(found, indent=1) + "\n")
    write()


if __name__ == "__main__":
    main()
