"""Fine-tunes fused models and their parents for as many steps, and compares.

python -m keras_fusion.t5 pretrain --scale tiny --seeds 3 --tree 'M(S, S)'
python -m experiments.finetuned_fusions t5 --store t5_tiny
python -m experiments.finetuned_fusions t5-novels --store t5_tiny --text NOVELS
python -m experiments.finetuned_fusions llama --store t5_tiny --text NOVELS
python -m experiments.finetuned_fusions table       # or --page docs/t5.md

Parents are trained on docstrings and joined under block norms, and all three are
fine-tuned with the same optimizer, each at the best of some learning rates. T5: the trees
of `keras_fusion.t5`, on its built-in task or by span corruption on a folder of English
novels. Llama: parents that are trained here, then on the novels. Every tenth novel is
held out, and the loss is measured on it. Runs that have finished are kept.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import keras_hub
import numpy as np

import keras_fusion
from keras_fusion.analysis.plotting import figure, methods
from keras_fusion.t5 import data, finetuning, markdown, recipe, token_files
from keras_fusion.t5.batches import (
    TrainingBatches,
    arranged,
    streamed,
    validation_batches,
)
from keras_fusion.t5.rate import WarmupStableDecay
from keras_fusion.t5.rows import Rows
from keras_fusion.t5.store import Store
from keras_fusion.t5.tasks import open_task
from keras_fusion.t5.tree import Node
from keras_fusion.t5.vocabulary import EOS_ID

RESULTS = Path(__file__).parent / "results" / "finetuned_fusions.json"
STEPS, EVERY, SEEDS = 300, 50, (0, 1, 2)
RATES = {
    "t5": (0.005, 0.01, 0.02),
    "t5-novels": (0.005, 0.01, 0.02),
    "llama": (0.0005, 0.001, 0.002),
}
LENGTH, ROWS, PRETRAINING = 64, 16, 1000
NAMES = ("parent A", "parent B", "fused")
TITLES = {
    "t5": "T5, the built-in task",
    "t5-novels": "T5, span corruption of novels",
    "llama": "Llama, novels",
}


class T5:
    """T5s of a store, and the built-in task."""

    def __init__(self, store: Path, text: Path | None):
        self.recipe, self.store = recipe.load("tiny"), Store(store)
        self.vocabulary = data.load_vocabulary(self.recipe, self.store.data)
        self.task = open_task("builtin")

    def parents(self, seed: int) -> list[keras.Model]:
        """The two T5-S of a seed, trained."""
        return [self.store.entry(seed, Node("S", i)).model() for i in (1, 2)]

    def encoded(self, texts: Any) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of texts as token ids."""
        sizes = self.recipe.finetuning
        return (
            finetuning.encoded(texts.inputs, self.vocabulary, sizes.input_length),
            finetuning.encoded(texts.targets, self.vocabulary, sizes.target_length),
        )

    def course(self, model: keras.Model, rate: float, seed: int) -> list[float]:
        """The held-out loss before the fine-tuning, and all along it."""
        finetuning.compiled(model, rate)
        (held_out,) = self.task.validation.values()
        features, targets, weights = arranged(*self.encoded(held_out))
        batches = finetuning.TaskBatches(*self.encoded(self.task.training), ROWS, seed)

        def loss() -> float:
            return _held_out(model, features, targets, sample_weight=weights)

        return _course(model, loss, lambda a, b: streamed(batches, a, b))


class T5OnNovels(T5):
    """T5s of a store, and span corruption of novels."""

    def __init__(self, store: Path, text: Path | None):
        super().__init__(store, text)
        training, held_out = _novels(text, self.vocabulary)
        first = self.vocabulary.first_sentinel
        self.corruption = self.recipe.text.corruption(first, EOS_ID)
        length = self.corruption.length
        self.training, self.held_out = Rows(training, length), Rows(held_out, length)

    def course(self, model: keras.Model, rate: float, seed: int) -> list[float]:
        """The held-out loss before the fine-tuning, and all along it."""
        finetuning.compiled(model, rate)
        batches = TrainingBatches(self.training, self.corruption, ROWS, seed)
        held_out = validation_batches(
            self.held_out, self.corruption, batch_size=64, batches=8, seed=0
        )

        def loss() -> float:
            return _held_out(model, held_out)

        return _course(model, loss, lambda a, b: streamed(batches, a, b))


