"""The results of a recipe: what its tables and plots are drawn from, as plain data."""

import dataclasses
import json
import statistics
from collections.abc import Iterator
from pathlib import Path

import keras

from keras_fusion.t5.costs import cost
from keras_fusion.t5.recipe import Recipe, Table
from keras_fusion.t5.store import Store
from keras_fusion.t5.tree import Node
from keras_fusion.training.files import whole


def collect(recipe: Recipe, store: Store) -> dict:
    """Gathers what has finished.

    Args:
        recipe: `Recipe`.
        store: `Store`.

    Returns:
        Dict of the recipe's scale, the backend, and for each table its settings with
        their runs: `{"tables": {name: {"baseline": setting, "settings": {setting:
        {"tree": text, "runs": [run]}}}}}`.
    """
    return {
        "scale": recipe.scale,
        "backend": keras.config.backend(),
        "versions": {"keras": keras.__version__},
        "tables": {table.name: _table(table, recipe, store) for table in recipe.tables},
    }


def _table(table: Table, recipe, store):
    settings = {}
    for name, node in table.trees.items():
        seeds = range(table.seeds)
        runs = [
            _run(node, seed, recipe, store)
            for seed in seeds
            if store.entry(seed, node).finished
        ]
        settings[name] = {"tree": node.name, "runs": runs}
    return {"baseline": table.baseline, "settings": settings}


def _run(node: Node, seed: int, recipe: Recipe, store: Store) -> dict:
    entry = store.entry(seed, node)
    result = entry.result()
    kept = ("seed", "parameters", "step_flops", "start", "loss", "accuracy", "points")
    tasks = {
        task: _scores(entry.read(f"finetuned-{task}"))
        for task in recipe.finetuning.tasks
    }
    return {
        **{key: result[key] for key in kept},
        "cost": dataclasses.asdict(cost(node, seed, store)),
        "finetuned": {task: scores for task, scores in tasks.items() if scores},
    }


def _scores(found):
    if found is None:
        return None
    return {key: found[key] for key in ("metrics", "majority", "flops", "seconds")}


def save(results: dict, path: Path) -> None:
    """Writes results as JSON."""
    with whole(path) as unfinished:
        unfinished.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def load(path: Path) -> dict:
    """Reads what `save` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Mean and sample deviation over runs; the deviation of one run is `None`."""

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: list[float]) -> "Statistics":
        """The statistics of some values."""
        several = len(values) > 1
        return cls(
            statistics.fmean(values), statistics.stdev(values) if several else None
        )

    def text(self, digits: int, factor: float = 1.0) -> str:
        """Mean and deviation, such as `4.512 ± 0.010`."""
        mean = f"{factor * self.mean:.{digits}f}"
        if self.deviation is None:
            return mean
        return f"{mean} ± {factor * self.deviation:.{digits}f}"


def flops_to_reach(run: dict, loss: float) -> tuple[int, int] | None:
    """The FLOPs after which a run had reached a loss.

    Args:
        run: one of the runs of `collect`.
        loss: float. A validation loss.

    Returns:
        Pair of the FLOPs with those of the parents and without; `None` if the run never
        reached it. As exact as its evaluations are close.
    """
    costs = run["cost"]
    for point in run["points"]:
        if point["loss"] <= loss:
            own = point["step"] * run["step_flops"]
            return own + costs["flops"] - costs["own_flops"], own
    return None


def settings_with_runs(table: dict) -> Iterator[tuple[str, dict]]:
    """The settings of a table of which a run has finished, in the recipe's order."""
    return ((k, s) for k, s in table["settings"].items() if s["runs"])
