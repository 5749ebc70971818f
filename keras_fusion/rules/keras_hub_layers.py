"""Rules for keras-hub's layers, backbones and tasks.

Written by name, so that keras-hub is imported by nobody but its users, and since it
does not export the inner layers of its backbones.
"""

from keras_fusion.registry import Norm, register


def _head_size(config):
    return config.get("key_value_dim") or config["hidden_dim"] / config["num_heads"]


_BLOCK = ("num_heads", "intermediate_dim")
_STREAM = ("hidden_dim", *_BLOCK)

# Building blocks.

register("keras_hub>TransformerEncoder", widths=_BLOCK)
register(
    "keras_hub>TransformerDecoder",
    widths=_BLOCK,
    # With these the layer would be built at once, in the parent's shapes.
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
    tied_readout="_intermediate_layer_norm",
)

# Backbones, and the inner layers that hold weights of their own.

register(
    "keras_hub>T5LayerNorm",
    roles={"weight": ("out",)},
    scalable=("weight",),
    norm=Norm("mean_square", "weight"),
)
# The one weight here is the relative position bias, a column per head.
register("keras_hub>T5MultiHeadAttention", roles={"embeddings": (None, "out")})
for backbone, norm in (
    ("T5Backbone", "decoder_layer_norm"),
    ("BertBackbone", None),
    ("GPT2Backbone", "layer_norm"),
):
    register(
        f"keras_hub>{backbone}",
        widths=_STREAM,
        output_width="hidden_dim",
        equal={"head size": _head_size},
        last_norm=norm,
    )

# Every task is grown around its backbone; what it adds is a readout.

register("keras_hub>Task", nested=("backbone",), shared=("preprocessor",))
register(
    "keras_hub>T5Seq2SeqLM",
    nested=("backbone",),
    shared=("preprocessor",),
    # A tied T5 multiplies its last hidden states by hidden_dim**-0.5.
    readout_multiplier=lambda task: (
        task.backbone.hidden_dim**-0.5 if task.backbone.tie_embedding_weights else 1.0
    ),
)
