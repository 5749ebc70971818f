"""The tables of compiled training steps and growths, for docs/distribution.md."""

from pathlib import Path
from typing import Any

from keras_fusion.t5 import markdown

HEAD = (
    "model",
    "sharding",
    "pod",
    "state predicted, MiB",
    "state, MiB",
    "arguments, MiB",
    "temporaries, MiB",
    "TFLOP",
    "collectives",
    "host transfers",
)


GROWTH_HEAD = (
    "growth",
    "sharding",
    "pod",
    "small state, MiB",
    "grown state, MiB",
    "temporaries, MiB",
    "peak / grown state",
    "programs",
    "made on devices",
    "host transfers",
)


def insert_growths(results: dict[str, dict[str, Any]], page: Path) -> None:
    """Puts the table of growths between its marks of a page."""
    rows = [
        (
            *key.split(" | "),
            *(f"{found[n] / 2**20:,.1f}" for n in ("small", "grown", "temporaries")),
            f"{found['ratio']:.3f}",
            str(found["programs"]),
            f"{found['devices']} of {found['devices'] + found['host']}",
            str(found["host_transfers"]),
        )
        for key, found in results.items()
    ]
    markdown.insert(markdown.table(GROWTH_HEAD, rows), page, "tpu-growths")


def insert(results: dict[str, dict[str, Any]], page: Path) -> None:
    """Puts the table between the marks of a page."""
    markdown.insert(table(results), page, "tpu-steps")


def table(results: dict[str, dict[str, Any]]) -> str:
    """One row per model, sharding and pod; of one device and one step."""
    rows = [(*key.split(" | "), *_cells(result)) for key, result in results.items()]
    return markdown.table(HEAD, rows)


def _cells(result):
    known = result.get("predicted")  # Rows of an earlier version lack it.
    predicted = "" if known is None else f"{known / 2**20:,.0f}"
    if "error" in result:
        return (predicted, "does not fit", "", "", "", "", "")
    collectives = ", ".join(f"{n} {kind}" for kind, n in result["collectives"].items())
    return (
        predicted,
        f"{result['outputs'] / 2**20:,.0f}",
        f"{result['arguments'] / 2**20:,.0f}",
        f"{result['temporaries'] / 2**20:,.0f}",
        f"{result['flops'] / 1e12:.3f}",
        collectives,
        str(result["host_transfers"]),
    )
