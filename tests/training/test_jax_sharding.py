"""Growth under `keras.distribution` on JAX, in processes of their own."""

import json

import keras
import numpy as np
import pytest
from processes import free_port, lines, result, start

import keras_fusion

pytestmark = [
    pytest.mark.core,
    pytest.mark.slow,
    pytest.mark.skipif(
        keras.config.backend() != "jax", reason="keras.distribution works on JAX"
    ),
]


def flags(devices):
    """What makes XLA take the processor for several devices."""
    return f"--xla_force_host_platform_device_count={devices}"


@pytest.fixture(scope="module")
def sharded():
    """What `runs/sharded.py` has seen, by case."""
    return result(start("sharded.py", XLA_FLAGS=flags(8)))


@pytest.mark.parametrize("case", ["data_parallel", "model_parallel"])
def test_growth_on_eight_devices_equals_that_on_one(sharded, case):
    report = sharded[case]
    assert report["difference"] < 1e-6 and report["change"] < 1e-5


def test_grown_variables_and_slots_lie_as_their_names_ask(sharded):
    specs = sharded["model_parallel"]["specs"]
    # Names of layers without name, which a second build would number anew.
    paths = ["subclassed/embedding/embeddings", "subclassed/dense/kernel"]
    slots = [f"sgd/{path.replace('/', '_')}_momentum" for path in paths]
    assert {specs.get(path) for path in [*paths, *slots]} == {"P(None, 'model')"}


@pytest.mark.parametrize("operator", ["HyperCloning", "Net2Net", "DepthStacking"])
def test_other_operators_grow_sharded_models(sharded, operator):
    report = sharded["operators"][operator]
    assert report["difference"] < 1e-6
    kernels = [path for path in report["specs"] if path.endswith("/kernel")]
    assert len(kernels) == {"DepthStacking": 5}.get(operator, 3)


def test_no_device_holds_more_than_its_share(sharded):
    report = sharded["memory"]
    assert report["sharding"] == ["P(None, 'model')"] and report["devices"] == 8
    # The grown model's part of each device, and the small model's, which is a quarter.
    assert 1.2 < report["ratio"] <= 1.3
    # Never a whole kernel, not even for a moment.
    assert 8 * report["largest_on_one_device_bytes"] == report["largest_kernel_bytes"]


def test_the_preview_tells_the_bytes_on_each_device(sharded):
    report = sharded["memory"]
    predicted, share = report["predicted_bytes"], report["grown_share_bytes"]
    assert predicted["after"] == pytest.approx(share, rel=0.05)
    assert predicted["during"] == pytest.approx(
        report["most_bytes_during_growth"], rel=0.05
    )
    assert predicted["before"] < predicted["after"] / 3


def test_a_layout_that_does_not_divide_is_refused_before_training(sharded):
    report = sharded["refused"]
    found = "'sequential/embedding/embeddings') has shape (20, 12), and its sharding"
    assert found in report["error"]
    assert "'model' of 8 devices, which does not divide 12" in report["error"]
    assert report["steps"] == [] and report["same"]


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """Weights of one process and of two, and what each of the two has printed."""
    folder, port = tmp_path_factory.mktemp("processes"), free_port()
    files = [folder / "one.npz", folder / "two.npz"]
    runs = [(files[0], port, 1, 0), (files[1], port, 2, 0), (files[1], port, 2, 1)]
    script = "processes_of_one_run.py"
    processes = [start(script, *run, XLA_FLAGS=flags(4 // run[2])) for run in runs]
    outputs = [lines(process) for process in processes]
    return [dict(np.load(file)) for file in files], outputs


@pytest.mark.parametrize("distribution", ["data", "model"])
def test_two_processes_equal_one(together, distribution):
    (one, two), outputs = together
    keys = [key for key in one if key.startswith(distribution)]
    assert len(keys) == 4
    for key in keys:
        np.testing.assert_allclose(two[key], one[key], rtol=0, atol=1e-6)
    for *_, last in outputs:
        assert json.loads(last)[distribution]["change"] < 1e-5


def test_shards_may_lie_in_other_processes(together):
    _, outputs = together
    report = json.loads(outputs[1][-1])["model"]
    assert report["specs"]["sequential/dense/kernel"] == "P(None, 'model')"
    # JAX leaves a last `None` out.
    split = {"P('model', None)", "P('model',)"}
    assert report["specs"]["sequential/dense_1/kernel"] in split
    assert not any(report["whole"])


def test_only_the_first_process_speaks(together):
    _, outputs = together
    told = [sum("keras_fusion: step 2" in line for line in out) for out in outputs]
    assert told == [2, 2, 0]


def test_trees_are_not_trained_by_several_processes_together(together):
    """They would wait for one another's locks."""
    _, outputs = together
    for out in outputs[1:]:
        status, said = json.loads(out[-1])["pretrain"]
        assert status == 2 and "pretrain runs in one process" in said


def test_multi_worker_fit_is_for_tensorflow():
    with (
        pytest.raises(keras_fusion.FusionError, match="Received: 'jax'. On JAX use"),
        keras_fusion.multi_worker_fit(),
    ):
        pass
