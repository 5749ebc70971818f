"""What version 0.1.0 has saved loads, and its runs resume: see `saved/write.py`."""

import json
import shutil
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from models import numpy
from saved import write

import keras_fusion
from keras_fusion import GrownSchedule
from keras_fusion.training.record import upgraded

SAVED = Path(write.__file__).parent
CONFIGS = json.loads((SAVED / "configs.json").read_text())

pytestmark = [
    pytest.mark.core,
    # The files, and the script that wrote them, name arguments as they were then.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def expected():
    """The outputs of the models when they were saved."""
    with np.load(SAVED / "outputs.npz") as file:
        return dict(file)


def assert_computes(model, outputs):
    x, _ = write.data()
    np.testing.assert_allclose(numpy(model(x)), outputs, rtol=1e-4, atol=1e-5)


def trains_on(model, *callbacks, **options):
    x, y = write.data()
    return model.fit(x, y, batch_size=4, verbose=0, callbacks=callbacks, **options)


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_load(name):
    made = keras.saving.deserialize_keras_object(CONFIGS[name])
    assert type(made) is getattr(keras_fusion, name)
    again = upgraded(keras.saving.serialize_keras_object(made))
    old = upgraded(CONFIGS[name])
    assert again["registered_name"] == old["registered_name"]
    # A later version may have more arguments; those that were saved are as they were.
    assert old["config"].items() <= again["config"].items() or old == again


def test_block_norms_load(expected):
    model = keras.saving.load_model(SAVED / "block_norms.keras")
    assert_computes(model, expected["block_norms"])
    kinds = {type(layer) for layer in model.layers}
    assert keras_fusion.layers.BlockLayerNormalization in kinds
    assert keras_fusion.layers.BlockRMSNormalization in kinds


def test_weights_of_block_norms_load(expected, tmp_path):
    """Whose layers now have the names of the stock norms'."""
    with zipfile.ZipFile(SAVED / "block_norms.keras") as file:
        file.extract("model.weights.h5", tmp_path)
    parents = [write.build(4), write.build(6)]
    model = keras_fusion.fuse(parents, norms="block")
    model.load_weights(tmp_path / "model.weights.h5")
    assert_computes(model, expected["block_norms"])


def test_a_grown_model_loads(expected):
    """With the schedule in the middle of its ramp, and trains on."""
    model = keras.saving.load_model(SAVED / "grown.keras")
    assert_computes(model, expected["grown"])
    config = model.optimizer.get_config()["learning_rate"]
    schedule = keras.saving.deserialize_keras_object(config)
    assert isinstance(schedule, GrownSchedule)
    assert (schedule.ramp.factor, schedule.ramp.rewarmup_steps) == (0.5, 20)
    assert (schedule.ramp.start, int(model.optimizer.iterations)) == (2, 4)
    grow = keras_fusion.DeepFusion(at_step=6, verbose=0)
    trains_on(model, grow)
    assert model.layers[1].units == 16 and len(grow.events) == 1


def test_a_recorded_run_resumes(expected, tmp_path):
    shutil.copy(SAVED / "record.json", tmp_path)
    model, grow = write.compiled(write.build()), write.recorded(tmp_path)
    weights = SAVED / "recorded.weights.h5"
    grow.replay(model, growths=weights)
    model.load_weights(weights)
    assert_computes(model, expected["recorded"])
    (event,) = grow.events
    assert (event.step, event.params_before, event.params_after) == (2, 58, 146)
    assert int(model.optimizer.iterations) == 4
    trains_on(model, grow, initial_epoch=1, epochs=2)
    assert len(grow.events) == 1 and int(model.optimizer.iterations) == 8


def test_a_backed_up_run_resumes(expected, tmp_path):
    shutil.copytree(SAVED / "backup", tmp_path / "backup")
    model, (backup, grow) = write.compiled(write.build()), write.callbacks(tmp_path)
    history = trains_on(model, backup, grow, epochs=2)
    assert history.epoch == [] and [event.step for event in grow.events] == [3]
    assert_computes(model, expected["resumed"])
    model, (backup, grow) = write.compiled(write.build()), write.callbacks(tmp_path)
    history = trains_on(model, backup, grow, epochs=3)
    assert history.epoch == [2] and int(model.optimizer.iterations) == 12


# The names of then.


def test_old_names_are_upgraded():
    old = {
        "class": "Chain",
        "operators": [
            {
                "module": "keras_fusion.width_operators",
                "class_name": "HyperCloning",
                "config": {"factor": 2, "noise": 0.1},
                "registered_name": "keras_fusion>HyperCloning",
            }
        ],
        "off_diagonal_scale": 0.5,
    }
    new = {
        "class": "Chain",
        "operators": [
            {
                "class_name": "HyperCloning",
                "config": {"factor": 2, "noise_scale": 0.1},
                "registered_name": "keras_fusion>HyperCloning",
            }
        ],
        "noise_scale": 0.5,
    }
    assert upgraded(old) == new and upgraded(new) == new
    # Somebody's own operator may have both; and `module` may be an argument.
    own = {"noise": 1, "noise_scale": 2, "module": "x"}
    assert upgraded(own) == own


def test_a_record_of_a_chain_fits_after_its_classes_have_moved(tmp_path):
    """Version 0.1.0 wrote down in which module an operator's class was."""
    operators = [keras_fusion.HyperCloning(noise=0.1), keras_fusion.HyperCloning()]
    path = tmp_path / "growth.json"

    def run():
        grow = keras_fusion.GrowModel(
            keras_fusion.Chain(operators),
            keras_fusion.AtStep(2),
            record=path,
            verbose=0,
        )
        return grow, write.compiled(write.build())

    grow, model = run()
    trains_on(model, grow)
    text = path.read_text()
    body = json.loads(text)["body"]
    first = body["script"]["operator"]["operators"][0]
    first["module"] = "keras_fusion.width_operators"
    first["config"]["noise"] = first["config"].pop("noise_scale", 0.1)
    keras_fusion.training.files.write_json(path, body)
    assert path.read_text() != text
    grow, model = run()
    grow.replay(model)
    assert [event.step for event in grow.events] == [2] and model.layers[1].units == 16
