"""Trains one node of a tree: from scratch or from a fusion, resumable at any step."""

import time

import keras

import keras_fusion
from keras_fusion.analysis.flops import training_step_flops
from keras_fusion.t5 import strategy
from keras_fusion.t5.data import PretrainingData
from keras_fusion.t5.model import build
from keras_fusion.t5.rate import WarmupStableDecay
from keras_fusion.t5.recipe import Recipe
from keras_fusion.t5.snapshot import restore, snapshot
from keras_fusion.t5.store import Entry, Store
from keras_fusion.t5.tree import Node


def train(
    node: Node,
    seed: int,
    recipe: Recipe,
    data: PretrainingData,
    store: Store,
    *,
    devices: int = 1,
    show=print,
) -> dict:
    """Trains a node to its end, from where an earlier process left it.

    Args:
        node: `Node`. Its parents must have finished.
        seed: int. Of the run.
        recipe: `Recipe`.
        data: `PretrainingData`.
        store: `Store`.
        devices: int. How many compute, for accelerator hours. Defaults to 1.
        show: function that shows a line. Defaults to `print`.

    Returns:
        The figures, which are kept in the store as well.
    """
    entry = store.entry(seed, node)
    model, start = starting_point(node, seed, recipe, data, store)
    compiled(model, node, recipe)
    batches = data.batches(node.seed(seed), *strategy.host())
    steps = recipe.steps(node)
    figures = {
        "node": node.name,
        "seed": seed,
        "parameters": model.count_params(),
        "step_flops": training_step_flops(model, batches(0)),
        "devices": devices,
        "start": start,
        "step": 0,
        "seconds": 0.0,
        "points": [],
    }
    model.optimizer.build(model.trainable_variables)
    kept = entry.load_state()
    if kept is not None:
        restore(model, kept[0])
        # What the state tells of the machine it ran on may be other now.
        figures |= {k: kept[1][k] for k in ("start", "step", "seconds", "points")}
    keeper = _Keeper(entry, figures, recipe, data, steps, show)
    if not figures["points"]:
        keeper.evaluate(model)
    if figures["step"] < steps:
        model.fit(
            batches.dataset(figures["step"]),
            steps_per_epoch=steps - figures["step"],
            verbose=0,
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


def starting_point(
    node: Node, seed: int, recipe: Recipe, data: PretrainingData, store: Store
) -> tuple[keras.Model, dict]:
    """The model that a node's training begins with.

    Args:
        node: `Node`.
        seed: int.
        recipe: `Recipe`.
        data: `PretrainingData`.
        store: `Store`.

    Returns:
        Tuple of the model, and what is known of its fusion: the largest and mean relative
        change of the outputs; empty for a training from scratch.
    """
    own = node.seed(seed)
    if not node.parents:
        architecture = recipe.architecture(node, data.vocabulary.size)
        return build(architecture, seed=own), {}
    parents = [store.entry(seed, parent).model() for parent in node.parents]
    features = data.batches(own)(0)[0]
    fusion = recipe.fusion
    scale = node.option("off_diagonal_scale", fusion.off_diagonal_scale)
    if node.copies > 1:
        fused = keras_fusion.fuse(
            parents[0],
            factor=node.copies,
            off_diagonal=node.option("off_diagonal", fusion.self_off_diagonal),
            off_diagonal_scale=scale,
            seed=own,
        )
    else:
        fused = keras_fusion.fuse(
            parents,
            off_diagonal=node.option("off_diagonal", fusion.off_diagonal),
            off_diagonal_scale=scale,
            norms=fusion.norms,
            batch=features if fusion.norms == "calibrated" else None,
            seed=own,
        )
    difference = keras_fusion.fusion_report(parents, fused, features).difference
    return fused, {"largest_change": difference.largest, "mean_change": difference.mean}


def compiled(model: keras.Model, node: Node, recipe: Recipe) -> keras.Model:
    """Compiles a node's model for pre-training, and returns it."""
    training = recipe.training
    factor = training.fused_rate if node.parents else 1.0
    rate = WarmupStableDecay(
        training.peak_rate * node.option("rate", factor),
        training.warmup_steps,
        decay_from=training.constant_steps,
    )
    model.compile(
        # The rate is the schedule's own; Adafactor would put another one under it.
        optimizer=keras.optimizers.Adafactor(rate, relative_step=False),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[],
        weighted_metrics=[keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
    )
    return model


class _Keeper(keras.callbacks.Callback):
    """Counts, evaluates, keeps the state, and shows a line."""

    def __init__(self, entry: Entry, figures, recipe, data, steps, show):
        super().__init__()
        self.entry, self.figures, self.steps, self.show = entry, figures, steps, show
        self.every = recipe.training.evaluate_every
        self.keep_every = recipe.training.checkpoint_every
        self.validation = data.validation

    def on_train_batch_begin(self, batch, logs=None):
        self._began = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        figures = self.figures
        figures["step"] += 1
        # Evaluations and files are no part of the training's time.
        figures["seconds"] += time.perf_counter() - self._began
        last = figures["step"] == self.steps
        if last or figures["step"] % self.every == 0:
            self.evaluate(self.model)
        if last or figures["step"] % self.keep_every == 0:
            self.entry.save_state(snapshot(self.model), figures)

    def evaluate(self, model):
        """Adds a point to the curve."""
        found = model.evaluate(self.validation, verbose=0, return_dict=True)
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
