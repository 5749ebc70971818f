"""Records, backups and scripts that do not fit are refused, and nothing has changed."""

import pytest
from resumed_runs import Steps, assert_equal, made, run, state

import keras_fusion
from keras_fusion import DeepFusion, FusionError
from keras_fusion.models import processes
from keras_fusion.training import files

OTHERS = {
    "schedule": (dict(at_step=4), r"schedule\.steps\[0\]: 3 in the record, 4 in this"),
    "kind": (dict(at_epoch=1), r"schedule\.class: 'AtStep' in .* 'AtEpoch'"),
    "factor": (dict(at_step=3, factor=3), r"operator\.factor: 2 in .* 3 in this"),
    "rate": (
        dict(at_step=3, learning_rate_factor=0.5),
        r"learning_rate_factor: 1\.0 in the record, 0\.5",
    ),
    "state": (
        dict(at_step=3, optimizer_state="reset"),
        r"optimizer_state: 'carry' in the record, 'reset'",
    ),
}


@pytest.fixture(scope="module")
def cut_off(tmp_path_factory):
    """A run that was cut off after a growth: the folder of its record and backup."""
    folder = tmp_path_factory.mktemp("cut")
    grow = DeepFusion(at_step=3, verbose=0, record=folder / "growth.json")
    backup = keras_fusion.BackupAndRestore(folder / "backup")
    run(grow, backup, crash=(1, 0))
    return folder


def refused(pattern, *callbacks, **options):
    model = made(**options)
    before = state(model)
    with pytest.raises(FusionError, match=pattern):
        run(*callbacks, model=model)
    assert_equal(state(model)[: len(before)], before)


@pytest.mark.parametrize("case", OTHERS)
def test_another_script_is_refused(case, cut_off):
    options, pattern = OTHERS[case]
    path = cut_off / "growth.json"
    refused(pattern, DeepFusion(**options, verbose=0, record=path))
    backup = keras_fusion.BackupAndRestore(cut_off / "backup")
    refused(pattern, backup, DeepFusion(**options, verbose=0))


def test_other_models_and_callbacks_are_refused(cut_off):
    def grow():
        return DeepFusion(at_step=3, verbose=0, record=cut_off / "growth.json")

    def backup():
        return keras_fusion.BackupAndRestore(cut_off / "backup")

    refused(r"weight 0 has the shape \(6, 8\) in .* \(6, 7\)", grow(), width=7)
    refused(r"weight 0 .*\(6, 7\)", backup(), DeepFusion(at_step=3), width=7)
    refused(r"optimizer\[0\]: 'Adam' in .* 'SGD'", grow(), optimizer="sgd")
    refused(r"callbacks: \[\{.* in the record, \[\]", backup())
    for growths in (2, -1):
        with pytest.raises(FusionError, match=f"holds 1 growths.*growths={growths}"):
            grow().replay(made(), growths=growths)
    with pytest.raises(FusionError, match="no record to replay.*record=None"):
        DeepFusion(at_step=3).replay(made())
    two = DeepFusion(at_step=3, record=cut_off / "2.json")
    refused("Several callbacks.*growth.json.*2.json", grow(), two)


def test_weights_that_fit_no_growth_are_refused(cut_off, tmp_path):
    other, grown = made(width=7), made()
    other.save_weights(tmp_path / "other.weights.h5")
    made().save_weights(tmp_path / "small.weights.h5")
    grow = DeepFusion(at_step=3, verbose=0, record=cut_off / "growth.json")
    with pytest.raises(FusionError, match="other.weights.h5 are of no stage"):
        grow.replay(made(), growths=tmp_path / "other.weights.h5")
    grow.replay(grown)
    with pytest.raises(FusionError, match="grown further than the weights in .*small"):
        grow.replay(grown, growths=tmp_path / "small.weights.h5")


def test_growths_of_an_earlier_fit(tmp_path):
    """A backup holds no way to what happened before its fit: the script goes there."""
    folder = tmp_path / "backup"
    model = run(DeepFusion(at_step=3, verbose=0), epochs=1)
    run(keras_fusion.BackupAndRestore(folder), model=model, crash=(2, 0))
    with pytest.raises(FusionError, match="step 3 by a callback that is not in this"):
        run(keras_fusion.BackupAndRestore(folder))
    log, model = Steps(), run(DeepFusion(at_step=3, verbose=0), epochs=1)
    run(keras_fusion.BackupAndRestore(folder), log, model=model)
    assert log.epochs == [2, 3]


DAMAGES = {
    "no JSON": (
        lambda text: text[:-9],
        "growth.json is damaged: its JSON cannot be read",
    ),
    "another value": (
        lambda text: text.replace('"step": 3', '"step": 2'),
        "growth.json is damaged: its checksum is wrong",
    ),
    "another version": (
        lambda text: text.replace('"version": 1', '"version": 2'),
        "growth.json has version 2, and this keras_fusion reads version 1",
    ),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damaged_records(case, cut_off, tmp_path):
    change, pattern = DAMAGES[case]
    path = tmp_path / "growth.json"
    text = (cut_off / "growth.json").read_text()
    assert change(text) != text
    path.write_text(change(text))
    refused(pattern, DeepFusion(at_step=3, record=path))


def test_a_file_that_is_no_record(tmp_path):
    files.write_json(tmp_path / "growth.json", {"step": 3, "changes": []})
    refused(
        "is no record of growths",
        DeepFusion(at_step=3, record=tmp_path / "growth.json"),
    )


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"backup_dir": "gs://bucket/x"}, "local disk.*'gs://bucket/x'"),
        ({"save_freq": 0}, "`save_freq` must be.*save_freq=0"),
        ({"save_freq": False}, "save_freq=False"),
    ],
)
def test_bad_arguments(options, pattern):
    with pytest.raises(FusionError, match=pattern):
        keras_fusion.BackupAndRestore(**{"backup_dir": "backup"} | options)


def test_runs_of_several_processes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "is_alone", lambda: False)
    refused("has several processes", keras_fusion.BackupAndRestore(tmp_path))
