"""Rules for keras-hub's layers, backbones and tasks.

Classes are given by name: only users of keras-hub import it, and it does not export the
inner layers of its backbones. A class that follows keras-hub's conventions (the names of
config keys, features on the last axis) needs no rule of its own.
"""

from typing import Any

import keras
import numpy as np

from keras_fusion.models.private.attributes import MASKED_LM_NORM
from keras_fusion.models.rules import Norm, register
from keras_fusion.models.stock import stock_class
from keras_fusion.models.tree import stable_name

# keras-hub's names for widths, alone or after `encoder_` and `decoder_`.
_STREAM = ("projection_dim", "hidden_dim", "decoder_hidden_dim")
_WIDTHS = (
    "hidden_dim",
    "embedding_dim",
    "intermediate_dim",
    "mlp_dim",
    "projection_dim",
    "moe_intermediate_dim",
    "shared_expert_intermediate_dim",
    "shared_expert_intermediate_size",
    "cross_attention_hidden_size",
    "num_heads",
    "num_attention_heads",
    "num_query_heads",
    "num_key_value_heads",
    "linear_num_key_heads",
    "linear_num_value_heads",
)
_DEPTHS = ("num_layers", "encoder_num_layers", "decoder_num_layers")
_LAST_NORMS = (
    "decoder_layer_norm",
    "decoder_norm",
    "layer_norm",
    "final_layernorm",
    "final_layer_norm",
    "norm",
    # A post-norm decoder is followed by no norm of the backbone's own.
    "decoder_transformer_layers.-1._feedforward_layer_norm",
    "transformer_layers.-1._feedforward_layer_norm",
)
_BLOCK = ("num_heads", "intermediate_dim")


def _widths(backbone: Any) -> tuple[str, ...]:
    prefixes = ("", "encoder_", "decoder_")
    names = {prefix + name for prefix in prefixes for name in _WIDTHS}
    return tuple(key for key in backbone.get_config() if key in names)


def _output_width(backbone: Any) -> str | None:
    config = backbone.get_config()
    return next((key for key in _STREAM if config.get(key)), None)


def _last_norm(backbone: Any) -> str | None:
    def holds(path: str) -> bool:
        return hasattr(backbone, path.split(".")[0])

    return next((path for path in _LAST_NORMS if holds(path)), None)


def _depth(backbone: Any) -> tuple[str, ...]:
    return tuple(key for key in _DEPTHS if key in backbone.get_config())


def _head_size(config: dict[str, Any]) -> float | None:
    for key in ("key_value_dim", "head_dim", "head_size"):
        if config.get(key):
            return config[key]
    for key in ("num_heads", "num_attention_heads", "num_query_heads"):
        if config.get(key) and config.get("hidden_dim"):
            return config["hidden_dim"] / config[key]
    return None


register(
    "keras_hub>Backbone",
    widths=_widths,
    output_width=_output_width,
    equal={"head size": _head_size},
    depth=_depth,
    last_norm=_last_norm,
)

# Weights of inner layers: features are the last axis. A layer whose name says norm and
# that has a scale is an RMS norm; keras-hub's layer norms are Keras's.


def _inner_roles(layer: Any) -> dict[str, tuple[str | None, ...]]:
    return {
        stable_name(v): (None,) * (len(v.shape) - 1) + ("out",) * (len(v.shape) > 0)
        for v in layer.variables
    }


def _is_norm(layer: Any) -> bool:
    return "norm" in type(layer).__name__.lower() and hasattr(layer, "scale")


register(
    "keras_hub>*",
    roles=_inner_roles,
    scalable=lambda layer: ("scale",) if _is_norm(layer) else (),
    norm=lambda layer: Norm("mean_square", "scale") if _is_norm(layer) else None,
)
# These multiply by 1 + scale, except Gemma 4's, which has the same name.
for _name in ("RMSNormalization", "Qwen3_5LayerNorm", "EdRecRMSNormalization"):
    register(
        f"keras_hub>{_name}",
        roles={"scale": ("out",)},
        scalable=("scale",),
        norm=lambda layer: Norm(
            "mean_square",
            "scale",
            offset=0.0 if ".gemma4." in stock_class(layer).__module__ else 1.0,
        ),
    )
register(
    "keras_hub>T5LayerNorm",
    roles={"weight": ("out",)},
    scalable=("weight",),
    norm=Norm("mean_square", "weight"),
)
# Attention biases by head; the head size stays.
_BY_HEAD = ("out", None)
register(
    "keras_hub>XLNetEncoder",
    roles={
        "content_attention_bias": _BY_HEAD,
        "positional_attention_bias": _BY_HEAD,
        "segment_attention_bias": _BY_HEAD,
        "segment_encoding": (None, *_BY_HEAD),
    },
)
# Experts: as many as in each parent, each as wide as the parents' together.
_EXPERTS = {
    "expert_feedforward_intermediate_dense": (None, "in", "out"),
    "expert_feedforward_output_dense": (None, "in", "out"),
}
_HALVES = {"expert_feedforward_gate_dense": (None, "in", ("out", 2))}
register(
    "keras_hub>MixtralMoeExperts",
    roles=_EXPERTS | {"expert_feedforward_gate_dense": (None, "in", "out")},
)
for _name in ("QwenMoeExperts", "Qwen3MoeExperts", "Qwen3_5MoeExperts"):
    register(f"keras_hub>{_name}", roles=_EXPERTS | _HALVES)
