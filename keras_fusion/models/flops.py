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
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import keras

from keras_fusion.errors import FusionError, require

__all__ = ["training_step_flops"]

# Operations that `_tensorflow_flops` cannot count: an error is better than a wrong count.
_UNCOUNTED = (
    "SparseMatMul",
    "XlaDot",
    "While",
    "If",
)
_UNCOUNTED_BY_JAX = ("while", "cond", "ragged_dot")


def training_step_flops(model: keras.Model, batch: tuple) -> int:
    """Counts the FLOPs of one training step.

    Args:
        model: compiled Keras model.
        batch: tuple `(features, targets)` or `(features, targets, sample_weights)` of
            arrays or tensors, as for `fit`.

    Returns:
        int. The FLOPs of the forward and the backward pass on this batch.

    Raises:
        FusionError: if the model is not compiled or the batch no such tuple, if the
            graph has operations that cannot be counted, or on a backend without graphs.

    Example:

    >>> import keras, numpy as np
    >>> from keras_fusion.flops import training_step_flops
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> model.compile("sgd", "mse")
    >>> batch = np.ones((2, 4), "float32"), np.ones((2, 3), "float32")
    >>> training_step_flops(model, batch)  # forward, and the kernel's gradient
    96
    """
    require(
        isinstance(batch, (tuple, list)) and 1 <= len(batch) <= 3,
        "batch",
        batch,
        "a tuple (features, targets) or (features, targets, sample_weights)",
    )
    if not model.compiled:
        raise FusionError(
            f"Model {model.name!r} is not compiled, so its step has no loss. Compile it."
        )
    x, y, weights = keras.utils.unpack_x_y_sample_weight(tuple(batch))

    def loss(outputs: Any, x: Any, *rest: Any) -> Any:
        told = iter(rest)
        target = None if y is None else next(told)
        return model.compute_loss(x, target, outputs, next(told, None))

    return _count(model, [part for part in (x, y, weights) if part is not None], loss)


def model_flops(model: keras.Model, inputs: Any) -> int:
    """Counts the FLOPs of a forward and a backward pass, without those of a loss.

    Args:
        model: built model, which need not be compiled; its variables need no values.
        inputs: batch in the structure of the model's inputs.

    Raises:
        FusionError: see `training_step_flops`.
    """
    return _count(model, [inputs], _mean_square)


def _mean_square(outputs: Any, *batch: Any) -> Any:
    """A loss that depends on all outputs, and has no matrix product."""
    found = [
        keras.ops.mean(keras.ops.square(keras.ops.cast(y, "float32")))
        for y in keras.tree.flatten(outputs)
        if keras.backend.is_float_dtype(keras.backend.standardize_dtype(y.dtype))
    ]
    return sum(found[1:], found[0])


def _count(model: keras.Model, batch: Sequence[Any], loss: Callable[..., Any]) -> int:
    backend = keras.config.backend()
    if backend not in _COUNTERS:
        raise FusionError(
            f"FLOPs are counted on {sorted(_COUNTERS)}. Received: the backend {backend!r}."
        )
    return _COUNTERS[backend](model, batch, loss)


def _refuse(operation: str) -> NoReturn:
    raise FusionError(
        f"The FLOPs of {operation} are not counted. Add them to keras_fusion.flops."
    )


def _loss(
    model: keras.Model,
    loss: Callable[..., Any],
    trainable: Sequence,
    others: Sequence,
    *batch: Any,
) -> Any:
    """The loss as a function of all its inputs."""
    state = [
        *zip(model.trainable_variables, trainable, strict=True),
        *zip(model.non_trainable_variables, others, strict=True),
    ]
    # Variables may be spread over devices; the graph of one device cannot read them.
    with keras.StatelessScope(state_mapping=state):
        return loss(model(batch[0], training=True), *batch)


