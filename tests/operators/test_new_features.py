"""New random features and new random blocks: their values, states, and what is learned."""

import keras
import numpy as np
import pytest
from models import (
    KINDS,
    data_for,
    functional,
    loss,
    norm_free,
    numpy,
    outputs,
    perturbed,
    relative_change,
)

import keras_fusion
from keras_fusion import (
    AnnealBlockNorms,
    AtStep,
    DepthStacking,
    FusionError,
    GrowModel,
    NewFeatures,
)
from keras_fusion.models.stock import is_block_norm


def parts(layout):
    """The old block of a grown value, and for each axis that grew the new rest."""
    value, old = numpy(layout.target), [axis.positions(0) for axis in layout.axes]
    rest = {}
    for number, axis in enumerate(layout.axes):
        if axis.grown:
            places = list(old)
            places[number] = axis.unused()
            rest[axis.role] = value[np.ix_(*places)]
    return value[np.ix_(*old)], rest


@pytest.mark.core("block-functional")
@pytest.mark.parametrize("kind", ["functional", "t5_untied", "gpt2", "bert"])
@pytest.mark.parametrize("norms", ["joint", "block"])
def test_old_features_read_old_ones_alone(norms, kind):
    model = perturbed(KINDS[kind]())
    plan = NewFeatures(1.5, norms).plan(model, seed=0)
    plan.fill()
    seen = 0
    for layout in plan.layouts:
        old, rest = parts(layout)
        np.testing.assert_array_equal(old, numpy(layout.sources[0]), layout.address)
        if "in" in rest:
            seen += 1
            assert not np.any(rest["in"]), layout.address
    assert seen > 2


@pytest.mark.parametrize("factor", [1.5, 2, 4])
def test_new_features_are_as_large_as_old_ones(factor):
    model = norm_free(64)
    plan = NewFeatures(factor).plan(model, seed=0)
    plan.fill()
    seen = 0
    for layout in plan.layouts:
        roles = {axis.role for axis in layout.axes if axis.grown}
        is_bias = layout.address.endswith("bias")
        if len(layout.axes) < 2 or "out" not in roles or is_bias:
            continue
        seen += 1
        old, value = numpy(layout.sources[0]), numpy(layout.target)
        out = [i for i, axis in enumerate(layout.axes) if axis.role == "out"][-1]
        new = np.take(value, layout.axes[out].unused(), axis=out)
        wanted = old.std() / np.sqrt(factor if "in" in roles else 1)
        assert new.std() == pytest.approx(wanted, rel=0.15), layout.address
    assert seen > 2


@pytest.mark.core("block")
@pytest.mark.parametrize("norms", ["joint", "block"])
def test_new_features_learn_and_block_norms_become_stock_ones(norms):
    model = functional(8)
    x, y = data_for("functional", 64)
    model.compile(keras.optimizers.Adam(0.01), loss())
    grow = GrowModel(NewFeatures(norms=norms), AtStep(2), verbose=0)
    model.fit(x[:24], y[:24], batch_size=8, verbose=0, callbacks=[grow])
    block = norms == "block"
    assert any(map(is_block_norm, model._flatten_layers())) == block
    anneal = [AnnealBlockNorms(steps=4)] if block else []
    model.fit(x, y, batch_size=8, verbose=0, callbacks=anneal)
    change = grow.events[0].function_change
    assert change < 1e-5 if block else change > 1e-3
    embeddings = numpy(model.layers[1].embeddings)
    assert embeddings.shape[-1] == 16
    learned = model.optimizer._momentums[0]
    assert np.all(np.any(numpy(learned), axis=0))
    assert not any(map(is_block_norm, model._flatten_layers()))


@pytest.mark.core
def test_the_state_of_new_features_is_zero_and_the_average():
    model = functional(8)
    x, y = data_for("functional", 16)
    model.compile(keras.optimizers.Adam(0.01), loss())
    model.fit(x, y, batch_size=8, verbose=0)
    keras_fusion.grow(model, NewFeatures(norms="block"), verbose=0)
    first, second = (numpy(s[0]) for s in momenta(model.optimizer))
    old = first[..., :8]
    assert np.any(old) and not np.any(first[..., 8:])
    np.testing.assert_allclose(second[..., 8:], second[..., :8].mean(), rtol=1e-5)


def momenta(optimizer):
    return optimizer._momentums, optimizer._velocities


