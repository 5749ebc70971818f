"""Fractional growth: new capacity has no influence at first, and learns."""

import keras
import numpy as np
import pytest
from models import (
    bert,
    data_for,
    functional,
    gpt2,
    loss,
    mean_of,
    numpy,
    outputs,
    perturbed,
    relative_change,
    sequential,
    t5,
    t5_untied,
)
from transformers import ids_for, transformer

import keras_fusion
from keras_fusion import DeepFusion, fuse
from keras_fusion.layers import BlockLayerNormalization

KINDS = {
    "functional": functional,
    "sequential": sequential,
    "t5": t5,
    "t5_untied": t5_untied,
}


FRACTIONS = [*((1.5, kind) for kind in KINDS), (2.5, "functional"), (2.5, "t5")]


@pytest.mark.core("1.5-t5", "2.5-functional")
@pytest.mark.parametrize(("factor", "kind"), FRACTIONS)
def test_fractional_growth_keeps_the_function(kind, factor):
    model = perturbed(KINDS[kind]())
    x, _ = data_for(kind, 4)
    for mode in ("zeros", "paired"):
        fused = fuse(model, factor=factor, off_diagonal=mode, seed=0)
        assert relative_change(outputs(model, x), outputs(fused, x)) < 1e-5
    assert factor < fused.count_params() / model.count_params() < factor**2


@pytest.mark.parametrize("post", [False, True], ids=["pre", "post"])
@pytest.mark.parametrize("kind", ["encoder", "encoder_decoder"])
def test_block_norms_leave_new_capacity_out(kind, post):
    model, x = transformer(kind, 8, 0, post=post), ids_for(kind)
    fused = fuse(model, factor=1.5, norms="block")
    assert relative_change(outputs(model, x), outputs(fused, x)) < 1e-5
    assert next(a for a in fused.layers if hasattr(a, "blocks")).blocks == (8, 4)


def larger(kind, post):
    """A model for parents of 8 and 12 features; the last four are new."""
    return transformer(
        kind, 24, 2, lambda: BlockLayerNormalization((8, 12, 4)), post=post
    )


@pytest.mark.core("encoder-pre")
@pytest.mark.parametrize("post", [False, True], ids=["pre", "post"])
@pytest.mark.parametrize("kind", ["encoder", "encoder_decoder"])
def test_a_target_larger_than_distinct_parents(kind, post):
    parents = [transformer(kind, width, width, post=post) for width in (8, 12)]
    x = ids_for(kind)
    fused = fuse(parents, into=larger(kind, post), norms="block")
    assert relative_change(mean_of(parents, x), outputs(fused, x)) < 1e-5


@pytest.mark.core
def test_a_larger_target_inside_fit():
    live, partner = (transformer("encoder", width, width) for width in (8, 12))
    x, y = data_for("functional", 32)
    live.compile(keras.optimizers.Adam(0.01), loss())
    grow = DeepFusion(
        at_step=2,
        partners=[partner],
        into=lambda: larger("encoder", post=False),
        norms="block",
        optimizer_state="reset",
        verbose=0,
    )
    live.fit(x, y, batch_size=8, verbose=0, callbacks=[grow])
    assert grow.events[0].function_change < 1e-5
    assert live.layers[1].output_dim == 24
    # The new features began without influence on the logits.
    assert np.min(np.abs(numpy(live.layers[-1].kernel)[20:])) > 0


def test_a_larger_target_with_norms_of_its_own():
    model, x = perturbed(transformer("encoder", 8, 0)), ids_for("encoder")
    for epsilon in (1e-3 * 16 / 20, 1e-3):

        def norm(epsilon=epsilon):
            return keras.layers.LayerNormalization(epsilon=epsilon)

        if epsilon == 1e-3:
            with pytest.raises(keras_fusion.FusionError, match="epsilon.*`into`"):
                fuse(model, factor=2, into=transformer("encoder", 20, 1, norm))
        else:
            fused = fuse(model, factor=2, into=transformer("encoder", 20, 1, norm))
            assert relative_change(outputs(model, x), outputs(fused, x)) < 1e-5


def test_a_tied_readout_after_layer_norms():
    """The epsilon that is written into keras-hub's GPT-2 counts for small features."""
    model = perturbed(gpt2())
    x, _ = data_for("gpt2", 4)
    table = model.backbone.token_embedding.embeddings
    for small in (model, gpt2()):  # as initialized: a deviation of 0.02
        with pytest.raises(keras_fusion.FusionError, match="epsilon"):
            fuse(small, factor=1.5)
    table.assign(10 * numpy(table))
    for options in ({}, {"norms": "block"}):
        fused = fuse(model, factor=1.5, seed=0, **options)
        assert relative_change(outputs(model, x), outputs(fused, x)) < 1e-5


@pytest.mark.core("functional")
@pytest.mark.parametrize("kind", ["functional", "t5"])
def test_new_capacity_learns(kind):
    model = perturbed(KINDS[kind]())
    x, y = data_for(kind, 32)
    model.compile(keras.optimizers.Adam(0.01), loss())
    grow = DeepFusion(at_step=2, factor=1.5, seed=0, verbose=0)
    before = {}

    class Grown(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if grow.events and not before:
                before.update({v.path: numpy(v).copy() for v in model.weights})

    calls = [grow, Grown()]
    history = model.fit(x, y, batch_size=8, epochs=2, verbose=0, callbacks=calls)
    assert grow.events[0].function_change < 1e-5
    assert np.isfinite(history.history["loss"]).all()
    for variable in model.trainable_variables:
        moved = np.abs(numpy(variable) - before[variable.path])
        if moved.ndim < 2 or min(moved.shape[-2:]) < 12:
            continue
        assert np.mean(moved[..., 8:] > 0) > 0.5, variable.path  # new outputs
        assert np.mean(moved[..., 8:, :] > 0) > 0.5, variable.path  # new inputs


def test_what_cannot_be_is_refused():
    model = functional(8)
    for factor, message in (
        (1.3, "output_dim=8 of .* to 10.4"),
        (0.5, "factor=0.5"),
        (float("nan"), "factor=nan"),
    ):
        with pytest.raises(keras_fusion.FusionError, match=message):
            fuse(model, factor=factor)
    with pytest.raises(keras_fusion.FusionError, match=r"norms='block'"):
        fuse(perturbed(bert()), factor=1.5)
