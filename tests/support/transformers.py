"""Transformers of Keras's own layers, of any kind and width, and data for them."""

import keras
from keras import layers
from models import LENGTH, VOCABULARY, data_for, perturbed


class Blocks:
    """Transformer blocks of one width; `post` norms after the residual sum."""

    def __init__(self, width, norm, post=False, heads=None):
        self.width, self.norm, self.post = width, norm, post
        self.heads = heads or width // 4

    def residual(self, x, update):
        if self.post:
            return self.norm()(x + update(x))
        return x + update(self.norm()(x))

    def attend(self, x, memory=None, causal=False):
        attention = layers.MultiHeadAttention(self.heads, 4)
        return self.residual(
            x,
            lambda h: attention(
                h, h if memory is None else memory, use_causal_mask=causal
            ),
        )

    def feed_forward(self, x, factor=2):
        hidden = layers.Dense(factor * self.width, activation="gelu")
        return self.residual(x, lambda h: layers.Dense(self.width)(hidden(h)))

    def stack(self, x, memory=None, causal=False):
        x = self.attend(x, causal=causal)
        if memory is not None:
            x = self.attend(x, memory)
        return self.feed_forward(x)


def transformer(kind, width, seed, norm=layers.LayerNormalization, post=False, **kw):
    keras.utils.set_random_seed(seed)
    blocks = Blocks(width, norm, post, **kw)
    ids = keras.Input((LENGTH,), dtype="int32", name="ids")
    inputs, memory = ids, None
    x = layers.Embedding(VOCABULARY, width)(ids)
    if kind == "encoder_decoder":
        memory = norm()(blocks.stack(x))
        targets = keras.Input((LENGTH,), dtype="int32", name="targets")
        inputs = [ids, targets]
        x = layers.Embedding(VOCABULARY, width)(targets)
    x = blocks.stack(x, memory, causal=kind != "encoder")
    x = x if post else norm()(x)
    model = keras.Model(inputs, layers.Dense(VOCABULARY)(x))
    return perturbed(model, seed)


def ids_for(kind, count=4):
    x, _ = data_for("functional", count)
    return [x, x[::-1]] if kind == "encoder_decoder" else x
