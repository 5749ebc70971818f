"""Operators of users' own: other orders of units, names of arguments, errors."""

import dataclasses

import keras
import numpy as np
import pytest

import keras_fusion

pytestmark = pytest.mark.core


@dataclasses.dataclass(frozen=True)
class MirrorFiller(keras_fusion.Filler):
    """The second copy of the units in reversed order, and noise that cancels."""

    noise: float
    seed: int

    def value(self, index, layout, arrays):
        value, rng = arrays[0], np.random.default_rng([self.seed, index])
        for i, axis in enumerate(layout.axes):
            if axis.grown and axis.role != "in":
                value = np.concatenate([value, np.flip(value, i)], axis=i)
        for i, axis in enumerate(layout.axes):
            if axis.grown and axis.role == "in":
                noise = self.noise * rng.standard_normal(value.shape)
                noise = noise.astype(value.dtype)
                halves = [0.5 * value + noise, np.flip(0.5 * value - noise, i)]
                value = np.concatenate(halves, axis=i)
        return value * np.asarray(layout.scales[0], value.dtype)


@keras.saving.register_keras_serializable("tests_of_operators")
class Mirror(keras_fusion.GrowthOperator):
    """Doubles units by mirrored copies; `noise` was a name of the package's once."""

    def __init__(self, noise=0.01, says_where=True):
        self.noise, self.says_where = noise, says_where

    def plan(self, model, seed=None):
        plan = keras_fusion.lay_out(model, factor=2)
        layouts = [
            dataclasses.replace(layout, axes=tuple(map(mirrored, layout.axes)))
            for layout in plan.layouts
        ]
        return dataclasses.replace(
            plan,
            layouts=layouts if self.says_where else plan.layouts,
            filler=MirrorFiller(self.noise, seed or 0),
            exact=True,
        )

    def get_config(self):
        return {"noise": self.noise, "says_where": self.says_where}


class Free(keras_fusion.GrowthOperator):
    def __init__(self, **options):
        self.options = options


def mirrored(axis):
    if not axis.grown:
        return axis
    first, second = axis.blocks
    return keras_fusion.Axis(axis.size, axis.role, (first, second[::-1]))


def built():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(6, "relu"),
            keras.layers.Dense(6, "relu"),
            keras.layers.Dense(2),
        ]
    )


def data():
    x = np.random.default_rng(0).standard_normal((32, 4)).astype("float32")
    return x, x[:, :2]


def test_units_may_stand_in_another_order():
    keras_fusion.testing.run_operator_test(Mirror(), built(), *data(), loss="mse")


def test_moments_stand_where_the_units_do():
    model, (x, y) = built(), data()
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse")
    model.fit(x, y, verbose=0)
    slots = [np.asarray(v) for v in model.optimizer.variables[2:]]
    keras_fusion.grow(model, Mirror(), verbose=0)
    kernel = slots[0]
    grown = np.asarray(model.optimizer.variables[2])
    expected = np.concatenate([kernel, kernel[:, ::-1]], axis=1) / 2
    np.testing.assert_allclose(grown, expected, rtol=1e-6)


def test_an_order_that_the_layout_does_not_tell_is_refused():
    model = built()
    model.compile("sgd", "mse")
    found = "MirrorFiller puts units elsewhere than the axes of the plan's layouts say"
    with pytest.raises(keras_fusion.FusionError, match=found):
        keras_fusion.grow(model, Mirror(says_where=False), verbose=0)


def test_arguments_keep_names_that_the_package_once_had():
    again = Mirror.from_config(Mirror(noise=0.3).get_config())
    assert again.noise == 0.3
    free = Free.from_config({"noise": 1, "off_diagonal_scale": 2})
    assert free.options == {"noise": 1, "off_diagonal_scale": 2}
    old = keras_fusion.HyperCloning.from_config({"noise": 0.2})
    assert old.noise_scale == 0.2


def test_operators_say_their_arguments():
    assert repr(Mirror(0.5)) == "Mirror(noise=0.5, says_where=True)"
    assert repr(keras_fusion.DepthStacking()).startswith("DepthStacking(")
