"""A tiny model of each transformer family of keras-hub, built by naming conventions."""

import inspect

import keras
import keras_hub

FAMILIES = [
    "Albert",
    "Bart",
    "Bert",
    "Bloom",
    "DebertaV3",
    "DistilBert",
    "EdRec",
    "Electra",
    "ESM",
    "ESM2",
    "FNet",
    "Falcon",
    "Gemma",
    "Gemma3",
    "Gemma4",
    "GPT2",
    "GPTNeoX",
    "GptOss",
    "Llama",
    "Llama3",
    "Mistral",
    "Mixtral",
    "OPT",
    "Phi3",
    "Qwen",
    "QwenMoe",
    "Qwen3",
    "Qwen3Moe",
    "Qwen3_5",
    "Qwen3_5Moe",
    "Roberta",
    "RoformerV2",
    "SmolLM3",
    "T5",
    "T5Gemma",
    "T5Gemma2",
    "XLMRoberta",
    "XLNet",
    "Whisper",
    "ViT",
    "DeiT",
    "DINOV2",
    "DINOV3",
]
TOWERS = [
    "CLIPVisionEncoder",
    "CLIPTextEncoder",
    "MetaCLIP2VisionEncoder",
    "MetaCLIP2TextEncoder",
    "SigLIPVisionEncoder",
    "SigLIPTextEncoder",
]
PAIRS = ["CLIP", "MetaCLIP2", "SigLIP"]  # of two towers
ALL = [*FAMILIES, *TOWERS, *PAIRS]
TASKS = ("TextClassifier", "MaskedLM", "CausalLM", "Seq2SeqLM", "ImageClassifier")
LENGTH = 8
# Sizes by the names that keras-hub uses; `scale` multiplies what is a width.
WIDTHS = {
    "hidden_dim": 16,
    "embedding_dim": 16,
    "intermediate_dim": 24,
    "mlp_dim": 24,
    "moe_intermediate_dim": 8,
    "shared_expert_intermediate_dim": 8,
    "shared_expert_intermediate_size": 8,
    "num_heads": 2,
    "num_attention_heads": 2,
    "num_query_heads": 2,
    "num_key_value_heads": 1,
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
}
SIZES = {
    "vocabulary_size": 24,
    "vocab_size": 24,
    "num_layers": 2,
    "num_layers_enc": 2,
    "num_layers_dec": 2,
    "head_dim": 8,
    "head_size": 8,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "key_value_dim": 8,
    "num_experts": 4,
    "top_k": 2,
    "max_sequence_length": 16,
    "projection_dim": 16,
    "max_encoder_sequence_length": 16,
    "max_decoder_sequence_length": 16,
    "pretraining_sequence_length": 16,
    "max_position_embeddings": 16,
    "bucket_size": 8,
    "num_mels": 8,
    "image_shape": (16, 16, 3),
    "position_embedding_shape": (16, 16, 3),
    "image_size": 16,
    "patch_size": 8,
    "layer_types": ["full_attention"] * 2,
    "rope_layer_enabled_list": [True, True],
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0.0,
    "layer_norm_epsilon": 1e-5,
    "rope_theta": 10000.0,
    "partial_rotary_factor": 1.0,
    "dropout": 0.0,
    "dropout_rate": 0.0,
}
_BOTH_ATTENTIONS = {"layer_types": ["linear_attention", "full_attention"]}
SPECIAL = {
    "ViT": {"patch_size": (8, 8)},
    "DeiT": {"patch_size": 8},
    "GPTNeoX": {"rotary_percentage": 0.5},
    "Gemma3": {"image_size": None},
    "Qwen3_5": _BOTH_ATTENTIONS,
    "Qwen3_5Moe": _BOTH_ATTENTIONS,
}


def backbone(family: str, scale: int = 1, seed: int = 0) -> keras.Model:
    """The family's backbone at a tiny size; widths are `scale` times as large."""
    keras.utils.set_random_seed(seed)
    name = family if family in TOWERS else f"{family}Backbone"
    cls = getattr(keras_hub.models, name)
    sizes = SIZES | {k: scale * v for k, v in WIDTHS.items()}
    sizes |= {f"{p}_{k}": v for p in ("encoder", "decoder") for k, v in sizes.items()}
    names = inspect.signature(cls.__init__).parameters
    arguments = {k: v for k, v in sizes.items() if k in names}
    return cls(**arguments | SPECIAL.get(family, {}))


def two_towers(family: str, seed: int = 0) -> keras.Model:
    """CLIP and its kin: both towers under the comparison of their embeddings."""
    cls = getattr(keras_hub.models, f"{family}Backbone")
    encoders = {
        "vision_encoder": backbone(f"{family}VisionEncoder", seed=seed),
        "text_encoder": backbone(f"{family}TextEncoder", seed=seed + 1),
    }
    return cls(**encoders, **({} if family == "SigLIP" else {"projection_dim": 16}))


def names(family: str) -> list[str]:
    """The backbone, and the family's tasks."""
    tasks = [] if family in PAIRS else TASKS
    known = [name for name in tasks if hasattr(keras_hub.models, f"{family}{name}")]
    return ["backbone", *known]


def model(family: str, name: str, scale: int = 1, seed: int = 0) -> keras.Model:
    """The backbone under a readout of Keras, or one of the family's tasks."""
    if family in PAIRS:
        return two_towers(family, seed)
    inner = backbone(family, scale, seed)
    if name == "backbone":
        return with_readout(inner)
    options = {"num_classes": 3} if "Classifier" in name else {}
    cls = getattr(keras_hub.models, f"{family}{name}")
    return cls(backbone=inner, preprocessor=None, **options)


def models(family: str, scale: int = 1, seed: int = 0) -> dict[str, keras.Model]:
    """All models of a family by their names."""
    return {name: model(family, name, scale, seed) for name in names(family)}


def with_readout(inner: keras.Model) -> keras.Model:
    """A backbone under a readout of Keras."""
    output = inner(inner.input)
    if isinstance(output, dict):
        names = ("decoder_sequence_output", "sequence_output")
        output = output[next(name for name in names if name in output)]
    return keras.Model(inner.input, keras.layers.Dense(3, name="readout")(output))
