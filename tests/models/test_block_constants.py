"""ALiBi's slopes, XLNet's sinusoids, FNet's transform: by block, as of each parent."""

import keras
import numpy as np
import pytest
from models import numpy, perturbed, relative_change
from processes import REFUSES, run_code

import keras_fusion
from keras_fusion import AnnealBlockNorms, FusionError, fuse
from keras_fusion.models import probe

families = pytest.importorskip("experiments.families")

IDS = np.random.default_rng(0).integers(1, 20, (4, 8)).astype("int32")
# What holds the constants, in a backbone.
OF = {
    "Bloom": lambda model: model.transformer_layers[0]._self_attention_layer,
    "Falcon": lambda model: model.transformer_layers[0],
    "FNet": lambda model: model.transformer_layers[0],
    "XLNet": lambda model: model.content_query_embedding,
}


def build(family, scale=1, seed=0):
    """A backbone under a readout."""
    inner = families.backbone(family, scale, seed)
    return perturbed(families.with_readout(inner), seed)


def constants_of(family, model):
    """The layer that holds them, the first of its class."""
    return OF[family](model.layers[-2])


def inputs_of(model):
    values = {"token_ids": IDS, "padding_mask": np.ones_like(IDS)}
    return {t.name: values.get(t.name, np.zeros_like(IDS)) for t in model.inputs}


def outputs(model):
    (output,) = probe.outputs(model, inputs_of(model))
    return output


@pytest.mark.parametrize("family", OF)
def test_trees_of_copies_and_distinct_parents(family):
    """The constants of a fused model's parents are those of the parts that it has."""
    small, wide = build(family), build(family, 2, 1)
    twice = fuse(small, factor=2, seed=0)
    assert relative_change(outputs(small), outputs(twice)) < 1e-5
    stock = type(constants_of(family, small))
    assert isinstance(constants_of(family, twice), stock)
    root = fuse([twice, wide], norms="block")
    expected = (outputs(small) + outputs(wide)) / 2
    assert relative_change(expected, outputs(root)) < 1e-5
    sizes = constants_of(family, root).blocks
    assert len(sizes) == 3 and sizes[0] == sizes[1] and sizes[2] == 2 * sizes[0]
    again = fuse(root, factor=2, seed=0)
    assert constants_of(family, again).blocks == 2 * sizes


@pytest.mark.parametrize("family", OF)
def test_saved_with_its_constants(family, tmp_path):
    model, stock = fuse(build(family), factor=2, seed=0), build(family, 2)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(outputs(loaded), outputs(model))
    stock.save_weights(tmp_path / "stock.weights.h5")
    model.save_weights(tmp_path / "model.weights.h5")
    stock.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(outputs(stock), outputs(model))
    with pytest.raises(ValueError, match="expected 1 variables, but received 0"):
        loaded.load_weights(tmp_path / "stock.weights.h5")


def test_a_preset_has_them_and_other_files_say_what_they_need(tmp_path):
    model = fuse(perturbed(families.backbone("Bloom")), factor=2, seed=0)
    model.save(tmp_path / "model.keras")
    run_code(REFUSES, tmp_path / "model.keras")
    model.save_to_preset(str(tmp_path / "preset"))
    again = type(model).from_preset(str(tmp_path / "preset"))
    np.testing.assert_array_equal(outputs(again), outputs(model))


@pytest.mark.core("Bloom")
@pytest.mark.parametrize("family", ["Bloom", "Falcon"])
def test_generation_with_a_cache(family):
    model = perturbed(families.model(family, "CausalLM"))
    deep = keras_fusion.DepthStacking(factor=2, identity=True)
    fused = fuse(model, factor=2, seed=0)
    ids = keras.ops.convert_to_tensor(IDS)

    def logits(model):
        _, cache = model._build_cache(ids)
        return numpy(model.call_with_cache(ids[:, 4:6], cache, 4)[0])

    for grown in (fused, deep.plan(fused, seed=0).fill()):
        assert relative_change(logits(model), logits(grown)) < 1e-5


@pytest.mark.parametrize("family", ["Falcon", "XLNet"])
def test_grown_in_fit_and_annealed_to_the_stock_layers(family):
    model, wide = build(family), build(family, 2)
    model.compile(keras.optimizers.Adam(1e-3), "mse")
    x, y = inputs_of(model), np.zeros((*IDS.shape, 3), "float32")
    stock = type(constants_of(family, model))
    grow = keras_fusion.DeepFusion(at_step=2, seed=0, verbose=0)
    model.fit(x, y, batch_size=1, verbose=0, callbacks=[grow])
    kept = constants_of(family, model)
    assert type(kept) is not stock and isinstance(kept, stock)
    anneal = AnnealBlockNorms(steps=3)
    model.fit(x, y, batch_size=1, verbose=0, callbacks=[anneal])
    assert type(constants_of(family, model)) is stock
    wide.set_weights(model.get_weights())
    assert relative_change(outputs(wide), outputs(model)) < 1e-5


@pytest.mark.parametrize("family", ["Bloom", "Falcon"])
def test_new_heads_beside_those_of_a_parent(family):
    model = build(family)
    fused = fuse(model, factor=1.5, norms="block", seed=0)
    assert relative_change(outputs(model), outputs(fused)) < 1e-5
    assert constants_of(family, fused).blocks == (2, 1)


def test_feed_forward_blocks_alone():
    model = build("Bloom")
    wider = fuse(model, factor=2, only="feed_forward", seed=0)
    assert relative_change(outputs(model), outputs(wider)) < 1e-5
    attention = constants_of("Bloom", model)
    assert type(constants_of("Bloom", wider)) is type(attention)


def test_what_tensorflow_saves(tmp_path):
    """Its checkpoints would lose the constants in silence; its exported models do not."""
    tf = pytest.importorskip("tensorflow")
    if keras.config.backend() != "tensorflow":
        pytest.skip("its variables are TensorFlow's")
    model = fuse(build("Falcon"), factor=2, seed=0)
    with pytest.raises(FusionError, match=r"cannot hold.*\(2, 2\).*weights\.h5"):
        tf.train.Checkpoint(model=model).save(str(tmp_path / "model"))
    model.export(str(tmp_path / "exported"), verbose=False)
    exported = tf.saved_model.load(str(tmp_path / "exported"))
    assert (
        relative_change(outputs(model), exported.serve(inputs_of(model)).numpy()) < 1e-5
    )
