"""The factors that average tied readouts: which layer carries them, and how large they are.

All goes through `factors`: what `tied_readout.scales` found, by the names of layers.
"""

import contextlib
import re

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keras import layers
from models import (
    LENGTH,
    VOCABULARY,
    data_for,
    functional,
    outputs,
    perturbed,
    relative_change,
    t5,
)

import keras_fusion
from keras_fusion import FusionError, fuse
from keras_fusion.architecture.parents import Parents
from keras_fusion.layout import tied_readout
from keras_fusion.models import tree

search = settings(
    max_examples=10, deadline=None, suppress_health_check=list(HealthCheck)
)


def factors(parents, fused=None):
    """Dict from the name of a layer and of its variable to one factor per parent."""
    fused = fuse(parents) if fused is None else fused
    names = {id(layer): layer.name for _, layer in tree.walk(parents[0])}
    found = tied_readout.scales(Parents.of(parents).matched_with(fused))
    return {(names[key], variable): scale for (key, variable), scale in found.items()}


def tied(
    width=8, seed=0, between=lambda x: x, norm=layers.LayerNormalization, **options
):
    """A model that reads its outputs with its embedding, behind a norm and what follows."""
    keras.utils.set_random_seed(seed)
    ids = keras.Input((LENGTH,), dtype="int32")
    embedding = layers.ReversibleEmbedding(VOCABULARY, width, **options)
    x = embedding(ids)
    x = x + layers.Dense(width, name="inner")(x)
    x = between(norm(name="norm")(x))
    return perturbed(keras.Model(ids, embedding(x, reverse=True)), seed)


@search
@given(st.lists(st.sampled_from([2, 4, 6]), min_size=2, max_size=4))
def test_the_last_norm_carries_one_share_per_parent(widths):
    parents = [tied(width, seed) for seed, width in enumerate(widths)]
    count = len(widths)
    share = pytest.approx((1 / count,) * count)
    assert factors(parents) == {("norm", "gamma"): share, ("norm", "beta"): share}


@pytest.mark.core
def test_with_the_factors_the_fused_model_is_the_mean_of_its_parents():
    x, _ = data_for("functional", 4)
    parents = [tied(width, width) for width in (4, 8, 12)]
    mean = np.mean([outputs(parent, x) for parent in parents], axis=0)
    fused = fuse(parents, norms="block")
    assert relative_change(mean, outputs(fused, x)) < 1e-5


@pytest.mark.parametrize(
    ("between", "carrier"),
    [
        (lambda x: layers.Dropout(0.1)(x), {("norm", "gamma"), ("norm", "beta")}),
        (lambda x: 3.0 * x, {("norm", "gamma"), ("norm", "beta")}),
        (lambda x: nested(x, norm=True), {("last", "gamma"), ("last", "beta")}),
        (lambda x: nested(x, norm=False), {("last", "kernel"), ("last", "bias")}),
        (
            lambda x: layers.Dense(x.shape[-1], name="last")(x),
            {("last", "kernel"), ("last", "bias")},
        ),
        (
            lambda x: layers.RMSNormalization(name="last")(x + layers.Dense(8)(x)),
            {("last", "scale")},
        ),
    ],
    ids=["dropout", "constant", "nested norm", "nested dense", "dense", "rms"],
)
def test_the_factor_is_carried_by_the_last_layer_that_can(between, carrier):
    model, (x, _) = tied(between=between), data_for("functional", 4)
    found = factors([model, model])
    assert found.keys() == carrier and set(found.values()) == {(0.5, 0.5)}
    assert relative_change(outputs(model, x), outputs(fuse(model, factor=2), x)) < 1e-5


def nested(x, norm):
    """A nested model that ends with a layer which can carry the factor."""
    inner = keras.Input(x.shape[1:])
    width = x.shape[-1]
    last = layers.LayerNormalization if norm else lambda **kw: layers.Dense(width, **kw)
    y = last(name="last")(layers.Dense(width)(inner))
    return keras.Model(inner, y)(x)


def test_what_needs_no_factor_gets_none():
    """A readout of its own is divided itself, and so is an untied one's kernel."""
    assert factors([functional(), functional()]) == {}
    assert factors([tied(tie_weights=False), tied(tie_weights=False)]) == {}
    untied = [t5(False, seed=seed) for seed in range(2)]
    assert factors(untied) == {}


# Models that multiply by a number which depends on the width.


@pytest.mark.parametrize("widths", [(8, 8), (8, 12), (8, 8, 8)])
def test_a_tied_t5_multiplies_its_hidden_states_by_its_width(widths):
    """By hidden_dim**-0.5: less in the fused model, so the share is larger than 1/K."""
    found = factors([t5(width=width, seed=i) for i, width in enumerate(widths)])
    ((_, variable), scale), *others = found.items()
    assert variable == "weight" and not others
    expected = [(sum(widths) / width) ** 0.5 / len(widths) for width in widths]
    assert scale == pytest.approx(tuple(expected))
    if widths == (8, 8):
        assert scale == pytest.approx((2**-0.5, 2**-0.5))


