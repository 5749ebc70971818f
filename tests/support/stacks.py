"""Residual networks of a given number of blocks."""

import keras
import numpy as np
from keras import layers
from models import LENGTH, VOCABULARY, perturbed
from transformers import Blocks

import keras_fusion


@keras.saving.register_keras_serializable("tests")
class Stack(keras.Model):
    """A residual network of feed-forward and attention blocks, without norms."""

    def __init__(self, width, blocks, post=False, **kwargs):
        super().__init__(**kwargs)
        self.width, self.blocks, self.post = width, blocks, post
        self.embedding = layers.Embedding(VOCABULARY, width)
        self.attentions = [
            layers.MultiHeadAttention(width // 4, 4) for _ in range(blocks)
        ]
        self.ups = [layers.Dense(2 * width, activation="gelu") for _ in range(blocks)]
        self.downs = [layers.Dense(width) for _ in range(blocks)]
        self.norms = [layers.LayerNormalization() for _ in range(blocks * post)]
        self.readout = layers.Dense(VOCABULARY)

    def call(self, ids):
        x = self.embedding(ids)
        for i in range(self.blocks):
            x = x + self.attentions[i](x, x)
            x = x + self.downs[i](self.ups[i](x))
            x = self.norms[i](x) if self.post else x
        return self.readout(x)

    def get_config(self):
        own = {"width": self.width, "blocks": self.blocks, "post": self.post}
        return super().get_config() | own


keras_fusion.register(Stack, widths=("width",), depth=("blocks",))


def stack(width, blocks, seed=0, post=False):
    keras.utils.set_random_seed(seed)
    model = Stack(width, blocks, post)
    model(np.zeros((1, LENGTH), "int32"))
    return perturbed(model, seed)


def gpt2(blocks, seed=0):
    import keras_hub

    keras.utils.set_random_seed(seed)
    backbone = keras_hub.models.GPT2Backbone(
        VOCABULARY, blocks, 2, 8, 16, dropout=0.0, max_sequence_length=LENGTH
    )
    return perturbed(keras_hub.models.GPT2CausalLM(backbone, preprocessor=None), seed)


def plain(kind, width, seed, depth, encoder_depth=1, post=False):
    """A functional transformer of some depth."""
    keras.utils.set_random_seed(seed)
    blocks = Blocks(width, layers.LayerNormalization, post)
    ids = keras.Input((LENGTH,), dtype="int32", name="ids")
    inputs, memory = ids, None
    x = layers.Embedding(VOCABULARY, width)(ids)
    if kind == "encoder_decoder":
        for _ in range(encoder_depth):
            x = blocks.stack(x)
        memory = layers.LayerNormalization()(x)
        targets = keras.Input((LENGTH,), dtype="int32", name="targets")
        inputs = [ids, targets]
        x = layers.Embedding(VOCABULARY, width)(targets)
    for _ in range(depth):
        x = blocks.stack(x, memory, causal=kind != "encoder")
    x = x if post else layers.LayerNormalization()(x)
    return perturbed(keras.Model(inputs, layers.Dense(VOCABULARY)(x)), seed)
