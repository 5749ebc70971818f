"""What random models are made of: the layers of Keras, and its operations.

Each entry makes a layer, or a function of tensors, from a random generator and a width.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
from keras import layers, ops

Make = Callable[[np.random.Generator, int], Any]

FLAT, SEQUENCE, IMAGE, VOLUME = 2, 3, 4, 5  # ranks
ALL = (FLAT, SEQUENCE, IMAGE, VOLUME)
SPACE = (SEQUENCE, IMAGE, VOLUME)
ACTIVATIONS = ("relu", "gelu", "tanh", "sigmoid", "softplus", "silu", "linear", "elu")
HEAD = 2


@dataclasses.dataclass(frozen=True)
class Entry:
    """One kind of step.

    Args:
        name: string, of the layer or the operation.
        make: function of a generator and a width to what is called.
        ranks: the ranks of tensors that it takes.
        inputs: int. Number of tensors that it takes.
    """

    name: str
    make: Make
    ranks: tuple[int, ...] = ALL
    inputs: int = 1


def _units(rng, width):
    return width * int(rng.integers(1, 3))


def _activation(rng):
    return ACTIVATIONS[rng.integers(len(ACTIVATIONS))]


def _dense(rng, w):
    use_bias = bool(rng.integers(2))
    return layers.Dense(_units(rng, w), _activation(rng), use_bias=use_bias)


def _of_rank(name: str, options: Callable[..., dict], suffix: str = "D") -> list[Entry]:
    """The three layers of a family, for sequences, images and volumes."""
    found = []
    for dimensions, rank in ((1, SEQUENCE), (2, IMAGE), (3, VOLUME)):
        full = name.replace("#", f"{dimensions}{suffix}")
        cls = getattr(layers, full, None)
        if cls is not None:

            def make(rng, w, cls=cls):
                return cls(**options(rng, w))

            found.append(Entry(full, make, (rank,)))
    return found


def _convolution(rng, w):
    return {
        "filters": _units(rng, w),
        "kernel_size": int(rng.integers(1, 3)),
        "padding": "same",
        "activation": _activation(rng),
        "groups": 1 if rng.integers(4) else 2,
    }


def _transposed(rng, w):
    return {"filters": _units(rng, w), "kernel_size": 2, "padding": "same"}


def _separable(rng, w):
    return _transposed(rng, w) | {"depth_multiplier": int(rng.integers(1, 3))}


def _depthwise(rng, w):
    return {"kernel_size": 2, "padding": "same", "depth_multiplier": 1}


def _pool(rng, w):
    return {"pool_size": 2, "padding": "same"}


def _nothing(rng, w):
    return {}


def _recurrent(rng, w):
    return {"units": _units(rng, w), "return_sequences": bool(rng.integers(2))}


def _convolutional_recurrent(rng, w):
    return {"filters": w, "kernel_size": 1}


FAMILIES = [
    *_of_rank("Conv#", _convolution),
    *_of_rank("Conv#Transpose", _transposed),
    *_of_rank("SeparableConv#", _separable),
    *_of_rank("DepthwiseConv#", _depthwise),
    *_of_rank("MaxPooling#", _pool),
    *_of_rank("AveragePooling#", _pool),
    *_of_rank("GlobalMaxPooling#", _nothing),
    *_of_rank("GlobalAveragePooling#", _nothing),
    *_of_rank("AdaptiveAveragePooling#", lambda rng, w: {"output_size": 2}),
    *_of_rank("AdaptiveMaxPooling#", lambda rng, w: {"output_size": 2}),
    *_of_rank("UpSampling#", lambda rng, w: {"size": 2}),
    *_of_rank("ZeroPadding#", lambda rng, w: {"padding": 1}),
    *_of_rank("Cropping#", lambda rng, w: {"cropping": 1}),
    *_of_rank("SpatialDropout#", lambda rng, w: {"rate": 0.1}),
]


def _layer(name: str, ranks: Iterable[int] = ALL, **options: Any) -> Entry:
    return Entry(name, lambda rng, w: getattr(layers, name)(**options), tuple(ranks))


def _sized(name: str, options: Callable[..., dict], ranks=(SEQUENCE,)) -> Entry:
    cls = getattr(layers, name)
    return Entry(name, lambda rng, w: cls(**options(rng, w)), ranks)


def _einsum(rng, w):
    heads = w // HEAD
    if rng.integers(2):
        return layers.EinsumDense("...x,xy->...y", (None, _units(rng, w)))
    return layers.EinsumDense("btx,xhd->bthd", (None, heads, HEAD), bias_axes="hd")


def _random_axis(rng, name):
    return getattr(layers, name)(axis=int(rng.choice([-1, -1, 1])))


PLAIN = [
    Entry("Dense", _dense),
    Entry("Dense", _dense),
    Entry("Dense", _dense),
    Entry("EinsumDense", _einsum, (SEQUENCE,)),
    Entry("Activation", lambda rng, w: layers.Activation(_activation(rng))),
    Entry("LayerNormalization", lambda r, w: _random_axis(r, "LayerNormalization")),
    Entry("RMSNormalization", lambda r, w: _random_axis(r, "RMSNormalization")),
    Entry("BatchNormalization", lambda r, w: _random_axis(r, "BatchNormalization")),
    Entry("UnitNormalization", lambda r, w: _random_axis(r, "UnitNormalization")),
    Entry("Softmax", lambda r, w: _random_axis(r, "Softmax")),
    _sized("GroupNormalization", lambda r, w: {"groups": 2}, ALL),
    *[
        _layer(name)
        for name in ("ELU", "LeakyReLU", "PReLU", "ReLU", "Identity", "Flatten")
    ],
    *[
        _layer(name, rate=0.1)
        for name in ("Dropout", "AlphaDropout", "GaussianDropout")
    ],
    _layer("GaussianNoise", stddev=0.1),
    _layer("ActivityRegularization", l2=1e-3),
    _layer("Rescaling", scale=0.5, offset=0.1),
    _layer("Masking", (SEQUENCE,)),
    _layer("Permute", (SEQUENCE,), dims=(2, 1)),
    _layer("Reshape", ALL, target_shape=(-1, 2)),
    _layer("RepeatVector", (FLAT,), n=3),
    _layer("Resizing", (IMAGE,), height=4, width=4),
    _layer("CenterCrop", (IMAGE,), height=3, width=3),
    _layer("Lambda", function=lambda x: 2 * x),
    _layer("Discretization", bin_boundaries=[-1.0, 0.0, 1.0]),
    Entry(
        "Normalization",
        lambda rng, w: layers.Normalization(mean=0.5, variance=2.0, axis=None),
    ),
    *[_sized(name, _recurrent) for name in ("LSTM", "GRU", "SimpleRNN")],
    Entry(
        "Bidirectional",
        lambda r, w: layers.Bidirectional(layers.GRU(w)),
        (SEQUENCE,),
    ),
    Entry("RNN", lambda r, w: layers.RNN(layers.GRUCell(w)), (SEQUENCE,)),
    Entry("ConvLSTM1D", lambda r, w: layers.ConvLSTM1D(w, 1), (IMAGE,)),
    Entry("ConvLSTM2D", lambda r, w: layers.ConvLSTM2D(w, 1), (VOLUME,)),
    Entry(
        "TimeDistributed",
        lambda r, w: layers.TimeDistributed(layers.Dense(w)),
        SPACE,
    ),
    Entry(
        "SpectralNormalization",
        lambda r, w: layers.SpectralNormalization(layers.Dense(w)),
    ),
]


def _attention(rng, w):
    return layers.MultiHeadAttention(w // HEAD, HEAD, use_bias=bool(rng.integers(2)))


def _grouped(rng, w):
    return layers.GroupQueryAttention(HEAD, w, w // 2)


MERGES = [
    *[
        Entry(name, lambda rng, w, name=name: _listed(getattr(layers, name)()), ALL, 2)
        for name in (
            "Add",
            "Add",
            "Average",
            "Maximum",
            "Minimum",
            "Multiply",
            "Subtract",
        )
    ],
    Entry("Concatenate", lambda r, w: _listed(_random_axis(r, "Concatenate")), ALL, 2),
    Entry("Dot", lambda r, w: _listed(layers.Dot(axes=-1)), (FLAT, SEQUENCE), 2),
    Entry("MultiHeadAttention", _attention, (SEQUENCE,), 2),
    Entry("MultiHeadAttention", _attention, (SEQUENCE,), 2),
    Entry("GroupQueryAttention", _grouped, (SEQUENCE,), 2),
    Entry("Attention", lambda r, w: _listed(layers.Attention()), (SEQUENCE,), 2),
    Entry(
        "AdditiveAttention",
        lambda r, w: _listed(layers.AdditiveAttention()),
        (SEQUENCE,),
        2,
    ),
]


def _listed(layer):
    return Listed(layer)


@dataclasses.dataclass(frozen=True)
class Listed:
    """A layer that takes its tensors as one list."""

    layer: keras.Layer

    def __call__(self, *tensors: Any) -> Any:
        """Calls the layer."""
        return self.layer(list(tensors))


LAYERS = [*FAMILIES, *PLAIN, *MERGES]


def _names(text: str) -> list[str]:
    return text.split()


# Operations, by the way in which they are called.
_ELEMENTWISE = _names(
    """
    abs absolute arcsinh arctan cbrt ceil celu conj copy cos cosh deg2rad elu erf exp
    expm1 exp2 floor gelu hard_shrink hard_sigmoid hard_silu hard_tanh identity
    isfinite isnan leaky_relu log1p log_sigmoid logical_not nan_to_num negative
    rad2deg real reciprocal relu relu6 round rsqrt selu sigmoid sign silu sin sinc
    sinh soft_shrink softplus softsign sparse_plus sparse_sigmoid sqrt square
    squareplus stop_gradient tanh tanh_shrink threshold trunc log ones_like zeros_like
    """
)
_REDUCING = _names(
    """
    all any amax amin argmax argmin average count_nonzero logsumexp max mean median
    min nanmax nanmean nanmin nansum norm prod ptp std sum var
    """
)
_ALONG = _names(
    """
    argsort cumprod cumsum log_softmax normalize softmax sort sparsemax glu flip diff
    roll
    """
)
_PAIRS = _names(
    """
    add arctan2 divide divide_no_nan equal floor_divide fmax fmin greater
    greater_equal hypot less less_equal logaddexp logical_and logical_or maximum
    minimum mod multiply not_equal power subtract
    """
)


def _function(name: str) -> Callable[..., Any]:
    return getattr(ops, name)


def _thresholds(name):
    options = (1.0, 0.0) if name == "threshold" else ()
    return lambda rng, w: lambda x: _function(name)(x, *options)


def _reduction(name):
    def make(rng, w):
        axis, keep = int(rng.choice([-1, 1])), bool(rng.integers(2))
        options = (
            {"keepdims": keep} if name not in ("average", "argmax", "argmin") else {}
        )
        if name in ("ptp", "count_nonzero", "average", "argmax", "argmin"):
            options = {}
        return lambda x: _function(name)(x, axis=axis, **options)

    return make


def _along(name):
    def make(rng, w):
        axis = int(rng.choice([-1, 1]))
        if name == "roll":
            return lambda x: ops.roll(x, 1, axis=axis)
        return lambda x: _function(name)(x, axis=axis)

    return make


SHAPED: dict[str, tuple[Callable[..., Any], tuple[int, ...]]] = {
    "transpose": (lambda x: ops.transpose(x, (0, 2, 1)), (SEQUENCE,)),
    "swapaxes": (lambda x: ops.swapaxes(x, 1, 2), SPACE),
    "moveaxis": (lambda x: ops.moveaxis(x, 1, -1), SPACE),
    "expand_dims": (lambda x: ops.expand_dims(x, 1), (FLAT, SEQUENCE, IMAGE)),
    "squeeze": (lambda x: ops.squeeze(ops.expand_dims(x, 1), 1), ALL),
    "reshape": (lambda x: ops.reshape(x, (-1, int(np.prod(x.shape[1:])))), ALL),
    "pad": (lambda x: ops.pad(x, [[0, 0]] * (len(x.shape) - 1) + [[0, 2]]), ALL),
    "tile": (lambda x: ops.tile(x, [1] * (len(x.shape) - 1) + [2]), ALL),
    "repeat": (lambda x: ops.repeat(x, 2, axis=-1), ALL),
    "concatenate": (lambda x: ops.concatenate([x, ops.tanh(x)], axis=-1), ALL),
    "stack": (lambda x: ops.stack([x, ops.tanh(x)], axis=1), (FLAT, SEQUENCE, IMAGE)),
    "split": (lambda x: ops.multiply(*ops.split(x, 2, axis=-1)), ALL),
    "get_item": (lambda x: x[:, :2], ALL),
    "get_item_last": (lambda x: x[..., 1:], ALL),
    "slice": (lambda x: ops.slice(x, [0] * len(x.shape), [2] * len(x.shape)), ALL),
    "take": (lambda x: ops.take(x, [0, 1], axis=-1), ALL),
    "take_time": (lambda x: ops.take(x, [0, 1], axis=1), SPACE),
    "top_k": (lambda x: ops.top_k(x, 2)[0], ALL),
    "clip": (lambda x: ops.clip(x, -1, 1), ALL),
    "cast": (lambda x: ops.cast(x, "float32"), ALL),
    "where": (lambda x: ops.where(x > 0, x, 0.1 * x), ALL),
    "tril": (lambda x: ops.tril(x), (SEQUENCE,)),
    "triu": (lambda x: ops.triu(x), (SEQUENCE,)),
    "outer": (lambda x: ops.einsum("bi,bj->bij", x, x), (FLAT,)),
    "einsum": (lambda x: ops.einsum("bti,bsi->bts", x, x), (SEQUENCE,)),
    "einsum_broadcast": (lambda x: ops.einsum("...i->...i", x), ALL),
    "constant_add": (lambda x: x + 1.5, ALL),
    "constant_vector": (lambda x: x * ops.arange(x.shape[-1], dtype=x.dtype), ALL),
    "rms_normalization": (lambda x: ops.rms_normalization(x), ALL),
    "layer_normalization": (lambda x: ops.layer_normalization(x), ALL),
    "moments": (lambda x: ops.moments(x, axes=[-1], keepdims=True)[0], ALL),
    "depth_to_space": (lambda x: ops.depth_to_space(x, 2), (IMAGE,)),
    "space_to_depth": (lambda x: ops.space_to_depth(x, 2), (IMAGE,)),
    "max_pool": (lambda x: ops.max_pool(x, 2, padding="same"), SPACE),
    "average_pool": (lambda x: ops.average_pool(x, 2, padding="same"), SPACE),
    "one_hot": (lambda x: ops.one_hot(ops.argmax(x, axis=-1), 4), (FLAT, SEQUENCE)),
    "quantile": (lambda x: ops.quantile(x, 0.5, axis=-1, keepdims=True), ALL),
    "shape": (lambda x: x / ops.cast(ops.shape(x)[-1], x.dtype), ALL),
    "unstack": (lambda x: ops.unstack(x, axis=1)[0], SPACE),
    "diagonal": (lambda x: ops.diagonal(x, axis1=1, axis2=2), SPACE),
    "rot90": (lambda x: ops.rot90(x, axes=(1, 2)), SPACE),
    "vectorized_map": (lambda x: ops.vectorized_map(lambda row: 2 * row, x), ALL),
}

OPERATIONS = [
    *[Entry(f"ops.{name}", _thresholds(name)) for name in _ELEMENTWISE],
    *[Entry(f"ops.{name}", _reduction(name)) for name in _REDUCING],
    *[Entry(f"ops.{name}", _along(name)) for name in _ALONG],
    *[
        Entry(f"ops.{name}", lambda rng, w, f=f: f, ranks)
        for name, (f, ranks) in SHAPED.items()
    ],
    *[
        Entry(f"ops.{name}", lambda rng, w, name=name: _function(name), ALL, 2)
        for name in _PAIRS
    ],
    Entry(
        "ops.matmul",
        lambda rng, w: lambda x, y: ops.matmul(x, ops.swapaxes(y, -1, -2)),
        (SEQUENCE,),
        2,
    ),
    Entry(
        "ops.concatenate",
        lambda rng, w: lambda x, y: ops.concatenate([x, y], axis=-1),
        ALL,
        2,
    ),
    Entry("ops.where", lambda r, w: lambda x, y: ops.where(x > 0, x, y), ALL, 2),
    Entry(
        "ops.dot_product_attention",
        lambda rng, w: lambda x, y: ops.dot_product_attention(x, y, y),
        (IMAGE,),
        2,
    ),
]
