"""Bad input: a clear error that names the value, before anything has changed."""

import keras
import numpy as np
import pytest
from keras import layers
from models import (
    Subclassed,
    bert,
    data_for,
    functional,
    gpt2,
    loss,
    norm_free,
    perturbed,
    subclassed,
    t5,
    values,
)

import keras_fusion
from keras_fusion import (
    DeepFusion,
    FusionError,
    FusionOperator,
    GrowModel,
    OnPlateau,
    StructureError,
    UnregisteredLayerError,
    fuse,
    register,
)


def deeper():
    model = bert()
    config = model.backbone.get_config() | {"num_layers": 2}
    backbone = type(model.backbone).from_config(config)
    return type(model)(backbone, num_classes=3, dropout=0.0)


def gpt2_with(**changes):
    model = gpt2()
    backbone = type(model.backbone).from_config(model.backbone.get_config() | changes)
    return type(model)(backbone, preprocessor=None)


def attention_model(heads, size):
    inputs = keras.Input((4, 8))
    x = layers.MultiHeadAttention(heads, size)(inputs, inputs)
    return keras.Model(inputs, layers.Dense(2)(x))


def grouped_model(groups):
    inputs = keras.Input((4, 8))
    x = layers.GroupQueryAttention(4, 4, groups)(inputs, inputs)
    return keras.Model(inputs, layers.Dense(2)(x))


def around(*stack, shape=(4, 8)):
    inputs = x = keras.Input(shape)
    for layer in stack:
        x = layer(x)
    return keras.Model(inputs, x)


class Unregistered(layers.Layer):
    def build(self, input_shape):
        self.kernel = self.add_weight(name="kernel", shape=(input_shape[-1], 3))

    def call(self, x):
        return x @ self.kernel


class UnregisteredBlock(layers.Layer):
    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(units)

    def call(self, x):
        return self.dense(x)


class NoConfig(keras.Model):
    def __init__(self, width):
        super().__init__()
        self.dense = layers.Dense(width)

    def call(self, x):
        return self.dense(x)


def built(model, x=None):
    model(np.zeros((1, 4), "float32") if x is None else x)
    return model


def untied_norm():
    inputs = keras.Input((4,), dtype="int32")
    embedding = layers.ReversibleEmbedding(9, 8)
    return keras.Model(inputs, embedding(embedding(inputs), reverse=True))


def wrong_widths():
    class Wrong(NoConfig):
        def get_config(self):
            return {"width": 4}

    register(Wrong, widths=("unitz",))
    return built(Wrong(4))


def wrong_roles():
    class Odd(Unregistered):
        pass

    register(Odd, roles={"kernel": ("in", "out", None)})
    return around(layers.Dense(4), Odd(), layers.Dense(2))


