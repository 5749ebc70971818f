"""Initial values other than those that keras-hub's layers choose."""

import math
import re

import keras
import numpy as np

# Where a block adds to the residual stream, in keras-hub's Llama and T5.
RESIDUAL = re.compile(r"(attention_output|feedforward_output_dense|output_projector)/")
BLOCK = re.compile(r"(transformer\w*_layer)_(\d+)/")
OPTIONS = {"kernels", "residual", "embeddings"}


def initialize(model: keras.Model, options: dict, seed: int, layers: int) -> None:
    """Draws the initial values of a fresh model again, as far as options say so.

    Args:
        model: a built model.
        options: dict that may hold `kernels = "fan_in"`, for normal numbers of deviation
            1/sqrt(fan-in); `residual = "by_depth"`, for outputs of blocks divided by
            sqrt(2 * layers); and `embeddings`, the deviation of the embedding table.
        seed: int.
        layers: int. How many there are in a stack.

    Raises:
        ValueError: for an option that means nothing.
    """
    kernels = options.get("kernels", "keras"), options.get("residual", "keras")
    if not options.keys() <= OPTIONS or set(kernels) - {"keras", "fan_in", "by_depth"}:
        raise ValueError(
            f"`initialization` has options {OPTIONS}. Received: {options}."
        )
    for number, variable in enumerate(model.weights):
        value = keras.ops.convert_to_numpy(variable)
        deviation = _deviation(variable, options)
        if deviation is not None:
            rng = np.random.default_rng([seed, number])
            value = deviation * rng.standard_normal(value.shape)
        if options.get("residual") == "by_depth" and RESIDUAL.search(variable.path):
            value = value / math.sqrt(2 * layers)
        variable.assign(value)


def _deviation(variable, options):
    """That of a variable which is drawn again, or `None`."""
    name, shape = variable.path.rsplit("/", 1)[1], variable.shape
    if name == "embeddings":
        return options.get("embeddings")
    if options.get("kernels") != "fan_in" or len(shape) < 2:
        return None
    # The heads of an attention's output kernel, (heads, size, features), are its input.
    joined = len(shape) == 3 and "attention_output" in variable.path
    return 1 / math.sqrt(math.prod(shape[:-1]) if joined else shape[0])


def renew_blocks(model: keras.Model, optimizer, fresh: keras.Model, old_layers: int):
    """Gives the blocks that a growth in depth has added the values of a fresh model.

    Their first moments, the copied blocks', become zero; the second moments stay, since
    zeros would make the first updates too large.

    Args:
        model: the grown model.
        optimizer: its optimizer.
        fresh: a model of the same size, whose optimizer need not be built.
        old_layers: int. How many layers each stack had; new ones lie behind.

    Raises:
        ValueError: if no block lies behind them.
    """

    def is_new(variable):
        found = BLOCK.search(variable.path)
        return found is not None and int(found[2]) >= old_layers

    renewed = 0
    for variable, value in zip(model.weights, fresh.weights, strict=True):
        if is_new(variable):
            variable.assign(value)
            renewed += 1
    if not renewed:
        raise ValueError(f"The model has no block behind the first {old_layers}.")
    new = {v.path.replace("/", "_") for v in model.trainable_variables if is_new(v)}
    for slot in optimizer.variables:
        owner = slot.path.split("/", 1)[-1].removesuffix("_momentum")
        if slot.path.endswith("_momentum") and owner in new:
            slot.assign(keras.ops.zeros(slot.shape, slot.dtype))


def renew_features(plan, fresh: keras.Model) -> None:
    """Gives the features that a growth in width has added the values of a fresh model.

    Old features keep their values and read old features alone; new ones read all; output
    heads read new ones with zeros. The columns of an embedding get the deviation of the
    old ones, so that a norm over all features finds the same scale in both.

    Args:
        plan: a filled `Plan` of `keras_fusion.ZeroPadding`, whose optimizer states suit.
        fresh: a model of the grown size.
    """
    values = {
        id(variable): keras.ops.convert_to_numpy(new)
        for variable, new in zip(plan.fused.weights, fresh.weights, strict=True)
    }
    for layout in plan.layouts:
        if layout.grown:
            old = keras.ops.convert_to_numpy(layout.sources[0])
            value = np.array(values[id(layout.target)])
            if layout.target.path.endswith("/embeddings"):
                value *= old.std() / value.std()
            value[_mesh(layout.axes, "out")] = 0
            value[_mesh(layout.axes, "in", "out")] = old
            layout.target.assign(value)


def _mesh(axes, *roles):
    """Selects the old positions along axes of some roles, and all along others."""
    return np.ix_(*(a.positions(0) if a.role in roles else range(a.size) for a in axes))
