"""Values that devices make of their own parts are the host's, bit for bit."""

import dataclasses
import json

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import functional
from processes import free_port, result, start

import keras_fusion
from keras_fusion.models import shards
from keras_fusion.values import on_devices

pytestmark = [
    pytest.mark.core,
    pytest.mark.skipif(keras.config.backend() != "jax", reason="shards are JAX's"),
]
ADAM = ("zeros", "three", "random", "HyperCloning", "shuffled", "Lemon", "chain")
CASES = [
    *((name, "Adam") for name in ADAM),
    *((name, "Adafactor") for name in ("paired", "Lemon half")),
    *((name, "Muon") for name in ("half", "depth")),
]
TOGETHER = [("paired", "Adafactor")]
# Variables and slots of two axes or more, all of which devices can make.
MADE = {"Adam": 60, "Adafactor": 56, "Muon": 49}


def started(devices, *arguments):
    """The start of `runs/made_on_devices.py`."""
    environment = {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        # The suite compiles without; what they do to products must not be seen.
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "0",
    }
    return start("made_on_devices.py", *arguments, **environment)


@pytest.fixture(scope="module")
def reports():
    """What eight devices have made, by case."""
    return result(started(8, json.dumps(CASES)))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=", ".join)
def test_eight_devices_make_what_the_host_makes(reports, case):
    report = reports[", ".join(case)]
    assert report["different"] == [] and report["split"] >= 28
    # The slots of new units that LEMON leaves without a source are the host's.
    few = case[0] == "Lemon half"
    assert report["made"] >= (20 if few else MADE[case[1]])


@pytest.mark.slow
def test_devices_sum_long_rows_as_the_host_does(reports):
    assert len(reports["sums"]) == 9
    for ours, hosts in reports["sums"]:
        assert ours == hosts


@pytest.mark.slow
def test_devices_of_two_processes_make_what_the_host_makes():
    port = free_port()
    runs = [started(4, json.dumps(TOGETHER), port, 2, rank) for rank in range(2)]
    for own in map(result, runs):
        for case in TOGETHER:
            report = own[", ".join(case)]
            assert report["different"] == [] and report["split"] >= 28
            assert report["made"] >= MADE[case[1]]


WIDTHS = st.tuples(st.integers(2, 9), st.integers(2, 9), st.integers(2, 70))
OPERATORS = st.sampled_from(
    [
        keras_fusion.FusionOperator(factor=3, seed=3),
        keras_fusion.FusionOperator(off_diagonal="random", seed=3),
        keras_fusion.FusionOperator(factor=2.5, seed=3),
        keras_fusion.HyperCloning(factor=3, noise_scale=0.5, seed=3),
        keras_fusion.Net2Net(factor=2, draw="random", exact=False, seed=3),
        keras_fusion.Lemon(factor=2, seed=3),
        keras_fusion.ZeroPadding(factor=2),
    ]
)


@settings(max_examples=6, deadline=None)
@given(widths=WIDTHS, operator=OPERATORS, seed=st.integers(0, 2**31))
def test_one_device_makes_what_the_host_makes(widths, operator, seed):
    keras.utils.set_random_seed(seed)
    stack = [keras.layers.Dense(2 * width, "relu") for width in widths]
    model = keras.Sequential([keras.Input((5,)), *stack, keras.layers.Dense(3)])
    plan, made = operator.plan(model, seed), 0
    for index, layout in enumerate(plan.layouts):
        arrays = [np.asarray(source.value) for source in layout.sources]
        expected = plan.values(index, arrays)
        with shards.used(True):
            if on_devices.fill(plan.filler, index, layout):
                made += 1
                np.testing.assert_array_equal(layout.target.value, expected)
    assert made == len(stack) + 1  # the kernels


@dataclasses.dataclass(frozen=True)
class Ones(keras_fusion.Filler):
    def value(self, index, layout, arrays):
        return np.ones(layout.target.shape, arrays[0].dtype)


def test_what_devices_do_not_know_the_host_makes():
    plan = keras_fusion.lay_out(functional(8), factor=2)
    own = dataclasses.replace(plan, filler=Ones(), exact=False)
    with shards.used(True):
        fused = own.fill()
    assert all(np.all(np.asarray(layout.target) == 1) for layout in own.layouts)
    partners = keras_fusion.FusionOperator(partners=[functional(8, seed=1)])
    with shards.used(True):
        fused = partners.plan(functional(8)).fill()
    with shards.used(False):
        expected = partners.plan(functional(8)).fill()
    for ours, theirs in zip(fused.weights, expected.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_processor_without_devices_uses_the_host():
    assert not shards.are_used()
