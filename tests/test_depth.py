"""Parents of different depth: the shallower one continues as an identity."""

import keras
import numpy as np
import pytest
from keras import layers
from models import (
    LENGTH,
    VOCABULARY,
    data_for,
    loss,
    numpy,
    outputs,
    perturbed,
    relative_change,
)

import keras_fusion
from keras_fusion import DeepFusion, fuse


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


@pytest.mark.core
@pytest.mark.parametrize("depths", [(1, 3), (3, 1), (2, 1, 4)])
def test_unequal_depths_and_widths_give_the_mean(depths):
    parents = [stack(4 * (1 + i), depth, i) for i, depth in enumerate(depths)]
    x, _ = data_for("functional", 4)
    before = [outputs(parent, x) for parent in parents]
    fused = fuse(parents)
    assert fused.blocks == max(depths)
    assert relative_change(np.mean(before, axis=0), outputs(fused, x)) < 1e-5
    after = [outputs(parent, x) for parent in parents]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert [parent.blocks for parent in parents] == list(depths)


@pytest.mark.core
def test_the_new_blocks_learn():
    parents = [stack(4, 2, 0), stack(4, 1, 1)]
    fused = fuse(parents)
    x, y = data_for("functional")
    before = [numpy(v).copy() for v in fused.downs[1].trainable_variables]
    fused.compile(keras.optimizers.Adam(0.01), loss())
    fused.fit(x, y, batch_size=8, verbose=0)
    # The second parent's block was an identity: half of the stream, at first.
    grown = numpy(fused.downs[1].kernel)[8:, 4:] - before[0][8:, 4:]
    assert np.max(np.abs(grown)) > 1e-3


def test_a_gpt2_is_fused_with_a_shallower_one():
    deep, shallow = gpt2(3, 0), gpt2(1, 1)
    x, y = data_for("gpt2", 16)
    fused = fuse([deep, shallow], norms="calibrated", batch=x)
    assert (fused.backbone.num_layers, fused.backbone.hidden_dim) == (3, 16)
    deep.compile("adam", loss())
    grow = DeepFusion(
        at_step=1, partners=[shallow], optimizer_state="reset", seed=0, verbose=0
    )
    deep.fit(x, y, batch_size=8, verbose=0, callbacks=[grow])
    assert deep.backbone.hidden_dim == 16 and shallow.backbone.num_layers == 1


def test_what_cannot_continue_is_refused():
    with pytest.raises(keras_fusion.FusionError, match="norms after the residual"):
        fuse([stack(4, 1, 0, post=True), stack(4, 2, 1, post=True)])
    shallow, deep = gpt2(1), gpt2(2, 1)
    x, y = data_for("gpt2", 16)
    shallow.compile("adam", loss())
    grow = DeepFusion(at_step=1, partners=[deep], optimizer_state="reset", verbose=0)
    with pytest.raises(keras_fusion.FusionError, match="shallower than a partner"):
        shallow.fit(x, y, batch_size=8, verbose=0, callbacks=[grow])
    assert shallow.backbone.num_layers == 1
