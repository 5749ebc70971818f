"""`Plan`: lays out without changing anything, and says the values that `fill` writes."""

import contextlib
import dataclasses
import random

import keras
import numpy as np
import pytest
from models import KINDS, data_for, functional, norm_free, numpy, outputs, values

import keras_fusion
from keras_fusion import (
    Chain,
    DepthStacking,
    FusionError,
    FusionOperator,
    HyperCloning,
    Lemon,
    Net2Net,
    NewFeatures,
    StagedTraining,
    ZeroPadding,
    known_operators,
)
from keras_fusion.models import host
from keras_fusion.models.block_norms import BLEND

# Every registered operator, with options that need trials, noise or new capacity.
OPERATORS = {
    "FusionOperator": FusionOperator(factor=2),
    "fractional": FusionOperator(factor=1.5),
    "HyperCloning": HyperCloning(noise_scale=0.1),
    "Net2Net": Net2Net(),
    "StagedTraining": StagedTraining(noise_scale=0.1),
    "ZeroPadding": ZeroPadding(factor=2),
    "NewFeatures": NewFeatures(),
    "new features by block": NewFeatures(1.5, norms="block"),
    "Lemon": Lemon(factor=1.5),
    "DepthStacking": DepthStacking(),
    "random blocks": DepthStacking(new_blocks="random"),
    "identity": DepthStacking(identity=True),
    "Chain": Chain([ZeroPadding(factor=2), DepthStacking(identity=True)]),
}


def test_every_registered_operator_is_here():
    assert set(known_operators()) <= {type(o).__name__ for o in OPERATORS.values()}


def refuse(*arguments, **options):
    raise AssertionError("A value was written.")


@pytest.mark.core
@pytest.mark.parametrize("name", OPERATORS)
def test_values_are_what_fill_writes_and_planning_writes_none(name, monkeypatch):
    model = functional(8)
    before = values(model)
    with monkeypatch.context() as patch:
        patch.setattr(host, "write", refuse)
        patch.setattr(keras.Variable, "assign", refuse)
        planned = OPERATORS[name].plan(model, 7)
    grown = planned.fill()
    assert grown is planned.fused
    for plan in planned.stages:
        written = {id(layout.target) for layout in plan.layouts}
        # A block norm's blend is that of a fresh one.
        assert {id(v) for v in plan.fused.weights if v.name != BLEND} <= written
        for index, layout in enumerate(plan.layouts):
            arrays = [host.read(source) for source in layout.sources]
            np.testing.assert_array_equal(
                plan.values(index, arrays), numpy(layout.target), layout.address
            )
    assert all(map(np.array_equal, before, values(model)))


@pytest.mark.core
@pytest.mark.parametrize("name", OPERATORS)
def test_a_plan_depends_on_its_seed_alone(name):
    model, operator = functional(8), OPERATORS[name]
    first = values(operator.plan(model, 3).fill())
    random.seed(99)
    np.random.seed(99)
    again = values(operator.plan(model, 3).fill())
    assert all(map(np.array_equal, first, again))


@pytest.mark.core
@pytest.mark.parametrize("name", OPERATORS)
def test_planning_leaves_the_global_generators_alone(name):
    model = functional(8)
    states = random.getstate(), np.random.get_state()[1].tolist()
    OPERATORS[name].plan(model, 3)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states


@pytest.mark.parametrize("kind", ["subclassed", "t5", "gpt2"])
def test_values_are_what_fill_writes_in_other_models(kind):
    plan = FusionOperator(factor=2).plan(KINDS[kind](), 1)
    plan.fill()
    for index, layout in enumerate(plan.layouts):
        arrays = [host.read(source) for source in layout.sources]
        np.testing.assert_array_equal(plan.values(index, arrays), numpy(layout.target))


