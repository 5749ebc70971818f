"""Counts the floating-point operations of a training step from its graph.

The step (forward pass, loss, gradients) is traced for one batch, and the FLOPs of the
matrix products in the graph are added up. Nothing is assumed about the model; in
particular the backward pass is counted, not taken as twice the forward pass.

One FLOP is one multiplication or one addition, so a product of an (m, k) and a (k, n)
matrix costs 2·m·k·n. As usual in this literature (Kaplan et al., Scaling Laws for Neural
Language Models, 2020, section 2.1) only matrix products count: norms, softmax,
element-wise functions, embedding look-ups and the optimizer's update, a few per cent of
the whole, are left out.
"""

import math
from collections.abc import Sequence
from typing import Any, NoReturn

import keras

from keras_fusion.errors import FusionError

__all__ = ["training_step_flops"]

# Operations that `_tensorflow_flops` cannot count: an error is better than a wrong count.
_UNCOUNTED = (
    "Conv",
    "DepthwiseConv",
    "SparseMatMul",
    "XlaDot",
    "While",
    "If",
)
_UNCOUNTED_BY_JAX = ("conv_general_dilated", "while", "cond", "ragged_dot")


def training_step_flops(model: keras.Model, batch: tuple) -> int:
    """Counts the FLOPs of one training step.

    Args:
        model: compiled Keras model.
        batch: tuple `(features, targets, sample_weights)` of arrays or tensors.

    Returns:
        int. The FLOPs of the forward and the backward pass on this batch.

    Raises:
        FusionError: if the graph has operations that cannot be counted, or on a backend
            without graphs.

    Example:

    >>> import keras, numpy as np
    >>> from keras_fusion.flops import training_step_flops
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> model.compile("sgd", "mse")
    >>> batch = np.ones((2, 4), "float32"), np.ones((2, 3), "float32"), np.ones(2)
    >>> training_step_flops(model, batch)  # forward, and the kernel's gradient
    96
    """
    backend = keras.config.backend()
    if backend not in _COUNTERS:
        raise FusionError(
            f"FLOPs are counted on {sorted(_COUNTERS)}. Received: the backend {backend!r}."
        )
    return _COUNTERS[backend](model, batch)


def _refuse(operation: str) -> NoReturn:
    raise FusionError(
        f"The FLOPs of {operation} are not counted. Add them to keras_fusion.flops."
    )


def _loss(
    model: keras.Model,
    trainable: Sequence,
    others: Sequence,
    x: Any,
    y: Any,
    sample_weight: Any,
) -> Any:
    """The loss as a function of all its inputs."""
    state = [
        *zip(model.trainable_variables, trainable, strict=True),
        *zip(model.non_trainable_variables, others, strict=True),
    ]
    # Variables may be spread over devices; the graph of one device cannot read them.
    with keras.StatelessScope(state_mapping=state):
        outputs = model(x, training=True)
        return model.compute_loss(x, y, outputs, sample_weight)


def _in_tensorflow(model: keras.Model, batch: tuple) -> int:
    import tensorflow as tf

    def step(trainable: Sequence, others: Sequence, *batch: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(trainable)
            loss = _loss(model, trainable, others, *batch)
        return tape.gradient(loss, trainable)

    tensors = tf.nest.map_structure(tf.convert_to_tensor, batch)
    specs = tf.nest.map_structure(tf.TensorSpec.from_tensor, tensors)
    variables = [
        [tf.TensorSpec(v.shape, v.dtype) for v in group]
        for group in (model.trainable_variables, model.non_trainable_variables)
    ]
    graph = tf.function(step).get_concrete_function(*variables, *specs).graph
    return sum(map(_tensorflow_flops, graph.get_operations()))


def _tensorflow_flops(operation: Any) -> int:
    """2·(elements of the result)·(length of the contracted axis), or 0."""
    if operation.type == "Einsum":
        return _einsum_flops(operation)
    if operation.type == "MatMul":
        contracted = 0 if operation.get_attr("transpose_a") else 1
    elif operation.type in ("BatchMatMul", "BatchMatMulV2", "BatchMatMulV3"):
        contracted = -2 if operation.get_attr("adj_x") else -1
    elif operation.type.startswith(_UNCOUNTED) or "Partitioned" in operation.type:
        _refuse(f"{operation.type!r} ({operation.name!r})")
    else:
        return 0
    length = operation.inputs[0].shape[contracted]
    return 2 * math.prod(operation.outputs[0].shape) * length


def _einsum_flops(operation: Any) -> int:
    """2·(combinations of all indices) for two operands, or 0 for one."""
    terms = operation.get_attr("equation").decode().split("->")[0].split(",")
    if len(terms) == 1:
        return 0
    sizes = {}
    for term, tensor in zip(terms, operation.inputs, strict=True):
        if "." in term:
            _refuse(f"an Einsum with an ellipsis ({operation.name!r})")
        sizes |= dict(zip(term, tensor.shape, strict=True))
    return 2 * math.prod(sizes.values())


def _in_jax(model: keras.Model, batch: tuple) -> int:
    import jax

    def loss(*arguments: Any) -> Any:
        return _loss(model, *arguments)

    variables = [
        [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in group]
        for group in (model.trainable_variables, model.non_trainable_variables)
    ]
    arrays: Any = keras.tree.map_structure(keras.ops.convert_to_tensor, batch)
    return _jaxpr_flops(jax.make_jaxpr(jax.grad(loss))(*variables, *arrays).jaxpr)


def _jaxpr_flops(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name in _UNCOUNTED_BY_JAX:
            _refuse(repr(name))
        if name == "dot_general":
            contracted = equation.params["dimension_numbers"][0][0]
            sizes = equation.invars[0].aval.shape
            length = math.prod(sizes[axis] for axis in contracted)
            total += 2 * math.prod(equation.outvars[0].aval.shape) * length
        times = equation.params["length"] if name == "scan" else 1
        inner = (_as_jaxpr(value) for value in equation.params.values())
        total += times * sum(_jaxpr_flops(part) for part in inner if part is not None)
    return total


def _as_jaxpr(value: Any) -> Any:
    """The graph of a function that another graph calls, or `None`."""
    value = getattr(value, "jaxpr", value)
    return value if hasattr(value, "eqns") else None


_COUNTERS = {"tensorflow": _in_tensorflow, "jax": _in_jax}