@pytest.mark.core("functional")
@pytest.mark.parametrize("kind", ["functional", "gpt2", "t5"])
def test_random_blocks_are_new_and_the_same_each_time(kind):
    model = perturbed(KINDS[kind]())
    plan = DepthStacking(2, new_blocks="random").plan(model, seed=0)
    plan.fill()
    assert plan.filler.new
    for index in plan.filler.new:
        layout = plan.layouts[index]
        value = numpy(layout.target)
        if value.ndim > 1 and not layout.address.endswith("bias"):
            assert value.std() > 0
            assert not np.array_equal(value, numpy(layout.sources[0]))
    again = DepthStacking(2, new_blocks="random").plan(model, seed=0)
    for mine, other in zip(plan.layouts, again.layouts, strict=True):
        arrays = [numpy(source) for source in mine.sources]
        index = plan.layouts.index(mine)
        np.testing.assert_array_equal(
            plan.values(index, arrays), again.values(index, arrays), other.address
        )


@pytest.mark.core
@pytest.mark.parametrize("average", [False, True], ids=["plain", "ema"])
def test_random_blocks_in_fit(average):
    model = functional(8)
    x, y = data_for("functional", 32)
    model.compile(keras.optimizers.Adam(0.01, use_ema=average), loss())
    model.fit(x, y, batch_size=8, verbose=0)
    before = outputs(model, x)
    operator = DepthStacking(2, identity=True, new_blocks="random")
    keras_fusion.grow(model, operator, verbose=0)
    assert relative_change(before, outputs(model, x)) < 1e-5
    first, second = momenta(model.optimizer)
    quiet = [
        not np.any(numpy(m)) and np.any(numpy(v))
        for m, v in zip(first, second, strict=True)
    ]
    assert 0 < sum(quiet) < len(quiet)
    if average:  # That of a new block starts as the block.
        pairs = zip(
            model.trainable_variables,
            model.optimizer._model_variables_moving_average,
            quiet,
            strict=True,
        )
        for variable, mean, is_new in pairs:
            same = np.allclose(numpy(variable), numpy(mean), atol=1e-7)
            assert same or not is_new, variable.path
    model.fit(x, y, batch_size=8, verbose=0)


def test_constant_initial_values_stay():
    """Their deviation is a rounding error, which nothing may be divided by."""
    inputs = keras.Input((4,))
    constant = keras.initializers.Constant(0.1)
    x = keras.layers.Dense(8, kernel_initializer=constant)(inputs)
    model = perturbed(keras.Model(inputs, keras.layers.Dense(2)(x)))
    grown = NewFeatures(1.5).plan(model, seed=0).fill()
    np.testing.assert_allclose(numpy(grown.layers[1].kernel)[:, 8:], 0.1, rtol=1e-6)


def test_new_features_are_as_large_where_old_ones_are_scaled():
    """A Gemma multiplies its embeddings by the root of the width."""
    keras_hub = pytest.importorskip("keras_hub")
    backbone = keras_hub.models.GemmaBackbone(
        vocabulary_size=400,
        num_layers=1,
        num_query_heads=2,
        num_key_value_heads=1,
        hidden_dim=16,
        intermediate_dim=32,
        head_dim=8,
    )
    model = perturbed(backbone)
    grown = NewFeatures(2, norms="block").plan(model, seed=0).fill()
    table = numpy(grown.token_embedding.embeddings)
    assert table[:, 16:].std() == pytest.approx(table[:, :16].std(), rel=0.1)


def test_frozen_blocks_stay_copies():
    model = functional(8)
    model.layers[1].trainable = False
    frozen = [layer for layer in model.layers if layer.weights][2]
    frozen.trainable = False
    plan = DepthStacking(2, new_blocks="random").plan(model, seed=0)
    plan.fill()
    kept = [plan.layouts[i] for i in plan.filler.new]
    kept = [layout for layout in kept if not layout.target.trainable]
    for layout in kept:
        if not layout.is_state:
            np.testing.assert_array_equal(
                numpy(layout.target), numpy(layout.sources[0]), layout.address
            )
    assert any(not layout.is_state for layout in kept)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NewFeatures(1.0), "factor=1.0"),
        (lambda: NewFeatures(norms="stock"), "norms='stock'"),
        (lambda: DepthStacking(new_blocks="zeros"), "new_blocks='zeros'"),
    ],
)
def test_wrong_options_are_refused(make, message):
    with pytest.raises(FusionError, match=message):
        make()


def test_configs_of_earlier_versions_are_those_of_today():
    config = {"factor": 2, "order": "stacked", "identity": False}
    assert DepthStacking.from_config(config).get_config() == config
    random = DepthStacking(new_blocks="random")
    assert DepthStacking.from_config(random.get_config()).new_blocks == "random"
    block = NewFeatures(1.5, norms="block")
    assert (
        NewFeatures.from_config(block.get_config()).get_config() == block.get_config()
    )
