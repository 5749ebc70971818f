"""A small recipe, and output folders as trainings leave them, without the trainings."""

import json
import re

import numpy as np

from keras_fusion.t5 import fingerprint, recipe
from keras_fusion.t5.store import Store
from keras_fusion.t5.tree import parse, trainings

NUMBERS = {
    "vocabulary_size": 400,
    "sentinels": 16,
    "input_length": 40,
    "validation_batches": 2,
    "batch_size": 4,
    "evaluate_every": 10,
    "checkpoint_every": 7,
    "steps": 40,
    "seeds": 1,
}
# Changes for a text of one short sentence, see `write_texts`.
SMALL = {"vocabulary_size": 50, "byte_fallback": False, "input_length": 20}


def write_recipe(path, **changes):
    """The tiny recipe with smaller numbers and some changes, as a file."""
    text = (recipe.FOLDER / "tiny.toml").read_text()
    for key, value in (NUMBERS | changes).items():
        text, count = re.subn(rf"(?m)^{key} = .*", f"{key} = {json.dumps(value)}", text)
        assert count, key
    path.write_text(text)
    return str(path)


def write_texts(folder, count=60, text="This is the document number {}, a short one."):
    """A folder of text files, some of which are held out by their names."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number:03}.txt").write_text(text.format(number), encoding="utf-8")
    return folder


def figures(loss=2.0):
    """The figures of a result, whatever was trained."""
    return {
        "parameters": 7,
        "start": {},
        "loss": loss,
        "accuracy": 0.5,
        "step_flops": 11,
        "flops": 440,
        "seconds": 60.0,
        "devices": 1,
        "points": [
            {"step": s, "loss": 4.0 - s / 20, "accuracy": 0.5} for s in range(0, 41, 10)
        ],
    }


def finish(store, scale, *trees, seed=0, fingerprints=True):
    """Writes results for all trainings of some trees, as `pretrain` does."""
    found = recipe.load(scale)
    for node in trainings(map(parse, trees)):
        result = figures() | {"node": node.name, "seed": seed}
        if node.parents:
            result["start"] = {"largest_change": 0.2, "mean_change": 0.1}
        if fingerprints:
            data = fingerprint.recorded(store.data)
            made_from = fingerprint.of_training(node, seed, found, store, data)
            result["fingerprint"] = made_from
        store.entry(seed, node).write("result", result)


def begin(store, scale, tree, seed=0, step=10):
    """Writes a state for the root of a tree, as `pretrain` does."""
    node, found = parse(tree), recipe.load(scale)
    data = fingerprint.recorded(store.data)
    made_from = fingerprint.of_training(node, seed, found, store, data)
    entry = store.entry(seed, node)
    entry.folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(3, 4)).astype("float32") for _ in range(5)]
    entry.save_state(arrays, {"fingerprint": made_from, "step": step})
    return entry


def finished_store(folder, scale, *trees, **options):
    """A `Store` in which some trees have finished."""
    store = Store(folder)
    finish(store, scale, *trees, **options)
    return store
