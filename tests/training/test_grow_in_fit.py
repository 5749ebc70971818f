"""Growth inside `fit()`: when it happens, what it keeps, and what it records."""

import keras
import numpy as np
import pytest
from models import (
    KINDS,
    data_for,
    functional,
    loss,
    norm_free,
    outputs,
    sequential,
    subclassed,
    values,
)

import keras_fusion
from keras_fusion import AtStep, DeepFusion, FusionOperator, GrowModel, OnPlateau
from keras_fusion.testing import run_growth_test

STEPS = 4  # of eight examples, in an epoch of the data


class Losses(keras.callbacks.Callback):
    """The loss of each step alone."""

    def __init__(self):
        super().__init__()
        self.values = []
        self._seen = (0.0, 0)

    def on_epoch_begin(self, epoch, logs=None):
        self._seen = (0.0, 0)

    def on_train_batch_end(self, batch, logs=None):
        total, count = logs["loss"] * (batch + 1), batch + 1
        self.values.append((total - self._seen[0]) / (count - self._seen[1]))
        self._seen = (total, count)


def fit(
    model, kind="functional", *callbacks, optimizer="sgd", compiled=False, **options
):
    if not compiled:
        model.compile(optimizer, loss())
    x, y = data_for(kind)
    options = {"batch_size": 8, "shuffle": False, "verbose": 0, "epochs": 2} | options
    return model.fit(x, y, callbacks=list(callbacks), **options)


IN_FIT = [*((kind, "paired") for kind in KINDS), ("functional", "zeros")]


@pytest.mark.core("functional-zeros", "subclassed-paired", "t5-paired")
@pytest.mark.parametrize(("kind", "mode"), IN_FIT)
def test_models_grow_in_mid_epoch(kind, mode):
    x, y = data_for(kind, 48)
    run_growth_test(
        KINDS[kind](),
        x,
        y,
        loss=loss(),
        optimizer=keras.optimizers.Adam(0.01),
        steps_after=50 if mode == "paired" else 3,
        off_diagonal=mode,
    )


@pytest.mark.core
@pytest.mark.parametrize("widths", [(32, 32), (32, 48)])
def test_partners_join(widths):
    live, partner = (norm_free(width, seed) for seed, width in enumerate(widths))
    grow = DeepFusion(at_step=3, partners=[partner], optimizer_state="reset", verbose=0)
    before = values(partner)
    live.compile("sgd", loss())
    x, y = data_for("functional")
    live.fit(x, y % 5, batch_size=8, callbacks=[grow], verbose=0)
    assert grow.events[0].function_change < 1e-5
    assert live.layers[1].output_dim == sum(widths)
    assert all(
        np.array_equal(a, b) for a, b in zip(before, values(partner), strict=True)
    )


def test_a_partner_may_be_a_file(tmp_path):
    path = tmp_path / "partner.keras"
    partner = functional(seed=1)
    fit(partner)
    partner.save(path)
    grow = DeepFusion(at_step=2, partners=[str(path)], verbose=0)
    again = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(grow)
    )
    live = functional()
    fit(live, "functional", again)
    assert live.layers[1].output_dim == 16


@pytest.mark.core
def test_several_growths_in_one_run():
    model = functional()
    grow = DeepFusion(at_step=[2, 5], seed=0, verbose=0)
    fit(model, "functional", grow, optimizer="adam")
    assert [event.step for event in grow.events] == [2, 5]
    assert [event.epoch for event in grow.events] == [1, 2]
    assert grow.events[0].params_after == grow.events[1].params_before
    assert model.layers[1].output_dim == 32
    # A second fit goes on with the grown model and does not grow again.
    fit(model, "functional", grow, compiled=True)
    assert len(grow.events) == 2 and int(model.optimizer.iterations) == 16


def test_at_epoch():
    model = functional()
    grow = DeepFusion(at_epoch=1, verbose=0)
    fit(model, "functional", grow)
    (event,) = grow.events
    assert (event.step, event.epoch) == (STEPS, 1)


def test_at_the_very_end():
    model = functional()
    grow = DeepFusion(at_step=2 * STEPS, verbose=0)
    fit(model, "functional", grow)
    assert grow.events[0].step == 2 * STEPS and model.layers[1].output_dim == 16


def test_on_plateau():
    model = functional()
    schedule = OnPlateau("val_loss", patience=2, min_delta=100.0)
    grow = DeepFusion(schedule=schedule, verbose=0)
    fit(model, "functional", grow, epochs=5, validation_data=data_for("functional", 8))
    assert [event.epoch for event in grow.events] == [3]


def test_a_schedule_of_ones_own():
    class Every(keras_fusion.GrowthSchedule):
        def should_grow(self, moment):
            return moment.logs is None and moment.step in (3, 6)

    grow = GrowModel(FusionOperator(seed=0), Every(), verbose=0)
    fit(functional(), "functional", grow)
    assert [event.step for event in grow.events] == [3, 6]


