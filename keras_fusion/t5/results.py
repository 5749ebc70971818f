"""The results of a recipe as plain data, from which its tables and plots are made."""

import dataclasses
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from keras_fusion.errors import FusionError
from keras_fusion.t5 import fingerprint, records
from keras_fusion.t5.costs import Cost, Spent, cost
from keras_fusion.t5.recipe import Recipe, Table
from keras_fusion.t5.store import Store
from keras_fusion.t5.tree import Node, trainings

_OF_A_RUN = ("seed", "parameters", "step_flops", "start", "loss", "accuracy", "points")
_OF_SCORES = ("metrics", "majority", "flops", "seconds")


def collect(recipe: Recipe, store: Store) -> dict:
    """Collects the trainings that have finished.

    Args:
        recipe: `Recipe`.
        store: `Store`.

    Returns:
        Dict of the recipe's scale, the backend, and for each table its settings with
        their runs: `{"tables": {name: {"baseline": setting, "settings": {setting:
        {"tree": text, "runs": [run]}}}}}`.

    Raises:
        FusionError: if a file is damaged, or a training was made from something else than
            the recipe says.
    """
    import keras  # Takes seconds; what is wrong with the recipe has been said before.

    tables = {table.name: _table(table, recipe, store) for table in recipe.tables}
    return {
        "scale": recipe.scale,
        "backend": keras.config.backend(),
        "versions": {"keras": keras.__version__},
        "tables": tables,
    }


def _table(table: Table, recipe, store):
    settings = {}
    for name, node in table.trees.items():
        runs = [
            _run(node, seed, recipe, store)
            for seed in range(table.seeds)
            if store.entry(seed, node).finished
        ]
        settings[name] = {"tree": node.name, "runs": runs}
    return {"baseline": table.baseline, "settings": settings}


def _run(node: Node, seed: int, recipe: Recipe, store: Store) -> dict:
    # Its parents too: they are part of what it cost.
    for each in trainings([node]):
        fingerprint.check_result(each, seed, recipe, store)
    entry = store.entry(seed, node)
    result = entry.result()
    finetuned = {}
    for task in recipe.finetuning.tasks:
        found = entry.scores(task)
        if found is not None:
            fingerprint.check_scores(task, recipe, entry)
            finetuned[task] = {key: found[key] for key in _OF_SCORES}
    return {
        **{key: result[key] for key in _OF_A_RUN},
        "cost": dataclasses.asdict(
            cost(node, lambda each: Spent.of(store.entry(seed, each).result()))
        ),
        "finetuned": finetuned,
    }


def save(results: dict, path: Path) -> None:
    """Writes results as JSON."""
    records.write(path, results)


def load(path: Path) -> dict:
    """Reads what `save` wrote.

    Raises:
        FusionError: if there is no such file, or it does not hold results.
    """
    again = "Run `table` to write it again."
    if not path.is_file():
        raise FusionError(f"There are no results in {str(path)!r}. Run `table` first.")
    found = records.read(path, again)
    try:
        _read_through(found)
    # The first value that is missing, or of another kind.
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise FusionError(
            f"The file {str(path)!r} does not hold results of `table` "
            f"({type(error).__name__}: {error}). {again}"
        ) from error
    return found


def _read_through(results):
    """Touches every value that tables and plots need."""
    str.encode(results["scale"])
    for table in results["tables"].values():
        table["settings"][table["baseline"]]
        for setting in table["settings"].values():
            str.encode(setting["tree"])
            for run in setting["runs"]:
                Cost(**run["cost"])
                numbers = [run["loss"], run["accuracy"], run["step_flops"]]
                numbers += [p[k] for p in run["points"] for k in ("step", "loss")]
                numbers += [run["points"][0]["loss"], *run["cost"].values()]
                sum(numbers, run["start"].get("mean_change", 0.0))
                run["finetuned"].items()


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Mean and sample deviation over runs; the deviation of one run is `None`."""

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Statistics":
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
    """Counts the FLOPs after which a run had reached a loss.

    Args:
        run: one of the runs of `collect`.
        loss: float. A validation loss.

    Returns:
        Pair of the FLOPs with those of the parents and without; `None` if the run never
        reached it. The resolution is that of the run's evaluations.
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
