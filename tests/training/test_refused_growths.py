"""What a growth in `fit()` refuses, before anything has changed."""

import keras
import numpy as np
import pytest
from keras import layers
from models import data_for, functional, gpt2, loss, norm_free, t5, values

from keras_fusion import DeepFusion, FusionError, FusionOperator, GrowModel, OnPlateau

pytestmark = pytest.mark.eager

BAD_OPTIONS = {
    "no moment": (lambda: DeepFusion(), r"exactly one of"),
    "two moments": (lambda: DeepFusion(at_step=1, at_epoch=1), r"at_step.*at_epoch"),
    "step 0": (lambda: DeepFusion(at_step=0), r"at_step=0"),
    "steps in disorder": (lambda: DeepFusion(at_step=[5, 2]), r"at_step=\[5, 2\]"),
    "half an epoch": (lambda: DeepFusion(at_epoch=0.5), r"at_epoch=0.5"),
    "not a schedule": (lambda: GrowModel(FusionOperator(), 3), r"schedule=3"),
    "optimizer_state": (
        lambda: DeepFusion(at_step=1, optimizer_state="keep"),
        r"optimizer_state='keep'",
    ),
    "no partners": (lambda: DeepFusion(at_step=1, partners=[]), r"partners=\[\]"),
    "rate factor": (
        lambda: DeepFusion(at_step=1, learning_rate_factor=0),
        r"learning_rate_factor=0",
    ),
    "re-warm-up": (lambda: DeepFusion(at_step=1, rewarmup_steps=-1), r"=-1"),
    "mode": (lambda: OnPlateau(mode="up"), r"mode='up'"),
    "partners in a config": (
        lambda: DeepFusion(at_step=1, partners=[gpt2()]).get_config(),
        r"Save the partners",
    ),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_option(case):
    call, pattern = BAD_OPTIONS[case]
    with pytest.raises(FusionError, match=pattern):
        call()


def two_optimizers(live):
    live.critic_optimizer = keras.optimizers.SGD(0.1)
    return DeepFusion(at_step=2)


def other_optimizer(live):
    partner = functional(seed=1)
    partner.compile("sgd", loss())
    partner.fit(*data_for("functional"), verbose=0)
    return DeepFusion(at_step=2, partners=[partner])


BAD_RUNS = {
    "itself as partner": (
        lambda live: DeepFusion(at_step=2, partners=[live]),
        r"live model itself",
    ),
    "partner of other depth": (
        lambda live: DeepFusion(at_step=2, partners=[norm_free()]),
        r"differ",
    ),
    "partner without state": (
        lambda live: DeepFusion(at_step=2, partners=[functional(seed=1)]),
        r"partners\[0\]` has none.*'reset'",
    ),
    "partner of other optimizer": (other_optimizer, r"partners\[0\]` has SGD"),
    "two optimizers": (two_optimizers, r"'critic_optimizer'"),
    "monitor": (
        lambda live: DeepFusion(schedule=OnPlateau("val_los")),
        r"monitor='val_los'.*\['loss'\]",
    ),
}


@pytest.mark.parametrize("case", BAD_RUNS)
def test_bad_run_changes_nothing(case):
    """The error comes before the growth, and training can go on without it."""
    make, pattern = BAD_RUNS[case]
    live = functional()
    live.compile("adam", loss())
    grow, (x, y) = make(live), data_for("functional")
    before = values(live)
    options = {"batch_size": 8, "epochs": 2, "verbose": 0, "shuffle": False}
    with pytest.raises(FusionError, match=pattern):
        live.fit(x, y, callbacks=[grow], **options)
    if case != "monitor":  # which is only known at the end of an epoch
        assert all(
            np.array_equal(a, b) for a, b in zip(before, values(live), strict=True)
        )
    assert grow.events == []
    live.fit(x, y, **options)
    assert live.layers[1].output_dim == 8


def test_a_step_that_has_passed():
    live = functional()
    live.compile("adam", loss())
    x, y = data_for("functional")
    live.fit(x, y, batch_size=8, verbose=0)
    with pytest.raises(FusionError, match=r"at_step=3.*has passed.*4"):
        live.fit(x, y, verbose=0, callbacks=[DeepFusion(at_step=3)])


def test_a_growth_that_is_not_exact_is_refused():
    """A softmax over features that no rule tells of is found by the measurement."""
    inputs = keras.Input((4,))
    x = layers.Dense(8)(inputs)
    x = layers.Dense(3)(keras.ops.softmax(x) * x)
    live = keras.Model(inputs, x)
    live.compile("sgd", "mse")
    x = np.random.default_rng(0).standard_normal((16, 4))
    grow = DeepFusion(at_step=1, verbose=0)
    with pytest.raises(FusionError, match="'softmax' of class Softmax cannot grow"):
        live.fit(x, x[:, :3], batch_size=4, callbacks=[grow], verbose=0)
    assert live.layers[1].units == 8
    live.fit(x, x[:, :3], verbose=0)


def test_uncompiled_partner_is_fine_for_reset():
    live = t5()
    live.compile("adam", loss())
    x, y = data_for("t5", 8)
    grow = DeepFusion(
        at_step=1, partners=[t5(seed=1)], optimizer_state="reset", verbose=0
    )
    live.fit(x, y, batch_size=8, callbacks=[grow], verbose=0)
    assert live.backbone.hidden_dim == 16


def test_a_stateful_layer_is_refused_before_the_first_step():
    inputs = keras.Input(batch_shape=(4, 3, 5))
    model = keras.Model(inputs, keras.layers.LSTM(8, stateful=True)(inputs))
    model.compile("sgd", "mse")
    seen = []
    count = keras.callbacks.LambdaCallback(on_train_batch_end=lambda *_: seen.append(1))
    with pytest.raises(FusionError, match="LSTM 'lstm.*' is stateful: what it remem"):
        model.fit(
            np.ones((8, 3, 5)),
            np.ones((8, 8)),
            batch_size=4,
            verbose=0,
            callbacks=[DeepFusion(at_step=1), count],
        )
    assert seen == []
