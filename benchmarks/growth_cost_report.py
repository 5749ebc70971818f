"""The page docs/growth_cost.md, from the results that are there.

python benchmarks/growth_cost_report.py
"""

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "growth_cost.md"

TEXT = """# What a growth costs

Written by `python benchmarks/growth_cost.py` and `python benchmarks/growth_memory.py`
(with `KERAS_BACKEND=jax` for the other backend) from [their
results](../benchmarks/results).

A growth builds the bigger model without initial values, as all of them will be
overwritten: no random numbers are drawn for it, and its variables have no memory until
they are filled. The check when training begins, which lays the whole growth out, so
costs no weights either. Filling goes variable by variable: each parent's value is read
without a copy, where the backend allows that, and written into its block of one array,
which the variable then takes over. The optimizer's state goes the same way, slot by
slot. The small model and its optimizer live on until the growth has succeeded, so that
one that fails changes nothing; then they are freed. (On PyTorch, whose layers hold on
to their variables' tensors, the bigger model starts with initial values.)

Paired and random off-diagonals are put together from a table of 2^20 normal numbers, in
stretches of 256 from random places and with random signs. Drawing each anew would take
some 40 times as long as copying it; see `keras_fusion.noise`.
"""

EVENT = """
## The event

A GPT-2 of 12 layers with Adam is fused with itself (paired off-diagonals, state
carried) in `fit`, against building, compiling and training for a step a model of the
grown size. Both ratios are of medians over rounds in turns, in one process: of the time
on the clock, and of the processor's, which other work on the machine disturbs less.

| backend | parameters | native, s | growth and step, s | ratio | of processor time |
| --- | --- | --- | --- | --- | --- |
"""

FILL = """
## The filling of the weights alone

Against plain copies (`numpy.copy`) of the grown model's weights. The new arrays of a
copy need fresh memory from the system, as the grown model does; copying into memory
that is in use already is faster. Seconds on the clock, ratios to a plain copy. The
filling makes the 196 variables too, which a plain copy does not. How much that and the
noise weigh depends on what fresh memory costs: where the smaller plain copy took a
quarter of the time below, the ratios were 2.34 and 2.98 (revision 5bda43f).

| backend | bytes | copy, s | into memory in use | zeros, s | ratio | paired, s | ratio |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""

STEPS = """
## The steps

Steps of the grown model against those of a native one, in turns; and batches of `fit`
with the callback, before it grows, against `fit` without. Ratios of medians.

| backend | parameters | after | of processor time | before | of processor time |
| --- | --- | --- | --- | --- | --- |
"""

MEMORY = """
## Memory

Two GPT-2s with Adam become one in `fit`, their optimizers' state too. A thread reads
the resident memory; the figures are what comes on top of the process before the first
parent. The sum is the bytes of both parents and of the grown model, optimizers
included. The strict sum leaves the parents' optimizers out, which have to live on all
the same until the growth has succeeded.

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
