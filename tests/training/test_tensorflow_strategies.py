"""Growth under TensorFlow's distribution strategies, in processes of their own."""

import json

import keras
import numpy as np
import pytest
from processes import free_port, lines, result, start
from repository import ROOT

import keras_fusion

TUTORIALS = ROOT / "tutorials"

pytestmark = pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="TensorFlow's strategies"
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Reports and final weights of all runs, by `strategy case`."""
    folder = tmp_path_factory.mktemp("mirrored")
    files = [folder / "few.npz", folder / "many.npz"]
    processes = [
        start("mirrored.py", files[0], "none", "one", "mirrored2"),
        start("mirrored.py", files[1], "mirrored4"),
    ]
    reports = {k: v for process in processes for k, v in result(process).items()}
    weights = {}
    for file in files:
        for key, value in np.load(file).items():
            weights.setdefault(key.rsplit("/", 1)[0], []).append(value)
    return reports, weights


RUNS = [
    *(("mirrored2", kind) for kind in ("functional", "subclassed", "keras_hub")),
    ("mirrored4", "functional"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "case"), [*RUNS, ("one", "functional")])
def test_growth_in_mid_epoch_equals_that_on_one_device(runs, strategy, case):
    reports, weights = runs
    report, alone = reports[f"{strategy}/{case}"], reports[f"none/{case}"]
    assert report["steps"] == [2] and report["iterations"] == 4
    assert report["change"] < 1e-5
    assert report["shapes"] == alone["shapes"]
    for one, other in zip(
        weights[f"none/{case}"], weights[f"{strategy}/{case}"], strict=True
    ):
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "case"), RUNS)
def test_replicas_are_equal_after_a_growth(runs, strategy, case):
    report = runs[0][f"{strategy}/{case}"]
    # The grown variables and slots are copies on all devices, as the small ones were.
    assert report["kinds"] == ["MirroredVariable"]
    assert report["replicas"] == int(strategy.removeprefix("mirrored"))
    assert report["apart_at_growth"] == 0.0
    assert report["apart_at_end"] == 0.0


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    """What each of two workers has printed, and its final weights."""
    folder = tmp_path_factory.mktemp("workers")
    cluster = {"worker": [f"localhost:{free_port()}" for _ in range(2)]}
    processes = []
    for rank in range(2):
        task = {"type": "worker", "index": rank}
        config = json.dumps({"cluster": cluster, "task": task})
        output = folder / f"{rank}.npz"
        processes.append(start("workers.py", output, rank, TF_CONFIG=config))
    printed = [lines(process) for process in processes]
    weights = [list(np.load(folder / f"{i}.npz").values()) for i in range(2)]
    return printed, weights


@pytest.mark.slow
def test_two_workers_equal_one_device(runs, workers):
    printed, weights = workers
    reports = [json.loads(text[-1]) for text in printed]
    for report, own in zip(reports, weights, strict=True):
        assert report["steps"] == [2] and report["iterations"] == 4
        for one, other in zip(runs[1]["none/functional"], own, strict=True):
            np.testing.assert_allclose(other, one, rtol=0, atol=1e-6)
    assert all(np.array_equal(a, b) for a, b in zip(*weights, strict=True))
    # An epoch's logs are those of all workers together.
    assert reports[0]["losses"] == reports[1]["losses"]
    np.testing.assert_allclose(
        reports[0]["losses"], runs[0]["none/functional"]["losses"], rtol=1e-5
    )
    assert reports[0]["loss"] == reports[1]["loss"]


@pytest.mark.slow
def test_only_the_first_worker_speaks(workers):
    printed, _ = workers
    told = [sum("keras_fusion: step 2" in line for line in text) for text in printed]
    assert told == [1, 0]


def test_an_unknown_keras_is_told(monkeypatch):
    from keras.src.backend.tensorflow import trainer

    monkeypatch.delattr(trainer, "reduce_per_replica")
    with (
        pytest.raises(keras_fusion.FusionError, match=f"Keras {keras.__version__}"),
        keras_fusion.multi_worker_fit(),
    ):
        pass


def test_multi_worker_fit_ends_with_its_scope():
    from keras.src.backend.tensorflow import trainer

    before = trainer.reduce_per_replica, trainer.TensorFlowTrainer._maybe_symbolic_build
    with pytest.raises(KeyboardInterrupt), keras_fusion.multi_worker_fit():
        assert trainer.reduce_per_replica is not before[0]
        raise KeyboardInterrupt
    after = trainer.reduce_per_replica, trainer.TensorFlowTrainer._maybe_symbolic_build
    assert after == before


@pytest.mark.slow
def test_the_script_for_a_tpu_says_that_there_is_none_and_goes_on():
    options = ["--width", 16, "--steps", 6, "--grow-at", 3, "--batch-size", 8]
    printed = lines(start(TUTORIALS / "tpu_growth.py", *options, "--cpu-devices", 2))
    assert printed[0].startswith("No TPU was found under --tpu local: ")
    text = "\n".join(printed)
    assert "MirroredStrategy: 2 replica(s)" in text and "Grown at step 3" in text
    assert "Largest difference between replicas: 0.0" in text
