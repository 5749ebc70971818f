"""Trains one node of a tree: from scratch or from a fusion, resumable at any step."""

import time
from collections.abc import Callable
from typing import Any, cast

import keras

from keras_fusion.models.flops import training_step_flops
from keras_fusion.t5 import fingerprint, strategy
from keras_fusion.t5.data import PretrainingData
from keras_fusion.t5.recipe import Recipe
from keras_fusion.t5.snapshot import restore, snapshot
from keras_fusion.t5.start import starting_point
from keras_fusion.t5.store import Entry, Store
from keras_fusion.t5.tree import Node

_SILENT: Any = 0  # Keras's annotation of `verbose` is narrower than what it takes


def train(
    node: Node,
    seed: int,
    recipe: Recipe,
    data: PretrainingData,
    store: Store,
    *,
    devices: int = 1,
    show: Callable[[str], None] = print,
) -> dict:
    """Trains a node to its end, from where an earlier process left it.

    Args:
        node: `Node`. Its parents must have finished.
        seed: int. Of the run.
        recipe: `Recipe`.
        data: `PretrainingData`.
        store: `Store`.
        devices: int. Number of devices that compute, for accelerator hours. Defaults to 1.
        show: function that shows a line. Defaults to `print`.

    Returns:
        The figures, which are kept in the store as well.

    Raises:
        FusionError: if the state of an earlier process cannot be read, or is of another
            recipe, text or vocabulary.
    """
    entry = store.entry(seed, node)
    made_from = fingerprint.of_training(node, seed, recipe, store, data.fingerprint)
    fingerprint.check_state(entry, made_from)
    kept = entry.load_state()
    model, start = starting_point(node, seed, recipe, data, store)
    batches = data.batches(node.seed(seed), *strategy.host())
    steps = recipe.steps(node)
    figures = {
        "node": node.name,
        "seed": seed,
        "fingerprint": made_from,
        "parameters": model.count_params(),
        "step_flops": training_step_flops(model, batches(0)),
        "devices": devices,
        "start": start,
        "step": 0,
        "seconds": 0.0,
        "points": [],
    }
    model.optimizer.build(model.trainable_variables)
    if kept is not None:
        try:
            restore(model, kept[0])
        except ValueError as error:  # of another number or shape
            raise entry.unusable_state(error) from error
        # The rest describes the machine, which may be another one now.
        figures |= {k: kept[1][k] for k in ("start", "step", "seconds", "points")}
    keeper = _Keeper(entry, figures, recipe, data, steps, show)
    if not figures["points"]:
        keeper.evaluate(model)
    if figures["step"] < steps:
        model.fit(
            batches.dataset(figures["step"]),
            steps_per_epoch=steps - figures["step"],
            verbose=_SILENT,
            shuffle=False,  # the batches are shuffled already
            callbacks=[keeper],
        )
    result = figures | {
        "flops": steps * figures["step_flops"],
        "loss": figures["points"][-1]["loss"],
        "accuracy": figures["points"][-1]["accuracy"],
    }
    entry.finish(model, result)
    return result


class _Keeper(keras.callbacks.Callback):
    """Counts steps, evaluates, saves the state, and shows a line."""

    def __init__(
        self,
        entry: Entry,
        figures: dict,
        recipe: Recipe,
        data: PretrainingData,
        steps: int,
        show: Callable[[str], None],
    ):
        super().__init__()
        self.entry, self.figures, self.steps, self.show = entry, figures, steps, show
        self.every = recipe.training.evaluate_every
        self.keep_every = recipe.training.checkpoint_every
        self.validation = data.validation

    def on_train_batch_begin(self, batch, logs=None):
        self._began = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        figures, model = self.figures, cast(keras.Model, self.model)
        figures["step"] += 1
        # Evaluations and files do not count as training time.
        figures["seconds"] += time.perf_counter() - self._began
        last = figures["step"] == self.steps
        if last or figures["step"] % self.every == 0:
            self.evaluate(model)
        if last or figures["step"] % self.keep_every == 0:
            self.entry.save_state(snapshot(model), figures)

    def evaluate(self, model: keras.Model) -> None:
        """Adds a point to the curve."""
        found = model.evaluate(self.validation, verbose=_SILENT, return_dict=True)
        figures = self.figures
        figures["points"].append(
            {
                "step": figures["step"],
                "seconds": figures["seconds"],
                "loss": float(found["loss"]),
                "accuracy": float(found["accuracy"]),
            }
        )
        self.show(
            f"seed {figures['seed']}  {figures['node']:<24} step {figures['step']:>6}/"
            f"{self.steps}  loss {found['loss']:.4f}  accuracy {found['accuracy']:.4f}  "
            f"{figures['seconds']:.0f} s"
        )
