"""The model that a node's training begins with: new, or grown from its parents."""

from typing import Any

import keras

import keras_fusion
from keras_fusion.t5.data import PretrainingData
from keras_fusion.t5.model import build
from keras_fusion.t5.rate import WarmupStableDecay
from keras_fusion.t5.recipe import Recipe
from keras_fusion.t5.store import Store
from keras_fusion.t5.tree import Node


def starting_point(
    node: Node, seed: int, recipe: Recipe, data: PretrainingData, store: Store
) -> tuple[keras.Model, dict]:
    """Makes the compiled model that a node's training begins with.

    Args:
        node: `Node`.
        seed: int.
        recipe: `Recipe`.
        data: `PretrainingData`.
        store: `Store`.

    Returns:
        Tuple of the model, and what is known of its fusion: the largest and mean relative
        change of the outputs, and for distinct parents the validation loss of their mean
        logits; an empty dict for a training from scratch.
    """
    own = node.seed(seed)
    if not node.parents:
        architecture = recipe.architecture(node, data.vocabulary.size)
        return compiled(build(architecture, seed=own), node, recipe), {}
    carried = recipe.fusion.optimizer_state == "carry"
    parents = [_parent(each, seed, recipe, store, carried) for each in node.parents]
    start = {}
    if len(parents) > 1:
        start["ensemble_loss"] = ensemble_loss(parents, data.validation)
    features = data.batches(own)(0)[0]
    event = keras_fusion.grow(
        parents[0],
        _operator(node, recipe, parents, features),
        probe=features,
        seed=own,
        verbose=0,
    )
    start["largest_change"] = event.function_change
    start["mean_change"] = event.mean_change
    model = parents[0]
    if not carried:  # The optimizers have no state yet, and are replaced.
        return compiled(model, node, recipe), start
    # Its steps go on, and so does the fall of the rate.
    model.optimizer.learning_rate = _rate(node, recipe)
    return model, start


def _parent(
    node: Node, seed: int, recipe: Recipe, store: Store, carried: bool
) -> keras.Model:
    """A trained parent, with the state of its optimizer if that is carried."""
    entry = store.entry(seed, node)
    model = entry.model()
    if not carried:
        return model
    state = entry.optimizer_state()
    compiled(model, node, recipe)
    model.optimizer.build(model.trainable_variables)
    try:
        for variable, value in zip(model.optimizer.variables, state, strict=True):
            variable.assign(value)
    except ValueError as error:  # of another number or shape
        raise entry.unusable_optimizer(error) from error
    return model


def _operator(
    node: Node, recipe: Recipe, parents: list[keras.Model], features: Any
) -> keras_fusion.FusionOperator:
    norms = recipe.fusion.norms
    copies = {"factor": node.copies}
    partners = {
        "partners": parents[1:],
        "norms": norms,
        "probe": features if norms == "calibrated" else None,
    }
    return keras_fusion.FusionOperator(
        off_diagonal=recipe.off_diagonal(node),
        noise_scale=recipe.noise_scale(node),
        **(copies if node.copies > 1 else partners),
    )


def ensemble_loss(models: list[keras.Model], batches: Any) -> float:
    """The loss of the mean of models' logits, as `evaluate` counts it.

    Args:
        models: models of one kind of inputs and outputs.
        batches: dataset of triples, features, labels and weights.
    """
    inputs = models[0].input
    logits = keras.layers.Average()([model(inputs) for model in models])
    mean = keras.Model(inputs, logits)
    mean.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    found: Any = mean.evaluate(batches, verbose="0", return_dict=True)
    return float(found["loss"])


def compiled(model: keras.Model, node: Node, recipe: Recipe) -> keras.Model:
    """Compiles a node's model for pre-training, and returns it."""
    model.compile(
        # The schedule is the whole rate; Adafactor would multiply it by one of its own.
        optimizer=keras.optimizers.Adafactor(_rate(node, recipe), relative_step=False),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[],
        weighted_metrics=[keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
    )
    return model


def _rate(node: Node, recipe: Recipe) -> Any:
    """The learning rate by the optimizer's steps."""
    training = recipe.training
    return WarmupStableDecay(
        training.peak_rate * recipe.rate(node),
        training.warmup_steps,
        decay_from=training.constant_steps,
    )