class Llama:
    """Llamas trained on docstrings, then on novels."""

    def __init__(self, store: Path, text: Path | None):
        self.recipe, folder = recipe.load("tiny"), Store(store).data
        vocabulary = data.load_vocabulary(self.recipe, folder)
        self.docs = np.concatenate(token_files.read(folder, "training"))
        training, held_out = _novels(text, vocabulary)
        self.training = np.concatenate(training)
        self.held_out = np.concatenate(held_out)[: 256 * (LENGTH + 1)]

    def parents(self, seed: int) -> list[keras.Model]:
        """Two Llamas, trained on the docstrings from different seeds."""
        return [self._trained(10 * seed + i) for i in (1, 2)]

    def _trained(self, seed: int) -> keras.Model:
        keras.utils.set_random_seed(seed)
        backbone = keras_hub.models.LlamaBackbone(
            vocabulary_size=self.recipe.text.vocabulary_size,
            num_layers=2,
            num_query_heads=2,
            num_key_value_heads=2,
            hidden_dim=64,
            intermediate_dim=176,
        )
        model = keras_hub.models.LlamaCausalLM(backbone, preprocessor=None)
        rate: Any = WarmupStableDecay(
            3e-3, 50, decay_from=0.8 * PRETRAINING, decay_to=PRETRAINING
        )
        _compile(model, rate)
        model.fit(_rows(self.docs, seed, 0, PRETRAINING), verbose="0", shuffle=False)
        return model

    def course(self, model: keras.Model, rate: float, seed: int) -> list[float]:
        """The held-out loss before the fine-tuning, and all along it."""
        _compile(model, rate)
        x = self.held_out.reshape(-1, LENGTH + 1)

        def loss() -> float:
            return _held_out(model, _features(x), x[:, 1:])

        return _course(model, loss, lambda a, b: _rows(self.training, seed, a, b))


def _novels(text: Path | None, vocabulary: Any) -> tuple[list, list]:
    """The tokens of each novel: those to train on, and every tenth, held out."""
    if text is None:
        raise SystemExit("This needs --text, a folder of novels.")
    read = [
        np.array(vocabulary.encode(f.read_text(encoding="utf-8", errors="replace")))
        for f in sorted(text.rglob("*.txt"))
    ]
    return [x for i, x in enumerate(read) if i % 10], read[::10]


def _compile(model: keras.Model, rate: Any) -> None:
    model.compile(
        keras.optimizers.Adam(rate, beta_2=0.95),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=[],
    )


def _held_out(model: keras.Model, *data: Any, **options: Any) -> float:
    if len(data) > 1:  # A dataset has its batches.
        options["batch_size"] = 64
    options |= {"verbose": "0", "return_dict": True}
    return float(model.evaluate(*data, **options)["loss"])


def _features(rows: np.ndarray) -> dict[str, np.ndarray]:
    ids = rows[:, :-1]
    return {"token_ids": ids, "padding_mask": np.ones_like(ids)}


def _rows(tokens: np.ndarray, seed: int, begin: int, end: int) -> Any:
    """Batches of rows from random places; a batch is a function of seed and step."""

    def batch(step: int) -> tuple:
        random = np.random.default_rng([seed, step])
        places = random.integers(0, len(tokens) - LENGTH - 1, ROWS)
        rows = np.stack([tokens[p : p + LENGTH + 1] for p in places]).astype("int32")
        return _features(rows), rows[:, 1:]

    return streamed(batch, begin, end)


def _course(
    model: keras.Model, loss: Callable[[], float], batches: Callable[[int, int], Any]
) -> list[float]:
    losses = [loss()]
    for begin in range(0, STEPS, EVERY):
        model.fit(batches(begin, begin + EVERY), verbose="0", shuffle=False)
        losses.append(loss())
    return losses