def test_a_plan_is_frozen_and_short():
    plan = HyperCloning().plan(norm_free(8), 0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.exact = False
    assert len(repr(plan)) < 200
    assert "CopiesFiller, exact" in repr(plan)
    for layout in plan.layouts:
        assert len(repr(layout)) < 120 and layout.address in repr(layout)
    lines = repr(OPERATORS["Chain"].plan(functional(8), 0)).splitlines()
    assert len(lines) == 2 and all(line.startswith("<Plan ") for line in lines)


@keras.saving.register_keras_serializable("tests_plan")
class Counting(keras.layers.Layer):
    """Counts its calls, in inference as well."""

    def build(self, shape):
        self.calls = self.add_weight(shape=(), trainable=False, name="calls")

    def call(self, x):
        self.calls.assign_add(1.0)
        return x


keras_fusion.register(Counting, roles={"calls": ()})


def normed():
    inputs = keras.Input((4,))
    x = keras.layers.BatchNormalization()(keras.layers.Dense(8)(inputs))
    x = keras.layers.Dropout(0.5)(x)
    return keras.Model(inputs, keras.layers.Dense(2)(x))


def resized():
    inputs = keras.Input((6, 6, 3))
    x = keras.layers.Resizing(3, 3)(keras.layers.Conv2D(8, 3)(inputs))
    x = keras.layers.BatchNormalization()(x)
    return keras.Model(inputs, keras.layers.Dense(2)(x))


def counted():
    inner = [keras.layers.Dense(8), keras.layers.BatchNormalization(), Counting()]
    stack = [keras.Input((4,)), keras.Sequential(inner), keras.layers.Dense(2)]
    return keras.Sequential(stack)


def spectral():
    layer = keras.layers.SpectralNormalization(keras.layers.Dense(4))
    stack = [keras.Input((4,)), layer, keras.layers.Dense(8), keras.layers.Dense(2)]
    return keras.Sequential(stack)


def stateful():
    layer = keras.layers.LSTM(8, stateful=True)
    stack = [keras.Input(batch_shape=(2, 6, 4)), layer, keras.layers.Dense(2)]
    model = keras.Sequential(stack)
    model(np.ones((2, 6, 4), "float32"))
    return model


@pytest.mark.core
@pytest.mark.parametrize("make", [normed, resized, counted, spectral, stateful])
def test_trials_on_a_parent_do_not_move_its_state(make):
    model = make()
    held = [v for layer in model._flatten_layers() for v in layer.variables]
    before = [numpy(v).copy() for v in held]
    assert before
    for grow in (
        lambda: ZeroPadding(factor=1.5).plan(model, 0),
        lambda: keras_fusion.fuse(model, factor=2),
        lambda: keras_fusion.fuse([model, make()]),
    ):
        with contextlib.suppress(keras_fusion.FusionError):
            grow()
        assert all(map(np.array_equal, before, map(numpy, held)))


# Operators of users.


@dataclasses.dataclass(frozen=True)
class Halved(keras_fusion.Filler):
    """Tiles: each kernel twice along each grown axis, at half the weight of its inputs."""

    def value(self, index, layout, arrays):
        value = arrays[0]
        for dimension, axis in enumerate(layout.axes):
            if axis.grown:
                value = np.concatenate([value, value], axis=dimension)
                value = value / 2 if axis.role == "in" else value
        return value


class Tiled(keras_fusion.GrowthOperator):
    """HyperCloning, written by a user."""

    def plan(self, model, seed=None):
        plan = keras_fusion.lay_out(model, factor=2)
        return dataclasses.replace(plan, filler=Halved())


def test_an_operator_of_ones_own_carries_the_optimizer():
    model = norm_free(8)
    x, y = data_for("functional", 32)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    grow = keras_fusion.GrowModel(Tiled(), keras_fusion.AtStep(2), verbose=0)
    model.fit(x, y % 5, batch_size=8, verbose=0, callbacks=[grow])
    assert grow.events[0].function_change < 1e-5
    own = outputs(HyperCloning().plan(norm_free(8), 0).fill(), x)
    assert outputs(model, x).shape == own.shape


# Arguments, checked when an operator is made.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Net2Net(factor="x"), "`factor` must be.*factor='x'"),
        (lambda: HyperCloning(factor=1), "`factor` of HyperCloning.*factor=1"),
        (lambda: HyperCloning(factor=True), "factor=True"),
        (lambda: DepthStacking(factor=1), "`factor` of DepthStacking.*factor=1"),
        (lambda: DepthStacking(identity="no"), "`identity`.*identity='no'"),
        (lambda: Lemon(factor=float("nan")), "factor=nan"),
        (lambda: ZeroPadding(factor=0.5), "factor=0.5"),
        (lambda: StagedTraining(noise_scale=-0.1), "noise_scale=-0.1"),
        (lambda: Net2Net(noise_scale="a"), "`noise_scale`.*noise_scale='a'"),
        (lambda: Lemon(seed=-1), "`seed`.*seed=-1"),
        (lambda: FusionOperator(factor=0.5), "factor=0.5"),
        (lambda: FusionOperator(norms="blok"), "norms='blok'"),
        (lambda: FusionOperator(off_diagonal="pair"), "off_diagonal='pair'"),
        (lambda: FusionOperator([norm_free(8)], off_diagonal="paired"), "for copies"),
        (lambda: FusionOperator(norms="calibrated"), "probe=None"),
        (lambda: Chain([1]), r"operators\[0\].*growth operator.*Received.*1"),
        (lambda: Chain([HyperCloning]), r"operators\[0\]"),
        (lambda: Chain(3), "operators=3"),
    ],
)
def test_constructors_name_the_argument(make, message):
    with pytest.raises(FusionError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: HyperCloning(noise=0.5), "noise"),
        (lambda: Net2Net(noise=0.5), "noise"),
        (lambda: StagedTraining(noise=0.5), "noise"),
        (lambda: Lemon(noise=0.5), "noise"),
        (lambda: FusionOperator(off_diagonal_scale=0.5), "off_diagonal_scale"),
    ],
)
def test_old_names_are_accepted_with_a_warning(make, name):
    with pytest.warns(
        DeprecationWarning, match=f"`{name}` is now called `noise_scale`"
    ):
        operator = make()
    assert operator.noise_scale == 0.5
    assert "noise_scale" in operator.get_config()


def test_errors_speak_of_the_name_that_was_passed():
    with (
        pytest.warns(DeprecationWarning),
        pytest.raises(FusionError, match=r"`noise` must be.*Received: noise=-1\.$"),
    ):
        HyperCloning(noise=-1)
    with pytest.raises(FusionError, match="Received both: noise=1, noise_scale=2"):
        HyperCloning(noise=1, noise_scale=2)
