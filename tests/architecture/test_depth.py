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
    mean_of,
    numpy,
    outputs,
    perturbed,
    relative_change,
)
from stacks import gpt2, plain, stack
from transformers import ids_for

import keras_fusion
from keras_fusion import DeepFusion, fuse


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
    fused = fuse([deep, shallow], norms="calibrated", probe=x)
    assert (fused.backbone.num_layers, fused.backbone.hidden_dim) == (3, 16)
    deep.compile("adam", loss())
    grow = DeepFusion(
        at_step=1, partners=[shallow], optimizer_state="reset", seed=0, verbose=0
    )
    deep.fit(x, y, batch_size=8, verbose=0, callbacks=[grow])
    assert deep.backbone.hidden_dim == 16 and shallow.backbone.num_layers == 1


@pytest.mark.core("encoder_decoder")
@pytest.mark.parametrize(
    ("kind", "depths"),
    [
        ("encoder", [(2, 1), (1, 1), (4, 1)]),
        ("decoder", [(1, 1), (3, 1)]),
        ("encoder_decoder", [(1, 1), (2, 3)]),
    ],
    ids=["encoder", "decoder", "encoder_decoder"],
)
def test_functional_parents_of_unequal_depths_and_widths(kind, depths):
    parents = [plain(kind, 4 * (1 + i), i, *depth) for i, depth in enumerate(depths)]
    x = ids_for(kind)
    before = [outputs(parent, x) for parent in parents]
    fused = fuse(parents, norms="block")
    assert relative_change(np.mean(before, axis=0), outputs(fused, x)) < 1e-5
    assert len(fused.layers) == max(len(parent.layers) for parent in parents)
    after = [outputs(parent, x) for parent in parents]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_sequential_parents_of_unequal_depth_in_fit():
    def chain(width, depth, seed):
        keras.utils.set_random_seed(seed)
        blocks = [Residual(width) for _ in range(depth)]
        return perturbed(
            keras.Sequential(
                [
                    keras.Input((LENGTH,), dtype="int32"),
                    layers.Embedding(VOCABULARY, width),
                    *blocks,
                    layers.Dense(VOCABULARY),
                ]
            ),
            seed,
        )

    deep, shallow = chain(8, 3, 0), chain(4, 1, 1)
    x, y = data_for("functional", 16)
    expected = mean_of([deep, shallow], x)
    fused = fuse([deep, shallow])
    assert relative_change(expected, outputs(fused, x)) < 1e-5
    deep.compile("adam", loss())
    shallow.compile("adam", loss())
    grow = DeepFusion(
        at_step=1, partners=[shallow], optimizer_state="reset", seed=0, verbose=0
    )
    deep.fit(x, y, batch_size=8, verbose=0, callbacks=[grow])
    assert type(deep) is keras.Sequential and deep.layers[1].units == 12
    assert len(shallow.layers) == 3


@keras.saving.register_keras_serializable("tests")
class Residual(layers.Layer):
    """A residual block of two dense layers, as a layer of its own."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.up = layers.Dense(2 * units, activation="gelu")
        self.down = layers.Dense(units)

    def build(self, shape):
        self.up.build(shape)
        self.down.build((*shape[:-1], 2 * self.units))

    def call(self, x):
        return x + self.down(self.up(x))

    def get_config(self):
        return super().get_config() | {"units": self.units}


keras_fusion.register(Residual, widths=("units",))


def test_what_is_wired_otherwise_is_named():
    def model(swap, factor=1.0):
        inputs = keras.Input((4,))
        a, b = layers.Dense(4, name="a")(inputs), layers.Dense(4, name="b")(inputs)
        x = factor * (a + b if swap else a - b)
        return keras.Model(inputs, layers.Dense(2)(x))

    for other in (model(True), model(False, 2.0)):
        with pytest.raises(keras_fusion.FusionError, match="layers are joined"):
            fuse([model(False), other])
    parents = [plain("encoder_decoder", 4, i, 1 + i, 2 - i) for i in range(2)]
    with pytest.raises(keras_fusion.FusionError, match="layers are joined"):
        fuse(parents)
    with pytest.raises(keras_fusion.FusionError, match="norms after the residual"):
        fuse([plain("encoder", 4, i, 1 + i, post=True) for i in range(2)])


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