register(
    "keras_hub>GptOssExperts",
    # Gate and up alternate, so that each pair stays together.
    roles={
        "gate_up_proj": (None, "in", "out"),
        "gate_up_proj_bias": (None, "out"),
        "down_proj": (None, "in", "out"),
        "down_proj_bias": (None, "out"),
    },
)

# Linear attention: queries, keys and values side by side, convolved one by one.


def _side_by_side(layer: Any) -> tuple[str, tuple[int, ...]]:
    return "out", (layer.key_dim, layer.key_dim, layer.value_dim)


register(
    "keras_hub>Qwen3_5GatedDeltaNet",
    widths=("hidden_size", "linear_num_key_heads", "linear_num_value_heads"),
    output_width="hidden_size",
    roles=lambda layer: {
        "conv1d_kernel": (_side_by_side(layer), None),
        "dt_bias": ("out",),
        "A_log": ("out",),
    },
    inner=lambda layer: {"in_proj_qkv": {"kernel": ("in", _side_by_side(layer))}},
    equal={
        "value heads per key head": lambda config: (
            config["linear_num_value_heads"] / config["linear_num_key_heads"]
        )
    },
)

# Building blocks.

register("keras_hub>TransformerEncoder", widths=_BLOCK)
register(
    "keras_hub>TransformerDecoder",
    widths=_BLOCK,
    # With these the layer would be built at once, with the parent's shapes.
    unset=("decoder_sequence_shape", "encoder_sequence_shape"),
)
register("keras_hub>PositionEmbedding", roles={"embeddings": (None, "out")})
register(
    "keras_hub>TokenAndPositionEmbedding",
    widths=("embedding_dim",),
    output_width="embedding_dim",
)
register(
    "keras_hub>MaskedLMHead",
    roles={"output_kernel": ("in", None), "output_bias": (None,)},
    tied_readout=MASKED_LM_NORM,
)

# Backbones that differ from the conventions.


def _as_computed(value: Any, backbone: Any) -> float:
    """A factor as keras-hub computes with it, rounded as there."""
    rounded = keras.ops.cast(value, backbone.compute_dtype)
    return np.asarray(keras.ops.convert_to_numpy(rounded)).item()


def _root(width: int, backbone: Any) -> float:
    return _as_computed(keras.ops.sqrt(width), backbone)


def _gemma_multipliers(backbone: Any) -> dict[str, float]:
    return {"token_embedding": _root(backbone.hidden_dim, backbone)}


for _name in ("GemmaBackbone", "Gemma3Backbone", "Gemma4Backbone"):
    register(
        f"keras_hub>{_name}",
        widths=_widths,
        output_width=_output_width,
        equal={"head size": _head_size},
        depth=_depth,
        last_norm="layer_norm",
        input_multipliers=_gemma_multipliers,
    )
for _name in ("T5GemmaBackbone", "T5Gemma2Backbone"):
    register(
        f"keras_hub>{_name}",
        widths=_widths,
        output_width="decoder_hidden_dim",
        equal={"head size": lambda config: config["decoder_head_dim"]},
        depth=_depth,
        last_norm=_last_norm,
        input_multipliers=lambda backbone: {
            "token_embedding": _root(backbone.encoder_hidden_dim, backbone),
            "decoder_token_embedding": _root(backbone.decoder_hidden_dim, backbone),
        },
    )

# Two towers, whose embeddings are compared.
for _name in ("CLIPBackbone", "MetaCLIP2Backbone", "SigLIPBackbone"):
    register(
        f"keras_hub>{_name}",
        widths=_widths,
        nested=("vision_encoder", "text_encoder"),
    )

# Every task is grown around its backbone. It adds a readout, and perhaps a layer before it
# that is as wide as the backbone, by a config key of its own.

_AROUND: dict[str, Any] = {"nested": ("backbone",), "shared": ("preprocessor",)}
register("keras_hub>Task", widths=_widths, **_AROUND)
# Its head reads the backbone's last, post-norm block, without a norm of its own.
register("keras_hub>RoformerV2MaskedLMHead")
register(
    "keras_hub>RoformerV2MaskedLM",
    **_AROUND,
    tied_readout="backbone.transformer_layers.-1.feedforward_norm",
)
register(
    "keras_hub>T5Seq2SeqLM",
    **_AROUND,
    # A tied T5 multiplies its last hidden states by hidden_dim**-0.5.
    readout_multiplier=lambda task: (
        _as_computed(task.backbone.hidden_dim**-0.5, task.backbone)
        if task.backbone.tie_embedding_weights
        else 1.0
    ),
)
