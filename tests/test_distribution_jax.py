"""Growth under `keras.distribution` on JAX, in processes of their own."""

import keras
import pytest
from processes import result, start

pytestmark = [
    pytest.mark.core,
    pytest.mark.slow,
    pytest.mark.skipif(
        keras.config.backend() != "jax", reason="keras.distribution works on JAX"
    ),
]


@pytest.fixture(scope="module")
def sharded():
    """What `runs/sharded.py` has seen, by case."""
    flags = "--xla_force_host_platform_device_count=8"
    return result(start("sharded.py", XLA_FLAGS=flags))


@pytest.mark.parametrize("case", ["data_parallel", "sequential", "subclassed"])
def test_growth_on_eight_devices_equals_that_on_one(sharded, case):
    report = sharded[case]
    assert report["difference"] < 1e-6 and report["change"] < 1e-5


@pytest.mark.parametrize(
    ("case", "paths"),
    [
        # Names that a second build would number anew.
        ("sequential", ["sequential/embedding/embeddings", "sequential/dense/kernel"]),
        ("subclassed", ["subclassed/embedding/embeddings", "subclassed/dense/kernel"]),
    ],
)
def test_grown_variables_and_slots_lie_as_their_names_ask(sharded, case, paths):
    specs = sharded[case]["specs"]
    slots = [f"sgd/{path.replace('/', '_')}_momentum" for path in paths]
    assert {specs.get(path) for path in [*paths, *slots]} == {"P(None, 'model')"}


def test_no_device_holds_more_than_its_share(sharded):
    report = sharded["memory"]
    assert report["sharding"] == ["P(None, 'model')"] and report["devices"] == 8
    # The grown model's part of each device, and the small model's, which is a quarter.
    assert 1.2 < report["ratio"] <= 1.3
    # Never a whole kernel, not even for a moment.
    assert 8 * report["largest_on_one_device_bytes"] == report["largest_kernel_bytes"]


def test_a_layout_that_does_not_divide_is_refused_before_training(sharded):
    report = sharded["refused"]
    assert "'dense_1/kernel') has shape (24, 12), and its layout" in report["error"]
    assert "'model' of 8 devices, which does not divide 12" in report["error"]
    assert report["steps"] == [] and report["same"]
