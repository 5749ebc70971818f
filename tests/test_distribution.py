"""Growth under TensorFlow's distribution strategies, in processes of their own."""

import keras
import numpy as np
import pytest
from processes import result, start

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


CASES = [
    *(
        (name, case)
        for name in ("mirrored2", "mirrored4")
        for case in ("functional", "subclassed", "keras_hub")
    ),
    ("mirrored2", "adam"),
    ("one", "functional"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "case"), CASES)
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
@pytest.mark.parametrize(("strategy", "devices"), [("mirrored2", 2), ("mirrored4", 4)])
def test_replicas_are_equal_after_a_growth(runs, strategy, devices):
    reports, _ = runs
    for case in ("functional", "subclassed", "keras_hub"):
        report = reports[f"{strategy}/{case}"]
        # The grown variables and slots are copies on all devices, as the small ones were.
        assert report["kinds"] == ["MirroredVariable"]
        assert report["replicas"] == devices
        assert report["apart_at_growth"] == 0.0
        assert report["apart_at_end"] == 0.0