def measure(kind: str, store: Path, text: Path | None, path: Path) -> None:
    """Runs what the file of results lacks."""
    study = {"t5": T5, "t5-novels": T5OnNovels, "llama": Llama}[kind](store, text)
    results = json.loads(path.read_text()) if path.exists() else {}
    for seed in SEEDS:
        missing = [
            rate for rate in RATES[kind] if _key(kind, seed, rate) not in results
        ]
        if not missing:
            continue
        parents = study.parents(seed)
        every = [*parents, keras_fusion.fuse(parents, norms="block")]
        models = dict(zip(NAMES, every, strict=True))
        weights = {name: model.get_weights() for name, model in models.items()}
        for rate in missing:
            courses = {}
            for name, model in models.items():
                model.set_weights(weights[name])
                courses[name] = study.course(model, rate, seed)
                print(kind, seed, rate, name, [round(x, 4) for x in courses[name]])
            results[_key(kind, seed, rate)] = courses
            path.write_text(json.dumps(results, indent=1) + "\n")


def _key(kind: str, seed: int, rate: float) -> str:
    return f"{kind} seed {seed} rate {rate}"


# What is told of the results.

Results = dict[str, dict[str, list[float]]]


def best(results: Results) -> Iterator[tuple[str, int, dict[str, list[float]]]]:
    """Yields `(kind, seed, courses)`: each model's at the rate at which it ends lowest."""
    for kind, rates in RATES.items():
        for seed in SEEDS:
            runs = [results.get(_key(kind, seed, rate)) for rate in rates]
            if None not in runs:
                yield (
                    kind,
                    seed,
                    {
                        name: min((r[name] for r in runs if r), key=lambda x: x[-1])
                        for name in NAMES
                    },
                )


def better_parent(courses: dict[str, list[float]]) -> list[float]:
    """The course of the parent that ends lower."""
    return min(courses["parent A"], courses["parent B"], key=lambda x: x[-1])


def rows(results: Results) -> Iterator[tuple[str, ...]]:
    """One row per kind and seed."""
    for kind, seed, courses in best(results):
        above = max(np.array(courses["fused"]) - better_parent(courses))
        ends = (f"{courses[name][0]:.3f} to {courses[name][-1]:.3f}" for name in NAMES)
        yield kind, str(seed), *ends, f"{above:+.3f}"


def table(results: Results) -> str:
    """The table of all runs that have finished."""
    head = ("model", "seed", *NAMES, "fused less the better parent, at most")
    return markdown.table(head, list(rows(results)))


def draw(results: Results, path: Path) -> None:
    """Draws the better parent and the fused model, a panel per kind, a line per seed."""
    runs: dict[str, list] = {}
    for kind, _, courses in best(results):
        runs.setdefault(kind, []).append(courses)
    drawn = figure.new_figure(4.2 * len(runs), 3.8)
    panels = np.atleast_1d(drawn.subplots(1, len(runs)))
    for axes, (kind, found) in zip(panels, runs.items(), strict=True):
        steps = np.arange(1, len(found[0]["fused"])) * EVERY
        for courses in found:
            curves = {
                "better parent": better_parent(courses),
                "fused": courses["fused"],
            }
            for name, curve in curves.items():
                style = methods.styles([name])[name] | {"markersize": 4}
                axes.plot(steps, curve[1:], **style)
        axes.set_title(TITLES[kind])
        axes.set_xlabel("steps of fine-tuning")
        figure.tidy(axes)
    panels[0].set_ylabel("held-out loss (nats per token)")
    handles = panels[0].lines[:2]
    names = ("better parent", "fused from both")
    drawn.legend(handles, names, loc="outside upper center", ncols=2, frameon=False)
    figure.save(drawn, str(path))


def main() -> None:
    """Runs a kind of model, or writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=(*RATES, "table"))
    parser.add_argument("--store", type=Path, default=Path("t5_tiny"))
    parser.add_argument("--text", type=Path)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, help="page to put table and picture into")
    options = parser.parse_args()
    if options.command != "table":
        measure(options.command, options.store, options.text, options.results)
        return
    results = json.loads(options.results.read_text())
    print(table(results))
    if options.page:
        markdown.insert(table(results), options.page, "finetuned-fusions")
        draw(results, options.page.with_name("finetuned_fusions.png"))


if __name__ == "__main__":
    main()
