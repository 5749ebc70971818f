"""Rules for the layers of Keras itself."""

from collections.abc import Sequence
from typing import Any

from keras import layers

from keras_fusion.models.rules import Norm, register

_NORM = {
    name: ("out",)
    for name in ("gamma", "beta", "scale", "moving_mean", "moving_variance")
} | {"blend": ()}
_KERNEL = {"kernel": ("in", "out"), "bias": ("out",)}


# Dense layers and embeddings.


def einsum_letters(equation: str) -> tuple[str, str, str]:
    """The letters of an EinsumDense equation, without the ellipsis.

    Args:
        equation: string, e.g. `"abc,cde->abde"` or `"...x,xy->...y"`.

    Returns:
        The letters of the input, of the kernel and of the output.
    """
    left, output = equation.replace("...", "").split("->")
    inputs, kernel = left.split(",")
    return inputs, kernel, output


def _einsum_roles(layer: Any) -> dict[str, tuple[str | None, ...]]:
    inputs, kernel, output = einsum_letters(layer.equation)
    # Of the letters that only kernel and output have, the first one grows (the heads, not
    # their size). A letter of both the input and the output is a batch of kernels: it is
    # concatenated, like an output.
    new = [letter for letter in output if letter not in inputs]
    roles = {letter: None if letter in new[1:] else "out" for letter in output}
    biased = layer.bias_axes or ""
    first = min((output.find(letter) for letter in biased), default=len(output))
    bias = [roles[x] if x in biased else None for x in output[first:]]
    if layer.bias is not None:  # It has an axis more for each one of a last ellipsis.
        bias += [None] * (len(layer.bias.shape) - len(bias))
    return {
        "kernel": tuple(roles.get(letter, "in") for letter in kernel),
        "bias": tuple(bias),
    }


def _grow_einsum(configs: Sequence[dict[str, Any]], fixed: bool) -> dict[str, Any]:
    """Grows the first output letter not in the input (the heads, not their size)."""
    config = dict(configs[0])
    inputs, _, output = einsum_letters(config["equation"])
    shapes = [list(_as_tuple(c["output_shape"])) for c in configs]
    letters = output[-len(shapes[0]) :]
    new = [i for i, letter in enumerate(letters) if letter not in inputs]
    for i in new[:1] if not fixed else ():
        shapes[0][i] = sum(shape[i] for shape in shapes)
    return config | {"output_shape": tuple(shapes[0])}


def _as_tuple(shape: Any) -> tuple:
    return tuple(shape) if isinstance(shape, (list, tuple)) else (shape,)


register(
    layers.Dense,
    widths=("units",),
    output_width="units",
    roles=_KERNEL,
    scalable=("kernel", "bias"),
)
register(
    layers.EinsumDense,
    widths=("output_shape",),
    output_width="output_shape",
    roles=_einsum_roles,
    scalable=("kernel", "bias"),
    grow=_grow_einsum,
)
register(
    layers.Embedding,
    widths=("output_dim",),
    output_width="output_dim",
    roles={"embeddings": (None, "out"), "reverse_embeddings": ("in", None)},
)

# Attention. Heads are concatenated and keep their size.

register(
    layers.MultiHeadAttention,
    widths=("num_heads", "output_shape"),
    output_width="output_shape",
)
register(
    layers.GroupQueryAttention,
    widths=("num_query_heads", "num_key_value_heads"),
    equal={
        "ratio of query heads to key-value heads": lambda config: (
            config["num_query_heads"] / config["num_key_value_heads"]
        )
    },
)
_SINGLE_HEAD = (
    "its one softmax over the concatenated features is not the parents' own; use "
    "MultiHeadAttention, whose heads are concatenated"
)
register(layers.Attention, refuse=_SINGLE_HEAD)
register(layers.AdditiveAttention, refuse=_SINGLE_HEAD)

# Norms. One statistic over the concatenated features is not that of any one parent.

register(
    layers.LayerNormalization,
    roles=_NORM,
    scalable=("gamma", "beta"),
    norm=Norm("mean_variance", "gamma", "beta"),
)
register(
    layers.RMSNormalization,
    roles=_NORM,
    scalable=("scale",),
    norm=Norm("mean_square", "scale"),
)
# The statistics of an adapted layer are as wide as its input.
register(
    layers.Normalization,
    roles=lambda layer: {
        name: (*(None,) * (len(layer.adapt_mean.shape) - 1), "out")
        for name in ("mean", "variance")
    },
)
register(layers.BatchNormalization, roles=_NORM, scalable=("gamma", "beta"))
register(
    layers.GroupNormalization,
    widths=("groups",),
    roles=_NORM,
    scalable=("gamma", "beta"),
)

# Convolutions over `channels_last` data.

register(
    layers.Conv1D,
    widths=("filters",),
    output_width="filters",
    roles={"kernel": (None, "in", "out"), "bias": ("out",)},
)
register(
    layers.Conv2D,
    widths=("filters",),
    output_width="filters",
    roles={"kernel": (None, None, "in", "out"), "bias": ("out",)},
)
register(
    layers.Conv3D,
    widths=("filters",),
    output_width="filters",
    roles={"kernel": (None, None, None, "in", "out"), "bias": ("out",)},
)


def _prelu_roles(layer: Any) -> dict[str, tuple[str | None, ...]]:
    rank = len(layer.alpha.shape)
    last = None if rank in (layer.shared_axes or ()) else "out"
    return {"alpha": (*(None,) * (rank - 1), last)}


register(layers.PReLU, roles=_prelu_roles)

# Layers without weights. All others keep the width of their input.

for merge in (
    layers.Add,
    layers.Average,
    layers.Maximum,
    layers.Minimum,
    layers.Multiply,
    layers.Subtract,
):
    register(merge, merge="all")
register(layers.Concatenate, merge="concatenate")
_MIXES = "it mixes the features of one parent with those of another"
register(layers.Dot, refuse=_MIXES)
register(layers.Softmax, refuse=_MIXES)
register(layers.UnitNormalization, refuse=_MIXES)
register(
    layers.Lambda,
    refuse="its function may hold a width or mix the features, which no rule describes; "
    "write it as a layer class with a config and a rule",
)
register(layers.Permute)
register(layers.Reshape, refuse="its target shape holds the parents' width, or cuts it")
