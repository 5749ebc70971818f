"""Tiny real models, one of each kind that users have, and data for them."""

import keras
import numpy as np
from keras import layers

import keras_fusion

VOCABULARY, LENGTH = 20, 6


def functional(width=8, seed=0, dropout=0.0):
    """A pre-norm transformer of Keras's own layers."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((LENGTH,), dtype="int32")
    x = layers.Embedding(VOCABULARY, width)(inputs)
    h = layers.LayerNormalization()(x)
    h = layers.MultiHeadAttention(width // 4, 4)(h, h)
    x = x + layers.Dropout(dropout)(h)
    h = layers.LayerNormalization()(x)
    h = layers.Dense(2 * width, activation="gelu")(h)
    x = layers.Add()([x, layers.Dense(width)(h)])
    x = layers.LayerNormalization()(x)
    return keras.Model(inputs, layers.Dense(VOCABULARY, name="logits")(x))


def sequential(width=8, seed=0):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((LENGTH,), dtype="int32"),
            layers.Embedding(VOCABULARY, width),
            layers.Conv1D(width, 3, padding="same", activation="relu"),
            layers.BatchNormalization(),
            layers.Dense(VOCABULARY),
        ]
    )


@keras.saving.register_keras_serializable("tests")
class Subclassed(keras.Model):
    """A transformer written as a class, with state of its own."""

    def __init__(self, dim=8, heads=2, **kwargs):
        super().__init__(**kwargs)
        self.dim, self.heads = dim, heads
        self.scale = dim**0.5 / dim**0.5  # depends on nothing: stays exact
        self.calls = 0
        self.embed = layers.Embedding(VOCABULARY, dim)
        self.attention = layers.MultiHeadAttention(heads, dim // heads)
        self.norms = [layers.LayerNormalization(), layers.LayerNormalization()]
        self.readout = layers.Dense(VOCABULARY)

    def call(self, ids):
        x = self.embed(ids) * self.scale
        x = self.norms[0](x + self.attention(x, x))
        return self.readout(self.norms[1](x))

    def get_config(self):
        return super().get_config() | {"dim": self.dim, "heads": self.heads}


keras_fusion.register(Subclassed, widths=("dim", "heads"))


def subclassed(dim=8, seed=0):
    keras.utils.set_random_seed(seed)
    model = Subclassed(dim, dim // 4)
    model(np.zeros((1, LENGTH), "int32"))
    return model


def t5(tied=True, width=8, seed=0):
    import keras_hub

    keras.utils.set_random_seed(seed)
    backbone = keras_hub.models.T5Backbone(
        vocabulary_size=VOCABULARY,
        num_layers=1,
        num_heads=width // 4,
        hidden_dim=width,
        intermediate_dim=2 * width,
        key_value_dim=4,
        dropout=0.0,
        activation="gelu",
        use_gated_activation=True,
        tie_embedding_weights=tied,
    )
    return keras_hub.models.T5Seq2SeqLM(backbone, preprocessor=None)


def t5_untied(width=8, seed=0):
    return t5(False, width, seed)


def bert(width=8, seed=0):
    import keras_hub

    keras.utils.set_random_seed(seed)
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=VOCABULARY,
        num_layers=1,
        num_heads=width // 4,
        hidden_dim=width,
        intermediate_dim=2 * width,
        dropout=0.0,
        max_sequence_length=LENGTH,
    )
    return keras_hub.models.BertTextClassifier(backbone, num_classes=3, dropout=0.0)


def gpt2(width=8, seed=0):
    import keras_hub

    keras.utils.set_random_seed(seed)
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=VOCABULARY,
        num_layers=1,
        num_heads=width // 4,
        hidden_dim=width,
        intermediate_dim=2 * width,
        dropout=0.0,
        max_sequence_length=LENGTH,
    )
    return keras_hub.models.GPT2CausalLM(backbone, preprocessor=None)


def llama(width=8, seed=0):
    import keras_hub

    keras.utils.set_random_seed(seed)
    backbone = keras_hub.models.LlamaBackbone(
        vocabulary_size=VOCABULARY,
        num_layers=1,
        num_query_heads=width // 4,
        num_key_value_heads=width // 4,
        hidden_dim=width,
        intermediate_dim=2 * width,
    )
    return keras_hub.models.LlamaCausalLM(backbone, preprocessor=None)


def qwen3(width=8, seed=0):
    """With norms of queries and keys by head."""
    import keras_hub

    keras.utils.set_random_seed(seed)
    backbone = keras_hub.models.Qwen3Backbone(
        vocabulary_size=VOCABULARY,
        num_layers=1,
        num_query_heads=width // 2,
        num_key_value_heads=width // 4,
        head_dim=4,
        hidden_dim=width,
        intermediate_dim=2 * width,
        dropout=0.0,
    )
    return keras_hub.models.Qwen3CausalLM(backbone, preprocessor=None)


def norm_free(width=32, seed=0):
    """A transformer without norms, in which fusion of distinct parents is exact."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((LENGTH,), dtype="int32")
    x = layers.Embedding(VOCABULARY, width)(inputs)
    x = x + layers.MultiHeadAttention(width // 8, 8)(x, x)
    h = layers.Dense(2 * width, activation="gelu")(x)
    x = x + layers.Dense(width)(h)
    return perturbed(keras.Model(inputs, layers.Dense(5)(x)), seed)


KINDS = {
    "functional": functional,
    "sequential": sequential,
    "subclassed": subclassed,
    "t5": t5,
    "t5_untied": t5_untied,
    "bert": bert,
    "gpt2": gpt2,
}


def data_for(kind, count=32, seed=0):
    """Inputs and integer targets for a model of `KINDS`."""
    ids = np.random.default_rng(seed).integers(0, VOCABULARY, (count, LENGTH), "int32")
    ones = np.ones_like(ids)
    if kind.startswith("t5"):
        x = {
            "encoder_token_ids": ids,
            "encoder_padding_mask": ones,
            "decoder_token_ids": ids,
            "decoder_padding_mask": ones,
        }
        return x, ids
    if kind == "bert":
        x = {"token_ids": ids, "segment_ids": 0 * ones, "padding_mask": ones}
        return x, ids[:, 0] % 3
    if kind == "gpt2":
        return {"token_ids": ids, "padding_mask": ones}, ids
    return ids, ids


def loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def perturbed(model, seed=0):
    """Moves zeros and ones off their start, so that no error can hide behind them."""
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        value = numpy(variable)
        noise = 0.1 * rng.standard_normal(value.shape)
        variable.assign(value + noise.astype(value.dtype))
    return model


def numpy(x):
    return np.asarray(keras.ops.convert_to_numpy(x))


def values(model):
    """Copies of all weights."""
    return [numpy(v).copy() for v in model.weights]


def outputs(model, x):
    """The model's output in inference mode, as an array, or a structure of arrays."""
    found = model(keras.tree.map_structure(keras.ops.convert_to_tensor, x))
    return keras.tree.map_structure(numpy, found)


def mean_of(parents, x):
    """The mean of several models' outputs."""
    return np.mean([outputs(parent, x) for parent in parents], axis=0)


def relative_change(before, after):
    return np.max(np.abs(after - before)) / np.max(np.abs(before))


def gradients(model, x, y):
    """What one step of SGD takes off each weight, by its id."""
    before = values(model)
    model.compile(keras.optimizers.SGD(1.0), loss(), run_eagerly=True)
    model.train_on_batch(x, y)
    moves = [numpy(v) - b for v, b in zip(model.weights, before, strict=True)]
    model.set_weights(before)
    return dict(zip(map(id, model.weights), moves, strict=True))
