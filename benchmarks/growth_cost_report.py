"""The page docs/growth_cost.md, from the results that are there.

python benchmarks/growth_cost_report.py
"""

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "growth_cost.md"

TEXT = """# The cost of a growth

Written by `python benchmarks/growth_cost.py` and `python benchmarks/growth_memory.py`
(with `KERAS_BACKEND=jax` for the other backend) from [their
results](../benchmarks/results).

A growth builds the bigger model without initial values, since all of them will be
overwritten: no random numbers are drawn for it, and its variables have no memory until
they are filled. The check when training begins, which lays out the whole growth,
therefore allocates no weights either. Filling goes variable by variable: each parent's
value is read without a copy, where the backend allows it, and written into its block of
one array, which the variable then takes over. The optimizer's state is filled the same
way, slot by slot. The small model and its optimizer are kept until the growth has
succeeded, so that a failed growth changes nothing; then they are freed. (On PyTorch,
whose layers keep references to their variables' tensors, the bigger model starts with
initial values.)

Paired and random off-diagonals are assembled from a table of 2^20 normal random numbers,
in runs of 256 from random offsets and with random signs. Drawing each number would take
some 40 times as long as copying it; see `keras_fusion/values/noise.py`.
"""

EVENT = """
## The growth step

A GPT-2 of 12 layers with Adam is fused with itself in `fit` (paired off-diagonals, state
carried). It is compared with building, compiling and training for one step a native model
of the grown size. Both ratios are of medians over alternating rounds in one process: of
wall time, and of processor time, which other work on the machine disturbs less.

| backend | parameters | native, s | growth and step, s | ratio | of processor time |
| --- | --- | --- | --- | --- | --- |
"""

FILL = """
## Filling the weights

Filling alone, compared with plain copies (`numpy.copy`) of the grown model's weights. The
new arrays of a copy need fresh memory from the system, as the grown model does; copying
into memory that is already in use is faster. Seconds of wall time, and ratios to a plain
copy. Filling also creates the 196 variables, which a plain copy does not. The weight of
this and of the noise depends on the cost of fresh memory: where the smaller plain copy
took a quarter of the time below, the ratios were 2.34 and 2.98 (revision 5bda43f).

| backend | bytes | copy, s | into memory in use | zeros, s | ratio | paired, s | ratio |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""

STEPS = """
## Training steps

Steps of the grown model compared with those of a native one, in alternating rounds; and
batches of `fit` with the callback, before it grows, compared with `fit` without it. Ratios
of medians.

| backend | parameters | after | of processor time | before | of processor time |
| --- | --- | --- | --- | --- | --- |
"""

MEMORY = """
## Memory

Two GPT-2s with Adam, and the state of their optimizers, are fused in `fit`. A thread
samples the resident memory; the figures are relative to the process before the first
parent is created. The sum is the size of both parents and of the grown model, optimizers
included. The strict sum excludes the parents' optimizers, which nevertheless have to be
kept until the growth has succeeded.

| backend | grown parameters | sum, MB | peak of growth, MB | ratio | to the strict sum |
| --- | --- | --- | --- | --- | --- |
"""


def write():
    """Writes the page."""
    costs = {b: f for b, f in _found("growth_cost").items()}
    text = TEXT
    text += EVENT + _rows(costs, _event)
    text += FILL + _rows(costs, _fill)
    text += STEPS + _rows(costs, _steps)
    text += MEMORY + "".join(
        _row(backend, *_memory(found))
        for backend, found in _found("growth_memory").items()
    )
    PAGE.write_text(text)


def _found(name):
    paths = sorted(RESULTS.glob(f"{name}_*.json"), reverse=True)
    return {p.stem.rsplit("_", 1)[1]: json.loads(p.read_text()) for p in paths}


def _rows(costs, cells):
    return "".join(
        _row(backend, *cells(found))
        for backend, sizes in costs.items()
        for found in sizes.values()
    )


def _row(*cells):
    return "| " + " | ".join(cells) + " |\n"


def _ratio(pair, over, under, key="seconds"):
    return f"{pair[over][key] / pair[under][key]:.2f}"


def _event(found):
    event = found["event"]
    return (
        f"{found['parameters'] / 1e6:.1f}M",
        f"{event['native']['seconds']:.2f}",
        f"{event['grown']['seconds']:.2f}",
        _ratio(event, "grown", "native"),
        _ratio(event, "grown", "native", "processor_seconds"),
    )


def _fill(found):
    fill = found["fill"]
    return (
        f"{fill['bytes'] / 1e6:.0f} MB",
        f"{fill['copy']['seconds']:.3f}",
        f"{fill['copy into memory in use']['seconds']:.3f}",
        f"{fill['zeros']['seconds']:.3f}",
        _ratio(fill, "zeros", "copy"),
        f"{fill['paired']['seconds']:.3f}",
        _ratio(fill, "paired", "copy"),
    )


def _steps(found):
    after, before = found["step_after"], found["step_before"]
    return (
        f"{found['parameters'] / 1e6:.1f}M",
        f"{after['grown']['seconds'] / after['native']['seconds']:.3f}",
        f"{_cpu(after, 'grown') / _cpu(after, 'native'):.3f}",
        f"{before['waiting']['seconds'] / before['plain']['seconds']:.3f}",
        f"{_cpu(before, 'waiting') / _cpu(before, 'plain'):.3f}",
    )


def _cpu(pair, name):
    return pair[name]["processor_seconds"]


def _memory(found):
    size = found["bytes"]
    strict = size["parents_weights"] + size["grown_weights"] + size["grown_optimizer"]
    total = strict + size["parents_optimizers"]
    peak = size["peak_growth"]
    return (
        f"{found['parameters']['grown'] / 1e6:.0f}M",
        f"{total / 1e6:.0f}",
        f"{peak / 1e6:.0f}",
        f"{peak / total:.2f}",
        f"{peak / strict:.2f}",
    )


if __name__ == "__main__":
    write()
