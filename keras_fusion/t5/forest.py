"""Trains all nodes of some trees, alone or together with other processes.

Each process takes the next node whose parents have finished and that no other process
has. So the same command, started on two machines that share a folder, takes half the
time; started again after a stop, it resumes.
"""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from keras_fusion.errors import FusionError
from keras_fusion.t5 import fingerprint
from keras_fusion.t5.recipe import Recipe
from keras_fusion.t5.store import Store
from keras_fusion.t5.tree import Node

if TYPE_CHECKING:
    from keras_fusion.t5.data import PretrainingData

_WAIT = 5.0  # seconds until a look at what others have finished


def grow(
    wanted: Sequence[tuple[int, Node]],
    recipe: Recipe,
    data: "PretrainingData",
    store: Store,
    *,
    devices: int = 1,
    show: Callable[[str], None] = print,
) -> None:
    """Trains every node that has not finished, parents first.

    Args:
        wanted: pairs of a run's seed and a node.
        recipe: `Recipe`.
        data: `PretrainingData`.
        store: `Store`.
        devices: int. Number of devices that compute in this process. Defaults to 1.
        show: function that shows a line. Defaults to `print`.

    Raises:
        FusionError: see `check`.
    """
    check(wanted, recipe, store)
    while missing := [
        (seed, node) for seed, node in wanted if not store.entry(seed, node).finished
    ]:
        ready = [(seed, node) for seed, node in missing if _ready(seed, node, store)]
        if not any(
            _train(seed, node, recipe, data, store, devices, show)
            for seed, node in ready
        ):
            time.sleep(_WAIT)


def check(wanted: Sequence[tuple[int, Node]], recipe: Recipe, store: Store) -> None:
    """Checks the trainings that are there already, before anything is trained.

    Args:
        wanted: pairs of a run's seed and a node.
        recipe: `Recipe`.
        store: `Store`.

    Raises:
        FusionError: if a node's parents have not finished and are not wanted, or if a
            training that has begun was made from something else than the recipe says.
    """
    names = {(seed, node.name) for seed, node in wanted}
    for seed, node in wanted:
        for parent in node.parents:
            known = (seed, parent.name) in names
            if not known and not store.entry(seed, parent).finished:
                raise FusionError(
                    f"The node {node.name!r} of seed {seed} starts from {parent.name!r}, "
                    f"which has not finished in {str(store.folder)!r}. Train it first, or "
                    "bring its folder there."
                )
        for needed in (*node.parents, node):
            if store.entry(seed, needed).finished:
                _compare(seed, needed, recipe, store)
            else:
                data = fingerprint.recorded(store.data)
                wanted_now = fingerprint.of_training(needed, seed, recipe, store, data)
                fingerprint.check_state(store.entry(seed, needed), wanted_now)


def _compare(seed, node, recipe, store):
    if not fingerprint.check_result(node, seed, recipe, store):
        folder = store.entry(seed, node).folder
        raise FusionError(
            f"The training in {str(folder)!r} is of an earlier version, which did not "
            "record its recipe and text, so nothing can be compared. `finetune`, `table` "
            "and `plot` still work with it; to train, choose another --output."
        )


def _ready(seed, node, store):
    return all(store.entry(seed, parent).finished for parent in node.parents)


def _train(seed, node, recipe, data, store, devices, show):
    """Trains a node unless another process does; tells whether it did."""
    from keras_fusion.t5 import pretraining  # Takes seconds, and `check` comes first.

    entry = store.entry(seed, node)
    with entry.claimed() as mine:
        if not mine or entry.finished:
            return False
        for parent in node.parents:
            _compare(seed, parent, recipe, store)
        pretraining.train(node, seed, recipe, data, store, devices=devices, show=show)
    return True
