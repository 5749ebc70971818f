"""A family of models by depth, each grown from the last one: what it costs in all.

python -m experiments.model_family                          # prints the table
python -m experiments.model_family --page docs/savings.md   # puts it into the page

S has one layer, M two, L four, and all are to read the same number of tokens. Trained
separately, each ends at a loss. The family ends at the same three losses: S is trained,
M goes on from it, L goes on from M. The runs are those of `studies/decoder_64x4.toml`.
All FLOPs are shares of what L from scratch spends. A model that is both handed out, with
its rate fallen to zero, and grown at its constant rate pays for both.
"""

import argparse
import dataclasses
from pathlib import Path

from experiments import law as laws
from experiments.harness import analysis
from experiments.harness.analysis import Interval
from experiments.harness.results import RESULTS, Results
from keras_fusion.t5 import markdown

STUDY = "decoder_64x4"
ALONE = {"S": "small alone, 1 layer", "M": "small alone, 2 layers", "L": "scratch"}
GROWN = {"M": "family: 2 layers from 1", "L": "family: 4 layers from 2 from 1"}


@dataclasses.dataclass(frozen=True)
class Family:
    """The FLOPs of a family of one seed, as shares of L's from scratch.

    Args:
        seed: int.
        separate: dict from S, M and L to the FLOPs of a training from scratch.
        losses: dict from these to the loss it ends at.
        grown: dict from these to the FLOPs that the family spends on each.
    """

    seed: int
    separate: dict[str, float]
    losses: dict[str, float]
    grown: dict[str, float]

    @property
    def share(self) -> float:
        """The family's FLOPs over those of three trainings."""
        return sum(self.grown.values()) / sum(self.separate.values())


def families(results: list[dict], chosen_on: tuple[int, ...] = ()) -> list[Family]:
    """The families of all seeds of which all runs have finished.

    Args:
        results: list of results of the study.
        chosen_on: seeds to leave out, since settings were chosen on them.

    Raises:
        ValueError: if a family does not come to the loss of a separate training.
    """
    seeds = sorted({run["course"]["seed"] for run in results} - set(chosen_on))
    # Growths at their best rates on the first seed; of a separate training all rates.
    best = analysis.settings(results)
    runs = analysis.alone(results)
    runs += [run for name in GROWN.values() for run in best.get(name, [])]
    found = (_family(runs, seed) for seed in seeds)
    return [family for family in found if family is not None]


def _family(runs: list[dict], seed: int) -> Family | None:
    def of(name: str) -> list[dict]:
        own = (run for run in runs if run["course"]["seed"] == seed)
        return [run for run in own if run["course"]["setting"] == name]

    alone = {size: of(name) for size, name in ALONE.items()}
    grown = {size: of(name) for size, name in GROWN.items()}
    if not all((*alone.values(), *grown.values())):
        return None
    lasts = {size: _whole(runs) for size, runs in alone.items()}
    separate = {size: spent for size, (spent, _) in lasts.items()}
    losses = {size: loss for size, (_, loss) in lasts.items()}
    needed = {size: _needed(grown[size], losses[size]) for size in grown}
    # S and M are grown at a constant rate; a last fifth of theirs is spent beside that.
    fall = {
        "S": _fall(alone["S"]) * separate["S"],
        "M": _fall(grown["M"]) * needed["M"],
    }
    return Family(
        seed,
        separate,
        losses,
        {
            "S": separate["S"] + fall["S"],
            "M": _trunk(grown["L"][0]) * separate["M"] + fall["M"],
            "L": needed["L"],
        },
    )


def _whole(runs):
    """The FLOPs and the loss of a run on all of the tokens."""
    ends = [end for run in runs for end in run["finals"] if end["budget"] == 1.0]
    best = min(ends, key=lambda end: end["loss"])
    return best["spent"], best["loss"]


def _needed(runs, loss):
    """The FLOPs of a grown model until a loss, without those of its parents."""
    ends = [end for run in runs for end in analysis.ends(run, parents="free")]
    there = analysis.reached(ends, loss)
    if there is None:
        raise ValueError(f"{runs[0]['course']['setting']} does not come to {loss:.3f}.")
    return there.share


def _trunk(run):
    """The share of its own steps that M is trained for before it is grown."""
    first, second = run["course"]["growths"]
    return second["at"] - first["at"]


def _fall(runs):
    return runs[0]["course"]["model"]["decay"]


def table(found: list[Family]) -> str:
    """Families in Markdown."""
    rows = [
        (
            str(family.seed),
            *(f"{family.losses[size]:.3f}" for size in ALONE),
            *(f"{family.separate[size]:.2f}" for size in ALONE),
            *(f"{family.grown[size]:.2f}" for size in ALONE),
            f"{family.share:.2f}",
        )
        for family in found
    ]
    head = (
        "seed",
        *(f"loss of {size}" for size in ALONE),
        *(f"{size} alone" for size in ALONE),
        *(f"{size} in the family" for size in ALONE),
        "family, of three trainings",
    )
    return markdown.table(head, rows)


def share(found: list[Family]) -> Interval:
    """The family's FLOPs over those of three trainings."""
    return Interval.of([family.share for family in found])


def measured(results: list[dict]) -> list[Family]:
    """The families of the study, of seeds that nothing was chosen on if there are such."""
    return families(results, chosen_on=(0,)) or families(results)


def predicted(results: list[dict], seeds: tuple[int, ...] = (0,)) -> float:
    """The family's share that the assumption of `keras_fusion.plan_growth` gives.

    A grown model continues along its own curve, from where that has the smaller one's
    loss. Of the grown runs only the steps and the FLOPs are used.

    Args:
        results: list of results of the study.
        seeds: those of the runs without growth that the law is fitted on.
    """
    scale = laws.units(results)
    law = laws.fitted(results, list(seeds), scale)
    runs = {run["course"]["setting"]: run for run in results}
    sizes = {name: runs[run]["course"]["size"] for name, run in ALONE.items()}
    params = {name: scale.params[laws.size_name(size)] for name, size in sizes.items()}
    known = families(results)[0]
    trunk = _trunk(runs[GROWN["L"]])

    def start(name: str, smaller: str, tokens: float) -> float:
        loss = law.loss(params[smaller], tokens * scale.tokens)
        return float(law.tokens(params[name], loss)) / scale.tokens

    begins = start("M", "S", 1.0)
    fall = _fall([runs[GROWN["M"]]]) * (1 - begins)
    middle = known.separate["M"] * (trunk + fall)
    large = 1 - start("L", "M", begins + trunk)
    return (known.grown["S"] + middle + large) / sum(known.separate.values())


def tried(results: list[dict]) -> int:
    """How many settings of the largest of a family were tried."""
    runs = [run for run in results if run["course"]["setting"] == GROWN["L"]]
    return len({analysis.choice(run) for run in runs})


def main() -> None:
    """Prints the table, or puts it into a page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    results = Results(RESULTS / STUDY).all()
    found = families(results)
    if options.page:
        markdown.insert(table(found), options.page, "family")
    print(table(found))
    spent, expected = share(measured(results)), predicted(results)
    print(f"In all {spent:.2f}, and {expected:.2f} as predicted by the law.")


if __name__ == "__main__":
    main()
