"""Measures the T5 pipeline: tokens made, over those that the tiny T5-S consumes.

python -m experiments.data_throughput

Both are measured in one run, the pipeline on one core and the model on all there are.
"""

import itertools
import os
import tempfile
from pathlib import Path

import tensorflow as tf

from experiments.timing import clocked
from keras_fusion.t5 import data
from keras_fusion.t5 import recipe as recipes
from keras_fusion.t5.model import build
from keras_fusion.t5.start import compiled
from keras_fusion.t5.tree import parse

BATCHES, STEPS = 2000, 200


def main():
    """Measures and prints."""
    recipe = recipes.load("tiny")
    with tempfile.TemporaryDirectory() as folder:
        data.prepare(recipe, Path(folder))
        pretraining = data.load(recipe, Path(folder))
        batches = pretraining.batches(seed=0)
        made = tokens_a_second(pretraining, batches)
        node = parse("S")
        model = build(recipe.architecture(node, pretraining.vocabulary.size), seed=0)
        consumed = trained_a_second(compiled(model, node, recipe), pretraining, batches)
    print(f"pipeline, on one core: {made:,.0f} tokens a second")
    print(f"T5-S, on {os.cpu_count()} cores: {consumed:,.0f} tokens a second")
    print(f"ratio: {made / consumed:.1f}")


def tokens_a_second(pretraining, batches):
    """Makes batches on one core and throws them away."""
    cores = os.sched_getaffinity(0)
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    try:
        os.sched_setaffinity(0, {min(cores)})
        dataset = iter(batches.dataset().with_options(options))
        next(dataset)  # the first one sets all up
        seconds, _ = clocked(lambda: list(itertools.islice(dataset, BATCHES)))
    finally:
        os.sched_setaffinity(0, cores)
    return BATCHES * pretraining.batch_size * pretraining.task.length / seconds


def trained_a_second(model, pretraining, batches):
    """Trains on one batch again and again, which costs the pipeline nothing."""
    batch = batches(0)
    model.train_on_batch(*batch)  # compiles
    seconds, _ = clocked(lambda: [model.train_on_batch(*batch) for _ in range(STEPS)])
    return STEPS * pretraining.batch_size * pretraining.task.length / seconds


if __name__ == "__main__":
    main()
