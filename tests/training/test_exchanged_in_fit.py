"""Block norms inside composite layers in the course of a run, and in its files."""

import contextlib

import keras
import keras_hub
import numpy as np
import pytest
from fitting import Watch
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
    qwen3,
    relative_change,
    t5,
)
from processes import REFUSES, run_code

import keras_fusion
from keras_fusion import AnnealBlockNorms, DeepFusion, fuse

pytestmark = pytest.mark.eager

LOADS = """
import sys, keras, keras_hub
keras.saving.load_model(sys.argv[1])
assert "keras_fusion" not in sys.modules
"""


def encoder(width=8, seed=0, blocks=2):
    """Post-norm blocks of keras-hub in a plain graph, compiled."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((LENGTH,), dtype="int32")
    x = layers.Embedding(VOCABULARY, width)(inputs)
    for _ in range(blocks):
        x = keras_hub.layers.TransformerEncoder(2 * width, width // 4)(x)
    model = keras.Model(inputs, layers.Dense(VOCABULARY)(x))
    model.compile(keras.optimizers.Adam(0.01), loss(), jit_compile=False)
    return model


def train(model, *callbacks, epochs=1, kind="functional"):
    x, y = data_for(kind, 48)
    model.fit(
        x, y, batch_size=8, epochs=epochs, shuffle=False, verbose=0, callbacks=callbacks
    )
    return model


def trained(make, kind):
    parents = [make(width=8, seed=0), make(width=12, seed=1)]
    for parent in parents:
        parent.compile(keras.optimizers.Adam(0.01), loss(), metrics=[])
        train(parent, kind=kind)
    return parents


def growth(step, partner):
    """A fusion with a partner that has not been trained, so without optimizer state."""
    return DeepFusion(
        at_step=step,
        partners=[partner],
        norms="block",
        optimizer_state="reset",
        seed=0,
        verbose=0,
    )


@pytest.mark.core("t5-t5")
@pytest.mark.parametrize(("make", "kind"), [(t5, "t5"), (qwen3, "gpt2")])
def test_a_run_begins_anew_at_the_ensemble_and_ends_stock(make, kind):
    live, partner = trained(make, kind)
    x, y = data_for(kind, 48)
    old_class, before, after = type(live), Watch(9, x), Watch(9, x)
    grow = DeepFusion(at_step=9, partners=[partner], norms="block", seed=0, verbose=0)
    anneal = AnnealBlockNorms(steps=3)
    train(live, before, grow, after, anneal, epochs=2, kind=kind)
    ensemble = (before.outputs + outputs(partner, x)) / 2
    losses = [float(numpy(loss()(y, logits))) for logits in (ensemble, after.outputs)]
    assert abs(losses[0] - losses[1]) < 1e-4
    assert relative_change(ensemble, after.outputs) < 1e-5
    assert type(live) is old_class
    assert not [v for v in live.variables if v.name in ("blend", "differences")]
    assert not [x for x in live._flatten_layers() if "fusion" in type(x).__module__]


@pytest.mark.core
def test_the_last_step_of_the_annealing_changes_nothing():
    fused = fuse([encoder(8), encoder(12, 1)], norms="block")
    fused.compile("sgd", loss())
    x, _ = data_for("functional", 48)
    seen = Watch(6, x)
    train(fused, seen, AnnealBlockNorms(steps=6))
    assert not [v for v in fused.variables if v.name == "blend"]
    np.testing.assert_allclose(outputs(fused, x), seen.outputs, atol=1e-6)
    np.testing.assert_allclose(fused.predict(x, verbose=0), seen.outputs, atol=1e-5)


@pytest.mark.parametrize("phase", ["block", "half", "stock"])
def test_a_saved_run_goes_on(phase, tmp_path):
    partner, x = encoder(12, 1), data_for("functional", 48)[0]
    grow = growth(2, partner)
    steps = {"block": 10**9, "half": 8, "stock": 4}[phase]
    model = encoder()
    # The ramp after a reset is in the file of a schedule, and not of a number.
    rate = keras.optimizers.schedules.PolynomialDecay(0.01, 1, 0.01)
    model.optimizer.learning_rate = rate
    train(model, grow, AnnealBlockNorms(steps=steps))
    blends = {float(numpy(v)) for v in model.variables if v.name == "blend"}
    assert (len(blends), phase) in {(1, "block"), (1, "half"), (0, "stock")}
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(outputs(again, x), outputs(model, x), atol=1e-6)
    for a, b in zip(again.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(numpy(a), numpy(b))
    stock = fuse([encoder(), partner], norms="joint")
    stock.compile("sgd", loss())
    train(stock)
    stock.predict(x, verbose=0)
    stock.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_allclose(
        stock.predict(x, verbose=0), outputs(model, x), rtol=1e-4, atol=1e-5
    )
    for one in (model, again):
        train(one)
    np.testing.assert_allclose(outputs(again, x), outputs(model, x), atol=1e-5)


def test_files_say_when_they_need_the_package(tmp_path):
    model = fuse([encoder(), encoder(12, 1)], norms="block")
    model.compile("sgd", loss())
    model.save(tmp_path / "block.keras")
    run_code(REFUSES, tmp_path / "block.keras")
    hub = fuse([t5(), t5(width=12, seed=1)], norms="block")
    hub.save(tmp_path / "hub.keras")
    run_code(REFUSES, tmp_path / "hub.keras")
    train(model, AnnealBlockNorms(steps=2))
    model.save(tmp_path / "stock.keras")
    run_code(LOADS, tmp_path / "stock.keras")


@pytest.mark.parametrize("end", [".keras", ".weights.h5"])
def test_files_have_what_each_parents_heads_keep(end, tmp_path):
    parents = [perturbed(qwen3()), perturbed(qwen3(width=12, seed=1), 1)]
    fused, x = fuse(parents, norms="block"), data_for("gpt2", 4)[0]
    path = str(tmp_path / f"model{end}")
    if end == ".keras":
        fused.save(path)
        again = keras.saving.load_model(path)
    else:
        fused.save_weights(path)
        again = fuse(parents)
        again.load_weights(path)
    np.testing.assert_allclose(outputs(again, x), outputs(fused, x), atol=1e-6)
    assert relative_change(mean_of(parents, x), outputs(again, x)) < 1e-5


def test_a_preset_has_the_block_norms(tmp_path):
    parents, x = [t5(), t5(width=12, seed=1)], data_for("t5", 4)[0]
    fused = fuse(parents, norms="block")
    fused.save_to_preset(str(tmp_path / "preset"))
    again = keras_hub.models.T5Seq2SeqLM.from_preset(str(tmp_path / "preset"))
    np.testing.assert_allclose(outputs(again, x), outputs(fused, x), atol=1e-6)
    assert relative_change(mean_of(parents, x), outputs(again, x)) < 1e-5


def test_a_checkpoint_of_tensorflows(tmp_path):
    tf = pytest.importorskip("tensorflow")
    if keras.config.backend() != "tensorflow":
        pytest.skip("its variables are TensorFlow's")
    parents, x = [encoder(), encoder(12, 1)], data_for("functional", 4)[0]

    def restored(model, path):
        for variable in model.trainable_variables:
            variable.assign(0.5 * variable)
        status = tf.train.Checkpoint(model=model).restore(path)
        status.assert_existing_objects_matched()
        return outputs(model, x)

    fused = fuse(parents, norms="block")
    path = tf.train.Checkpoint(model=fused).save(str(tmp_path / "block"))
    again = restored(fuse(parents, norms="block"), path)
    np.testing.assert_array_equal(again, outputs(fused, x))
    with pytest.raises(ValueError, match="incompatible tensor"):
        restored(fuse(parents, norms="joint"), path)
    fused.compile("sgd", loss())
    train(fused, AnnealBlockNorms(steps=2))
    path = tf.train.Checkpoint(model=fused).save(str(tmp_path / "stock"))
    np.testing.assert_array_equal(
        restored(fuse(parents, norms="joint"), path), outputs(fused, x)
    )


class Crash(Exception):
    pass


class CrashAt(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.epoch:
            raise Crash


def test_killed_in_the_middle_of_the_annealing(tmp_path):
    """It ends where an uninterrupted run does, to the bit."""

    def run(crash=None, backup=True):
        partner = encoder(12, 1)
        model = encoder()
        callbacks = [
            *([keras_fusion.BackupAndRestore(tmp_path / "backup")] if backup else []),
            growth(3, partner),
            AnnealBlockNorms(steps=9),
            *([CrashAt(crash)] if crash is not None else []),
        ]
        with contextlib.suppress(Crash):
            train(model, *callbacks, epochs=3)
            assert crash is None
        return [numpy(v) for v in (*model.weights, *model.optimizer.variables)]

    expected = run(backup=False)
    for crash in (0, 1, None):
        found = run(crash)
    assert [a.shape for a in found] == [b.shape for b in expected]
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)