@keras.saving.register_keras_serializable("tests")
class ScaledReadout(keras.Model):
    """Multiplies its embedding by sqrt(width), and its tied readout by 1 / sqrt(width)."""

    def __init__(self, width=8, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        self.token_embedding = layers.Embedding(VOCABULARY, width, name="table")
        self.norms = [layers.LayerNormalization(name=f"norm{i}") for i in range(2)]
        self.dense = layers.Dense(width)

    def build(self, input_shape):
        self.token_embedding.build(input_shape)
        shape = (*input_shape, self.width)
        for layer in (*self.norms, self.dense):
            layer.build(shape)
        self.built = True

    def call(self, ids):
        x = self.width**0.5 * self.token_embedding(ids)
        x = self.norms[1](x + self.dense(self.norms[0](x)))
        table = keras.ops.transpose(self.token_embedding.embeddings)
        return self.width**-0.5 * keras.ops.matmul(x, table)

    def get_config(self):
        return super().get_config() | {"width": self.width}


MULTIPLIERS = {
    "input_multipliers": lambda model: {"token_embedding": model.width**0.5},
    "readout_multiplier": lambda model: model.width**-0.5,
}


def register_scaled(path, **options):
    keras_fusion.register(
        ScaledReadout, widths=("width",), tied_readout=path, **options
    )


register_scaled("norms.1", **MULTIPLIERS)


@contextlib.contextmanager
def rule_of_scaled(path):
    """Another rule for `ScaledReadout`, for a while."""
    register_scaled(path)
    try:
        yield
    finally:
        register_scaled("norms.1", **MULTIPLIERS)


def scaled(width=8, seed=0):
    keras.utils.set_random_seed(seed)
    model = ScaledReadout(width)
    model.build((None, LENGTH))
    return perturbed(model, seed)


@pytest.mark.parametrize("widths", [(8, 8), (4, 12), (2, 4, 6)])
def test_multipliers_of_the_embedding_and_of_the_readout(widths):
    """The embedding makes up for its own; the norm, for both and for the mean."""
    found = factors([scaled(width, i) for i, width in enumerate(widths)])
    assert found.keys() == {
        ("table", "embeddings"),
        ("norm1", "gamma"),
        ("norm1", "beta"),
    }
    total, count = sum(widths), len(widths)
    root = [(width / total) ** 0.5 for width in widths]
    assert found["table", "embeddings"] == pytest.approx(tuple(root))
    shares = tuple(1 / count / r / r for r in root)
    assert found["norm1", "gamma"] == pytest.approx(shares)
    assert found["norm1", "gamma"] == found["norm1", "beta"]


@pytest.mark.core
@pytest.mark.parametrize("factor", [2, 3])
def test_multipliers_are_made_up_for_in_the_fused_model(factor):
    model, (x, _) = scaled(), data_for("functional", 4)
    fused = fuse(model, factor=factor)
    assert fused.width == factor * model.width
    assert relative_change(outputs(model, x), outputs(fused, x)) < 1e-5


def test_a_head_without_an_embedding_is_not_tied():
    """As keras-hub's heads, whose `token_embedding` is `None` then."""
    with rule_of_scaled("norms.1"):
        parents, fused = [scaled(4, seed) for seed in range(2)], scaled(8)
        assert factors(parents, fused)
        for model in (*parents, fused):
            model.token_embedding = None
        assert factors(parents, fused) == {}


# Refusals.


@pytest.mark.parametrize(
    "between",
    [
        lambda x: layers.Dense(x.shape[-1], activation="relu")(x),
        lambda x: x + layers.Dense(x.shape[-1])(x),
        lambda x: layers.MultiHeadAttention(2, 4)(x, x),
    ],
    ids=["activation", "residual", "attention"],
)
def test_a_readout_behind_no_layer_that_can_carry_the_factor_is_refused(between):
    keras.utils.clear_session()
    models = [tied(seed=seed, between=between) for seed in range(2)]
    name = re.escape(models[0].layers[1].name)
    message = (
        f"'{name}' is tied to its embedding, and it has no norm.*tie_weights=False"
    )
    with pytest.raises(FusionError, match=message):
        factors(models, tied(16, between=between))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "token_embedding",
            r"names 'token_embedding', a Embedding, which cannot scale",
        ),
        (
            "last_norm",
            r"ScaledReadout names 'last_norm', but there is no attribute 'last_norm'",
        ),
        ("dense.norm", r"names 'dense.norm', but there is no attribute 'norm'"),
    ],
)
def test_a_rule_that_names_no_norm_is_refused(path, message):
    parents, fused = [scaled(4, seed) for seed in range(2)], scaled(8)
    assert factors(parents, fused)
    with rule_of_scaled(path), pytest.raises(FusionError, match=message):
        factors(parents, fused)