def _in_tensorflow(
    model: keras.Model, batch: Sequence[Any], loss: Callable[..., Any]
) -> int:
    import tensorflow as tf

    def step(trainable: Sequence, others: Sequence, *batch: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(trainable)
            value = _loss(model, loss, trainable, others, *batch)
        return tape.gradient(value, trainable)

    tensors = tf.nest.map_structure(tf.convert_to_tensor, batch)
    specs = tf.nest.map_structure(tf.TensorSpec.from_tensor, tensors)
    variables = [
        [tf.TensorSpec(v.shape, v.dtype) for v in group]
        for group in (model.trainable_variables, model.non_trainable_variables)
    ]
    # Keras does not convert the steps of `fit` either.
    traced = tf.function(step, autograph=False)
    graph = traced.get_concrete_function(*variables, *specs).graph
    return sum(map(_tensorflow_flops, _needed(graph)))


def _needed(graph: Any) -> list:
    """The operations that a graph's outputs need: TensorFlow leaves out the others.

    It makes the gradient of a convolution's input even where nobody asks for it.
    """
    found, pending = {}, [output.op for output in graph.outputs]
    while pending:
        operation = pending.pop()
        if operation.name not in found:
            found[operation.name] = operation
            pending += [tensor.op for tensor in operation.inputs]
            pending += operation.control_inputs
    return list(found.values())


def _tensorflow_flops(operation: Any) -> int:
    """2·(elements of the result)·(length of the contracted axis), or 0."""
    if operation.type == "Einsum":
        return _einsum_flops(operation)
    if operation.type == "MatMul":
        contracted = 0 if operation.get_attr("transpose_a") else 1
    elif operation.type in ("BatchMatMul", "BatchMatMulV2", "BatchMatMulV3"):
        contracted = -2 if operation.get_attr("adj_x") else -1
    elif operation.type.startswith(("Conv", "DepthwiseConv")):
        return _convolution_flops(operation)
    elif (
        operation.type.removeprefix("Stateless").startswith(_UNCOUNTED)
        or "Partitioned" in operation.type
    ):
        _refuse(f"{operation.type!r} ({operation.name!r})")
    else:
        return 0
    length = operation.inputs[0].shape[contracted]
    return 2 * math.prod(operation.outputs[0].shape) * length


def _convolution_flops(operation: Any) -> int:
    """2·(entries of the result)·(entries of the kernel per output channel).

    The gradients multiply the same pairs: their result has another shape.
    """
    if operation.type.endswith("BackpropInput"):
        kernel, result = operation.inputs[1], operation.inputs[2]
    elif operation.type.endswith("BackpropFilter"):
        kernel, result = operation.outputs[0], operation.inputs[2]
    else:
        kernel, result = operation.inputs[1], operation.outputs[0]
    shapes = kernel.shape, result.shape
    if None in (*shapes[0], *shapes[1]):
        _refuse(f"{operation.type!r} of unknown shape ({operation.name!r})")
    # A depthwise kernel, of shape (height, width, channels, n), reads one channel.
    read = shapes[0][:2] if operation.type.startswith("Depthwise") else shapes[0][:-1]
    return 2 * math.prod(shapes[1]) * math.prod(read)


def _einsum_flops(operation: Any) -> int:
    """2·(combinations of all indices) for two operands, or 0 for one."""
    terms = operation.get_attr("equation").decode().split("->")[0].split(",")
    if len(terms) == 1:
        return 0
    sizes: dict[Any, int] = {}
    for term, tensor in zip(terms, operation.inputs, strict=True):
        for index, size in zip(_indices(term, tensor.shape), tensor.shape, strict=True):
            sizes[index] = max(size, sizes.get(index, 1))
    return 2 * math.prod(sizes.values())


def _indices(term: str, shape: Sequence[int]) -> list:
    """The index of each axis; those of an ellipsis are counted from its end."""
    before, dots, behind = term.partition("...")
    hidden = len(shape) - len(before) - len(behind) if dots else 0
    return [*before, *range(-hidden, 0), *behind]


def _in_jax(model: keras.Model, batch: Sequence[Any], loss: Callable[..., Any]) -> int:
    import jax

    def step(*arguments: Any) -> Any:
        return _loss(model, loss, *arguments)

    variables = [
        [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in group]
        for group in (model.trainable_variables, model.non_trainable_variables)
    ]
    arrays: Any = keras.tree.map_structure(keras.ops.convert_to_tensor, batch)
    return _jaxpr_flops(jax.make_jaxpr(jax.grad(step))(*variables, *arrays).jaxpr)


def _jaxpr_flops(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name in _UNCOUNTED_BY_JAX:
            _refuse(repr(name))
        if name == "conv_general_dilated":
            total += _dilated_flops(equation)
        if name == "dot_general":
            contracted = equation.params["dimension_numbers"][0][0]
            sizes = equation.invars[0].aval.shape
            length = math.prod(sizes[axis] for axis in contracted)
            total += 2 * math.prod(equation.outvars[0].aval.shape) * length
        times = equation.params["length"] if name == "scan" else 1
        inner = (_as_jaxpr(value) for value in equation.params.values())
        total += times * sum(_jaxpr_flops(part) for part in inner if part is not None)
    return total


def _dilated_flops(equation: Any) -> int:
    """2·(entries of the result)·(entries of the kernel per output channel).

    The zeros between the entries of a dilated input are not counted.
    """
    kernel = equation.invars[1].aval.shape
    numbers, dilation = (
        equation.params[name] for name in ("dimension_numbers", "lhs_dilation")
    )
    per_channel = math.prod(kernel) // kernel[numbers.rhs_spec[0]]
    pairs = math.prod(equation.outvars[0].aval.shape) * per_channel
    return 2 * pairs // math.prod(dilation)


def _as_jaxpr(value: Any) -> Any:
    """The graph of a function that another graph calls, or `None`."""
    value = getattr(value, "jaxpr", value)
    return value if hasattr(value, "eqns") else None


_COUNTERS = {"tensorflow": _in_tensorflow, "jax": _in_jax}
