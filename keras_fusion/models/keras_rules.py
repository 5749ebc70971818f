"""Rules for the layers of Keras itself."""

from collections.abc import Sequence
from typing import Any

from keras import layers

from keras_fusion.models.rules import Norm, register

_OF_NORMS = (
    *("gamma", "beta", "scale", "moving_mean", "moving_variance"),
    *("moving_stddev", "renorm_mean", "renorm_stddev"),
)


def _norm_roles(layer: Any) -> dict[str, tuple[str | None, ...]]:
    """One weight for each feature; or, over other axes, for each place on them."""
    axes = layer.axis if isinstance(layer.axis, (list, tuple)) else [layer.axis]
    shape = (layer.get_build_config() or {}).get("input_shape")
    last = {-1} if shape is None else {-1, len(shape) - 1}
    role = (*(None,) * (len(axes) - 1), "out" if axes[-1] in last else None)
    roles: dict[str, tuple[str | None, ...]] = dict.fromkeys(_OF_NORMS, role)
    return roles | {"blend": ()}


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
    roles=_norm_roles,
    scalable=("gamma", "beta"),
    norm=Norm("mean_variance", "gamma", "beta"),
)
register(
    layers.RMSNormalization,
    roles=_norm_roles,
    scalable=("scale",),
    norm=Norm("mean_square", "scale"),
)
# The statistics of an adapted layer are as wide as its input.
register(
    layers.Normalization,
    roles=lambda layer: {
        name: (*(None,) * (len(layer.adapt_mean.shape) - 1), "out")[
            : layer.adapt_mean.ndim
        ]
        for name in ("mean", "variance")
    },
)
register(layers.BatchNormalization, roles=_norm_roles, scalable=("gamma", "beta"))
register(
    layers.GroupNormalization,
    widths=("groups",),
    roles=_norm_roles,
    scalable=("gamma", "beta"),
)

# Convolutions over `channels_last` data.


def _conv_roles(layer: Any) -> dict[str, tuple[str | None, ...]]:
    """Groups keep their size, so that the kernel does not grow in what one reads."""
    reads = "in" if layer.groups == 1 else None
    return {"kernel": (*(None,) * layer.rank, reads, "out"), "bias": ("out",)}


for cls in (layers.Conv1D, layers.Conv2D, layers.Conv3D):
    register(cls, widths=("filters",), output_width="filters", roles=_conv_roles)
for cls, rank in (
    (layers.Conv1DTranspose, 1),
    (layers.Conv2DTranspose, 2),
    (layers.Conv3DTranspose, 3),
):
    register(
        cls,
        widths=("filters",),
        output_width="filters",
        roles={"kernel": (*(None,) * rank, "out", "in"), "bias": ("out",)},
    )
# Each channel has a kernel of its own.
for cls, rank in ((layers.DepthwiseConv1D, 1), (layers.DepthwiseConv2D, 2)):
    register(
        cls,
        roles={"kernel": (*(None,) * rank, "out", None), "bias": ("out",)},
        scalable=("kernel", "bias"),
    )
for cls, rank in ((layers.SeparableConv1D, 1), (layers.SeparableConv2D, 2)):
    register(
        cls,
        widths=("filters",),
        output_width="filters",
        roles={
            "depthwise_kernel": (*(None,) * rank, "each", None),
            "pointwise_kernel": (*(None,) * rank, "in", "out"),
            "bias": ("out",),
        },
    )

# Recurrent layers. The gates of a cell lie side by side in its weights.


def _gated(gates: int, *, rank: int = 0, separate: bool = False) -> dict[str, Any]:
    """The roles of a cell's weights."""
    last = ("out", gates) if gates > 1 else "out"
    ahead = (None,) * rank
    return {
        "kernel": (*ahead, "in", last),
        "recurrent_kernel": (*ahead, ("in", 1), last),
        "bias": (None, last) if separate else (last,),
    }


for cls in (layers.LSTM, layers.GRU, layers.SimpleRNN):
    register(cls, widths=("units",), output_width="units")
register(layers.LSTMCell, roles=_gated(4))
register(layers.GRUCell, roles=lambda cell: _gated(3, separate=cell.reset_after))
register(layers.SimpleRNNCell, roles=_gated(1))
for cls in (layers.ConvLSTM1D, layers.ConvLSTM2D, layers.ConvLSTM3D):
    register(cls, widths=("filters",), output_width="filters")
register("keras>ConvLSTMCell", roles=lambda cell: _gated(4, rank=cell.rank))

# Layers around a layer, whose width is in the config of that one.

WRAPPED = {"cell", "layer", "backward_layer"}


def inner_width(config: dict[str, Any]) -> str | None:
    """The key that sets the width of a wrapped layer, by its config."""
    return next((key for key in ("units", "filters") if key in config), None)


def grow_wrapped(configs: Sequence[dict[str, Any]], fixed: bool) -> dict[str, Any]:
    """Grows the layers in a wrapper."""
    grown = dict(configs[0])
    for key in WRAPPED & grown.keys():
        inner = [config[key] for config in configs]
        if inner[0] is not None:
            own = {k: v for k, v in inner[0].items() if k != "build_config"}
            width = None if fixed else inner_width(own["config"])
            if width is not None:
                total = sum(each["config"][width] for each in inner)
                own["config"] = own["config"] | {width: total}
            grown[key] = own
    return grown


for cls in (layers.Bidirectional, layers.RNN, layers.TimeDistributed):
    register(cls, grow=grow_wrapped)
register(
    layers.SpectralNormalization,
    roles={"vector_u": (None, None)},
    refuse="it divides by the largest singular value of its whole kernel, which is not "
    "that of one parent's part",
)


def _prelu_roles(layer: Any) -> dict[str, tuple[str | None, ...]]:
    rank = len(layer.alpha.shape)
    last = None if rank in (layer.shared_axes or ()) else "out"
    return {"alpha": (*(None,) * (rank - 1), last)}


register(layers.PReLU, roles=_prelu_roles)
# Of ConvNeXt in keras.applications, which exports neither, and names no weight.
register("keras>LayerScale", widths=("projection_dim",), roles={"variable": ("out",)})
register("keras>StochasticDepth")

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
