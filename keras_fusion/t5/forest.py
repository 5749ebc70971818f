"""Trains all nodes of some trees, alone or together with other processes.

Each process takes the next node whose parents have finished and that nobody else has.
So the same command, started twice, on two machines that share a folder, halves the time;
started again after a stop, it goes on.
"""

import time
from collections.abc import Sequence

from keras_fusion.t5 import pretraining
from keras_fusion.t5.data import PretrainingData
from keras_fusion.t5.recipe import Recipe
from keras_fusion.t5.store import Store
from keras_fusion.t5.tree import Node

_WAIT = 5.0  # seconds until a look at what others have finished


def grow(
    wanted: Sequence[tuple[int, Node]],
    recipe: Recipe,
    data: PretrainingData,
    store: Store,
    *,
    devices: int = 1,
    show=print,
) -> None:
    """Trains every node that has not finished, parents first.

    Args:
        wanted: pairs of a run's seed and a node.
        recipe: `Recipe`.
        data: `PretrainingData`.
        store: `Store`.
        devices: int. How many compute in this process. Defaults to 1.
        show: function that shows a line. Defaults to `print`.

    Raises:
        ValueError: if a node's parents have not finished and are not wanted.
    """
    _check(wanted, store)
    while missing := [
        (seed, node) for seed, node in wanted if not store.entry(seed, node).finished
    ]:
        ready = [(seed, node) for seed, node in missing if _ready(seed, node, store)]
        if not any(
            _train(seed, node, recipe, data, store, devices, show)
            for seed, node in ready
        ):
            time.sleep(_WAIT)


def _ready(seed, node, store):
    return all(store.entry(seed, parent).finished for parent in node.parents)


def _train(seed, node, recipe, data, store, devices, show):
    """Trains a node unless another process does; tells whether it did."""
    entry = store.entry(seed, node)
    with entry.claimed() as mine:
        if not mine or entry.finished:
            return False
        pretraining.train(node, seed, recipe, data, store, devices=devices, show=show)
    return True


def _check(wanted, store):
    names = {(seed, node.name) for seed, node in wanted}
    for seed, node in wanted:
        for parent in node.parents:
            known = (seed, parent.name) in names
            if not known and not store.entry(seed, parent).finished:
                raise ValueError(
                    f"The node {node.name!r} of seed {seed} starts from {parent.name!r}, "
                    f"which has not finished in {str(store.folder)!r}. Train it first, or "
                    "bring its folder there."
                )