@pytest.mark.parametrize("options", [{"initial_epoch": 1}, {"steps_per_epoch": 3}])
def test_lengths_of_fit(options):
    grow = DeepFusion(at_step=2, verbose=0)
    fit(functional(), "functional", grow, **options)
    assert grow.events[0].step == 2


def test_data_of_unknown_length():
    import tensorflow as tf

    data = tf.data.Dataset.from_tensor_slices(data_for("functional")).batch(8)
    data = data.filter(lambda x, y: True)
    grow = DeepFusion(at_step=6, verbose=0)
    model = functional()
    model.compile("sgd", loss())
    model.fit(data, epochs=2, callbacks=[grow], verbose=0)
    assert grow.events[0].step == 6


def test_an_unbuilt_subclass_grows_once_it_is_built():
    model = type(subclassed())(8, 2)
    grow = DeepFusion(at_step=3, verbose=0)
    fit(model, "functional", grow)
    assert model.dim == 16 and grow.events[0].function_change < 1e-5


# PyTorch's dropout draws from a generator of its own, which building a model moves on.
DROPOUT = 0.0 if keras.config.backend() == "torch" else 0.2


@pytest.mark.core("carry")
@pytest.mark.parametrize("optimizer_state", ["reset", "carry"])
def test_growth_in_fit_equals_growth_offline(optimizer_state):
    """Grown in `fit` at step s, or by `fuse` between two fits: the same losses."""

    def make():
        return functional(dropout=DROPOUT)

    options = {"off_diagonal": "paired", "seed": 7}
    inside, losses = make(), Losses()
    grow = DeepFusion(
        at_step=STEPS, optimizer_state=optimizer_state, verbose=0, **options
    )
    fit(inside, "functional", grow, losses)
    outside, first, second = make(), Losses(), Losses()
    fit(outside, "functional", first, epochs=1)
    fused = keras_fusion.fuse(outside, factor=2, **options)
    fit(fused, "functional", second, epochs=1)
    np.testing.assert_allclose(losses.values, first.values + second.values, rtol=1e-5)


@pytest.mark.core
def test_growth_in_mid_epoch_equals_growth_between_fits():
    """With Adam's state carried too, the callback adds nothing of its own."""
    x, y = data_for("functional")
    options = {"seed": 7, "verbose": 0}

    def optimizer():
        return keras.optimizers.Adam(0.01)

    inside, losses = functional(dropout=DROPOUT), Losses()
    grow = DeepFusion(at_step=2, **options)
    fit(inside, "functional", grow, losses, optimizer=optimizer(), epochs=1)
    outside, first, second = functional(dropout=DROPOUT), Losses(), Losses()
    outside.compile(optimizer(), loss())
    fixed = {"batch_size": 8, "shuffle": False, "verbose": 0}
    grow = DeepFusion(at_step=2, **options)
    outside.fit(x[:16], y[:16], callbacks=[grow, first], **fixed)
    outside.fit(x[16:], y[16:], callbacks=[second], **fixed)
    np.testing.assert_allclose(losses.values, first.values + second.values, rtol=1e-5)
    assert int(outside.optimizer.iterations) == STEPS


def test_references_stay_valid():
    model = sequential()
    seen = {}

    class Holder(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.setdefault("models", []).append(self.model)

    optimizer = keras.optimizers.Adam(0.01)
    history = fit(
        model,
        "sequential",
        DeepFusion(at_step=2, verbose=0),
        Holder(),
        optimizer=optimizer,
    )
    assert all(held is model for held in seen["models"])
    assert history.model is model and model.history is history
    assert model.optimizer is optimizer and int(optimizer.iterations) == 8
    assert outputs(model, data_for("sequential", 2)[0]).shape == (2, 6, 20)


def test_console_and_record(capsys):
    grow = DeepFusion(at_step=2)
    fit(functional(), "functional", grow)
    shown = capsys.readouterr().out
    assert shown.count("keras_fusion: step 2 (epoch 1): self-fusion x2") == 1
    # The one-line form of the report.
    assert "same argmax 100.0%" in shown and "function change" in shown
    record = grow.events[0].to_dict()
    assert record["params_after"] > record["params_before"] and record["seconds"] > 0
    quiet = DeepFusion(at_step=2, verbose=0)
    fit(functional(), "functional", quiet)
    assert "keras_fusion" not in capsys.readouterr().out


def test_configs_round_trip():
    for grow in (
        DeepFusion(at_step=[3, 9], factor=3, seed=1, rewarmup_steps=5),
        DeepFusion(schedule=OnPlateau("loss", patience=2), partners=["a.keras"]),
        GrowModel(FusionOperator(off_diagonal="random"), AtStep(4), tolerance=0.1),
    ):
        config = keras.saving.serialize_keras_object(grow)
        again = keras.saving.deserialize_keras_object(config)
        assert type(again) is type(grow)
        assert keras.saving.serialize_keras_object(again) == config
