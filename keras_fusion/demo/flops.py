"""Counts the floating-point operations of a training step from its graph.

The step (forward pass, loss, gradients) is traced for one batch, and the matrix
products in the graph are added up. Nothing is assumed about the model; in particular the
backward pass is counted, not taken as twice the forward pass.

Unit: FLOPs, one multiplication or one addition each, so a product of an (m, k) and a
(k, n) matrix costs 2·m·k·n. As usual in this literature (Kaplan et al., Scaling Laws for
Neural Language Models, 2020, section 2.1) only matrix products count: norms, softmax,
element-wise functions, embedding look-ups and the optimizer's update, some per cent
of the whole, are left out.
"""

import math

import keras
import tensorflow as tf

# Products that `_product_flops` does not know: better an error than a wrong count.
_UNCOUNTED = (
    "Conv",
    "DepthwiseConv",
    "SparseMatMul",
    "XlaDot",
    "While",
    "If",
)


def training_step_flops(model: keras.Model, batch: tuple) -> int:
    """Counts the FLOPs of one training step.

    Args:
        model: compiled Keras model (TensorFlow backend).
        batch: tuple `(features, targets, sample_weights)` of arrays or tensors.

    Returns:
        int. The FLOPs of the forward and the backward pass over this batch.

    Raises:
        NotImplementedError: if the graph has operations of a kind that is not counted.
    """

    def step(x, y, sample_weight):
        with tf.GradientTape() as tape:
            outputs = model(x, training=True)
            loss = model.compute_loss(x, y, outputs, sample_weight)
        return tape.gradient(loss, [v.value for v in model.trainable_variables])

    specs = tf.nest.map_structure(tf.TensorSpec.from_tensor, _tensors(batch))
    graph = tf.function(step).get_concrete_function(*specs).graph
    return sum(map(_product_flops, graph.get_operations()))


def _tensors(batch):
    return tf.nest.map_structure(tf.convert_to_tensor, batch)


def _product_flops(operation: tf.Operation) -> int:
    """2·(elements of the result)·(length of the contracted axis), or 0."""
    if operation.type == "Einsum":
        return _einsum_flops(operation)
    if operation.type == "MatMul":
        contracted = 0 if operation.get_attr("transpose_a") else 1
    elif operation.type in ("BatchMatMul", "BatchMatMulV2", "BatchMatMulV3"):
        contracted = -2 if operation.get_attr("adj_x") else -1
    elif operation.type.startswith(_UNCOUNTED) or "Partitioned" in operation.type:
        raise NotImplementedError(
            f"The FLOPs of {operation.type!r} ({operation.name!r}) are not counted. "
            "Teach keras_fusion.demo.flops to count them."
        )
    else:
        return 0
    length = operation.inputs[0].shape[contracted]
    return 2 * math.prod(operation.outputs[0].shape) * length


def _einsum_flops(operation: tf.Operation) -> int:
    """2·(all index values that occur) for a product of two, or 0 for one operand."""
    terms = operation.get_attr("equation").decode().split("->")[0].split(",")
    if len(terms) == 1:
        return 0
    shapes = [tensor.shape for tensor in operation.inputs]
    sizes = {}
    for term, shape in zip(terms, shapes, strict=True):
        if "." in term:
            raise NotImplementedError(
                f"The FLOPs of an Einsum with an ellipsis ({operation.name!r}) are not "
                "counted. Teach keras_fusion.demo.flops to count them."
            )
        sizes |= dict(zip(term, shape, strict=True))
    return 2 * math.prod(sizes.values())
