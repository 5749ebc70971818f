"""Fine-tunes T5s of novels for SST-2: small, from scratch, self-fused, fused.

python -m keras_fusion.t5 pretrain --scale experiments/t5_novels.toml --output STORE
python -m experiments.sst2 --store STORE --data SST2    # fine-tunes what is missing
python -m experiments.sst2                              # prints the table
python -m experiments.sst2 --page PAGE

SST2 is a folder with GLUE's `train.tsv` and `dev.tsv`. All four models cost the same FLOPs
before the fine-tuning, the parents' included. Each is fine-tuned at several rates; the
best on training sentences that are held out counts, and is reported on the dev set.
"""

import argparse
import json
from pathlib import Path

import keras

from experiments.harness.analysis import Interval
from keras_fusion.t5 import data, finetuning, markdown, metrics, recipe
from keras_fusion.t5.store import Entry, Store
from keras_fusion.t5.text_task import Texts, TextTask
from keras_fusion.t5.vocabulary import Vocabulary

RECIPE = Path(__file__).with_name("t5_novels.toml")
RESULTS = Path(__file__).parent / "results" / "sst2.json"
LABELS = ("negative", "positive")
RATES = (0.003, 0.01, 0.03)
HELD_OUT = 1000


def task(folder: Path) -> TextTask:
    """SST-2 as T5 casts it; the last sentences of the training set are held out."""
    training = _read(folder / "train.tsv")
    return TextTask(
        "sst2",
        Texts(training.inputs[:-HELD_OUT], training.targets[:-HELD_OUT]),
        {
            "held out": Texts(
                training.inputs[-HELD_OUT:], training.targets[-HELD_OUT:]
            ),
            "dev": _read(folder / "dev.tsv"),
        },
        LABELS,
        {"accuracy": metrics.accuracy},
    )


def _read(path: Path) -> Texts:
    _, *lines = path.read_text("utf-8").splitlines()  # the first names the columns
    rows = [line.split("\t") for line in lines]
    return Texts(
        tuple(f"sst2 sentence: {sentence}" for _, sentence in rows),
        tuple(LABELS[int(label)] for label, _ in rows),
    )


def fine_tuned(
    told: recipe.Recipe, vocabulary: Vocabulary, entry: Entry, sst2: TextTask, run: dict
) -> dict:
    """Fine-tunes one model of the store; returns the run with its accuracies."""
    keras.utils.set_random_seed(run["seed"])
    model = entry.model()
    sizes = told.finetuning
    result = finetuning.finetune(
        model,
        sst2,
        vocabulary,
        steps=sizes.steps,
        batch_size=sizes.batch_size,
        input_length=sizes.input_length,
        target_length=sizes.target_length,
        learning_rate=run["rate"],
        seed=run["seed"],
        evaluations=1,
    )
    pretraining = entry.result()
    return run | {
        "params": model.count_params(),
        "pretraining_loss": pretraining["loss"],
        "majority": result.majority["dev"]["accuracy"],
        **{name: scores["accuracy"] for name, scores in result.metrics.items()},
    }


def measure(store: Store, folder: Path, path: Path) -> None:
    """Fine-tunes what the file of results lacks."""
    told, sst2 = recipe.load(str(RECIPE)), task(folder)
    results = json.loads(path.read_text()) if path.exists() else {}
    vocabulary = data.load_vocabulary(told, store.data)
    (asked,) = told.tables
    for seed in range(asked.seeds):
        for setting, tree in asked.trees.items():
            for rate in RATES:
                run = {
                    "setting": setting,
                    "tree": str(tree),
                    "seed": seed,
                    "rate": rate,
                }
                key = f"{setting} seed {seed} rate {rate:g}"
                if key not in results:
                    entry = store.entry(seed, tree)
                    results[key] = fine_tuned(told, vocabulary, entry, sst2, run)
                    path.write_text(json.dumps(results, indent=1) + "\n")
                    print(key, json.dumps(results[key]), flush=True)


def best(results: dict[str, dict]) -> dict[str, dict[int, dict]]:
    """By setting and seed, the run at the rate that is best on the held-out sentences."""
    found: dict[str, dict[int, dict]] = {}
    for run in results.values():
        seeds = found.setdefault(run["setting"], {})
        other = seeds.get(run["seed"])
        if other is None or run["held out"] > other["held out"]:
            seeds[run["seed"]] = run
    return found


def table(results: dict[str, dict]) -> str:
    """The runs in Markdown."""
    found = best(results)
    scratch = found.get("scratch", {})
    rows = []
    for setting, seeds in found.items():
        runs = list(seeds.values())
        more = [
            f"{run['dev'] - scratch[seed]['dev']:+.3f}"
            for seed, run in seeds.items()
            if seed in scratch and setting != "scratch"
        ]
        rows.append(
            (
                setting,
                f"`{runs[0]['tree']}`",
                f"{runs[0]['params']:,}",
                str(len(runs)),
                f"{Interval.of([run['pretraining_loss'] for run in runs]):.3f}",
                ", ".join(f"{run['rate']:g}" for run in runs),
                f"{Interval.of([run['dev'] for run in runs]):.3f}",
                ", ".join(more),
            )
        )
    most = max((run["majority"] for run in results.values()), default=0.0)
    rows.append(("most frequent answer", *[""] * 5, f"{most:.3f}", ""))
    head = (
        *("setting", "tree", "parameters", "seeds", "loss on novels"),
        *("best rates", "accuracy on the dev set", "more than scratch, seed by seed"),
    )
    return markdown.table(head, rows)


def main() -> None:
    """Fine-tunes what is missing, or prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", type=Path, help="output folder of the pre-training")
    parser.add_argument("--data", type=Path, help="folder of SST-2")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, help="page to put the table into")
    options = parser.parse_args()
    if options.store and options.data:
        measure(Store(options.store), options.data, options.results)
    results = json.loads(options.results.read_text())
    if options.page:
        markdown.insert(table(results), options.page, "sst2")
    print(table(results))


if __name__ == "__main__":
    main()