BAD_FUSIONS = {
    "another depth": (
        lambda: fuse([perturbed(bert()), deeper()]),
        r"residual.*equal depth",
    ),
    "another vocabulary": (
        lambda: fuse([gpt2(), gpt2_with(vocabulary_size=30)]),
        r"'vocabulary_size'.*\[20, 30\]",
    ),
    "another class": (lambda: fuse([bert(), gpt2()]), r"BertTextClassifier.*GPT2"),
    "another number of layers": (
        lambda: fuse([norm_free(), around(layers.Dense(2))]),
        r"differ",
    ),
    "head sizes": (
        lambda: fuse([attention_model(2, 4), attention_model(2, 8)]),
        r"'key_dim'.*\[4, 8\].*Head sizes must be equal",
    ),
    "head sizes of a backbone": (
        lambda: fuse([gpt2(), gpt2_with(num_heads=1)]),
        r"head size.*\[4.0, 8.0\]",
    ),
    "key-value heads": (
        lambda: fuse([grouped_model(2), grouped_model(4)]),
        r"ratio of query heads.*\[2.0, 1.0\]",
    ),
    "unregistered layer": (
        lambda: fuse(
            around(layers.Dense(4), Unregistered(), layers.Dense(2)), factor=2
        ),
        r"(?s)Unregistered.*\['kernel'\].*keras_fusion.register\(Unregistered.*Dense",
    ),
    "recurrent layer": (
        lambda: fuse(around(layers.LSTM(4), layers.Dense(2)), factor=2),
        r"class LSTM, holds layers.*widths=\('units'",
    ),
    "unregistered block": (
        lambda: fuse(around(UnregisteredBlock(4), layers.Dense(2)), factor=2),
        r"class UnregisteredBlock.*keras_fusion.register\(UnregisteredBlock",
    ),
    "no config": (lambda: fuse(built(NoConfig(4)), factor=2), r"NoConfig.*`into`"),
    "unbuilt": (lambda: fuse(Subclassed(), factor=2), r"parents\[0\].*is not built"),
    "no factor": (lambda: fuse(gpt2()), r"no `factor`"),
    "factor 1": (lambda: fuse(gpt2(), factor=1), r"factor=1\."),
    "factor below 1": (lambda: fuse(gpt2(), factor=0.5), r"factor=0.5"),
    "factor with a list": (lambda: fuse([gpt2(), gpt2()], factor=2), r"factor=2 with"),
    "one parent": (lambda: fuse([gpt2()]), r"at least two models. Received 1"),
    "not a model": (lambda: fuse([gpt2(), "b"]), r"parents\[1\].*'b' of type str"),
    "off_diagonal": (lambda: fuse(gpt2(), factor=2, off_diagonal="ones"), r"'ones'"),
    "paired partners": (
        lambda: fuse([gpt2(), gpt2(seed=1)], off_diagonal="paired"),
        r"'paired'.*copies of one model",
    ),
    "noise_scale": (
        lambda: fuse(gpt2(), factor=2, noise_scale=-1.0),
        r"noise_scale=-1.0",
    ),
    "into a parent": (
        lambda: fuse(m := subclassed(), factor=2, into=m),
        r"`into` is one of the parents",
    ),
    "into too small": (
        lambda: fuse(norm_free(32), factor=2, into=norm_free(48)),
        r"sizes \[32, 32\] in the parents and 48",
    ),
    "into not a model": (
        lambda: fuse(gpt2(), factor=2, into=lambda: "model"),
        r"`into` must be.*gave str",
    ),
    "wrong width key": (lambda: fuse(wrong_widths(), factor=2), r"\['unitz'\].*config"),
    "wrong roles": (lambda: fuse(wrong_roles(), factor=2), r"2 axes"),
    "nothing grows": (
        lambda: fuse(around(layers.Dense(2)), factor=2),
        r"Nothing grows",
    ),
    "channels first": (
        lambda: fuse(
            around(
                layers.Dense(4),
                layers.Conv1D(3, 2, data_format="channels_first"),
                layers.Flatten(),
                layers.Dense(2),
            ),
            factor=2,
        ),
        r"channels_first",
    ),
    "tied without a norm": (lambda: fuse(untied_norm(), factor=2), r"tied.*no norm"),
}


@pytest.mark.parametrize("case", BAD_FUSIONS)
def test_bad_fusion(case):
    call, pattern = BAD_FUSIONS[case]
    with pytest.raises(FusionError, match=pattern):
        call()


def test_errors_have_classes_of_their_own():
    with pytest.raises(StructureError):
        fuse([gpt2(), gpt2_with(vocabulary_size=30)])
    with pytest.raises(UnregisteredLayerError):
        fuse(around(layers.LSTM(4), layers.Dense(2)), factor=2)


BAD_REGISTRATIONS = {
    "not a layer": (lambda: register(int), r"cls=<class 'int'>"),
    "widths as a string": (lambda: register(NoConfig, widths="units"), r"'units'"),
    "output_width": (
        lambda: register(NoConfig, widths=("a",), output_width="b"),
        r"output_width='b'",
    ),
    "role": (lambda: register(NoConfig, roles={"w": ("inn",)}), r"roles\['w'\].*'inn'"),
}


@pytest.mark.parametrize("case", BAD_REGISTRATIONS)
def test_bad_registration(case):
    call, pattern = BAD_REGISTRATIONS[case]
    with pytest.raises(FusionError, match=pattern):
        call()


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
    "past the end": (lambda live: DeepFusion(at_step=9), r"at_step=9.*past the end.*8"),
    "epoch past the end": (lambda live: DeepFusion(at_epoch=3), r"at_epoch=3.*2"),
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
    "paired partners": (
        lambda live: DeepFusion(
            at_step=2,
            partners=[functional(seed=1)],
            off_diagonal="paired",
            optimizer_state="reset",
        ),
        r"'paired'",
    ),
    "factor": (lambda live: DeepFusion(at_step=2, factor=1), r"factor=1\."),
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
    with pytest.raises(FusionError, match=r"outputs changed by .*tied_readout"):
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


def test_registered_lists_every_rule():
    assert layers.Dense in keras_fusion.registered()
