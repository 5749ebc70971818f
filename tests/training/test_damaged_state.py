"""Damaged backups and records: refused by name, never read as something else.

KERAS_FUSION_DAMAGES=200 tries as many damages to each file.
"""

import copy
import json
import random
import shutil

import keras
import numpy as np
import pytest
from damage import damage_count, damages
from keras import layers
from models import values

import keras_fusion
from keras_fusion import DeepFusion, FusionError
from keras_fusion.training import files
from keras_fusion.training.record import SavedGrowths

pytestmark = pytest.mark.eager

X = np.random.default_rng(0).standard_normal((16, 4)).astype("float32")


class Crash(Exception):
    pass


class CrashAt(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise Crash


def made():
    stack = [layers.Dense(8, "relu"), layers.Dropout(0.1, seed=3), layers.Dense(1)]
    model = keras.Sequential([keras.Input((4,)), *stack])
    model.compile(keras.optimizers.Adam(0.01), "mse", jit_compile=False)
    return model


def callbacks(folder):
    grow = DeepFusion(
        at_step=[1, 3],
        optimizer_state="reset",
        rewarmup_steps=5,
        record=folder / "growth.json",
        verbose=0,
    )
    return [keras_fusion.BackupAndRestore(folder / "backup"), grow]


def run(folder, *others):
    model = made()
    options = {"batch_size": 8, "verbose": 0, "shuffle": False, "epochs": 2}
    model.fit(X, X[:, :1], callbacks=[*callbacks(folder), *others], **options)
    return model


@pytest.fixture(scope="module")
def cut_off(tmp_path_factory):
    """The folder of a run with two growths that was cut off."""
    folder = tmp_path_factory.mktemp("cut")
    model = made()
    options = {"batch_size": 8, "verbose": 0, "shuffle": False, "epochs": 4}
    with pytest.raises(Crash):
        model.fit(X, X[:, :1], callbacks=[*callbacks(folder), CrashAt()], **options)
    return folder


@pytest.fixture
def copied(cut_off, tmp_path):
    """A copy of it, which may be damaged."""
    shutil.copytree(cut_off, tmp_path / "run")
    return tmp_path / "run"


def resumed(folder):
    """The weights with which the run goes on, with the files left as they are."""
    backup, grow = callbacks(folder)
    model = made()
    for callback in backup, grow:
        callback.params = backup.params = {}
        callback.set_model(model)
    backup.on_train_begin()
    return values(model), [event.step for event in grow.events]


def replayed(folder):
    _, grow = callbacks(folder)
    model = made()
    grow.replay(model)
    shapes = [v.shape for v in model.weights]
    return shapes, [event.to_dict() for event in grow.events]


def check_damages(path, read, same, default):
    """Damages change nothing, or are refused with the file's name."""
    expected, refused, count = read(), 0, damage_count(default)
    for broken in damages(path, count):
        try:
            found = read()
        except FusionError as error:
            assert path.name in str(error) or path.parent.name in str(error)
            assert len(str(error)) < 5000
            refused += 1
        else:
            assert same(found, expected), broken[:200]
    assert refused > 0.8 * count


def same_weights(found, expected):
    return found[1] == expected[1] and all(map(np.array_equal, found[0], expected[0]))


@pytest.mark.core
@pytest.mark.parametrize("name", ["state.json", "model.weights.h5"])
def test_damaged_backup(name, copied):
    (copied / "growth.json").unlink()
    (backup,) = (copied / "backup").iterdir()
    check_damages(backup / name, lambda: resumed(copied), same_weights, 12)


@pytest.mark.core
def test_damaged_record(copied):
    def equal(found, expected):
        return found == expected

    check_damages(copied / "growth.json", lambda: replayed(copied), equal, 12)


@pytest.mark.parametrize("name", ["state.json", "model.weights.h5"])
def test_missing_file_of_a_backup(name, copied):
    (copied / "growth.json").unlink()
    (backup,) = (copied / "backup").iterdir()
    (backup / name).unlink()
    with pytest.raises(FusionError, match=rf"{name}.*"):
        resumed(copied)


# Files whose checksum is right, and whose content nobody has written: every field of
# every level is tried.

STRANGE = [
    None,
    True,
    -1,
    1.5,
    10**30,
    float("1e308"),
    "text",
    "nan",
    [],
    [[]],
    [-1],
    ["x"],
    {},
    {"x": 1},
    [{"x": 1}],
]


def places(content, path=()):
    """The paths of all values in plain data, of the containers too."""
    yield path
    items = content.items() if isinstance(content, dict) else enumerate(content)
    for key, item in items:
        if isinstance(item, (dict, list)):
            yield from places(item, (*path, key))
        else:
            yield (*path, key)


def changed(body, rng):
    """Plain data with one value replaced, left out, or added."""
    body = copy.deepcopy(body)
    path = rng.choice([p for p in places(body) if p])
    place = body
    for key in path[:-1]:
        place = place[key]
    kind = rng.choice(["replaced", "replaced", "left out", "twice"])
    if kind == "replaced":
        place[path[-1]] = rng.choice(STRANGE)
    elif kind == "left out":
        del place[path[-1]]
    elif isinstance(place, list):
        place.append(copy.deepcopy(place[path[-1]]))
    else:
        place[f"{path[-1]}2"] = place[path[-1]]
    return body, path


# What a change to these leaves as it is: the time that a growth took, and numbers that
# any of the values that are tried may stand for.
FREE = {"run", "script", "event"}


def check_bodies(path, read, default):
    """Strange fields are refused as such, or the run goes on with weights of its shape."""
    body = json.loads(path.read_text())["body"]
    rng, refused, count = random.Random(0), 0, damage_count(default)
    shapes = [np.shape(value) for value in read()[0]]
    for _ in range(count):
        strange, place = changed(body, rng)
        if strange == {**body, "changes": body.get("changes", [])[:-1]}:
            continue  # What the record was before the last growth is a record too.
        files.write_json(path, strange)
        try:
            found = read()
        except FusionError as error:
            assert path.name in str(error) or path.parent.name in str(error), place
            assert len(str(error)) < 5000
            refused += 1
        else:
            assert [np.shape(value) for value in found[0]] == shapes, place
    files.write_json(path, body)
    read()
    assert refused > 0.3 * count


@pytest.mark.filterwarnings("ignore:.*was made with another value.*")
def test_strange_body_of_a_backup(copied):
    (copied / "growth.json").unlink()
    (backup,) = (copied / "backup").iterdir()
    check_bodies(backup / "state.json", lambda: resumed(copied), 60)


@pytest.mark.filterwarnings("ignore:.*was made with another value.*")
def test_strange_body_of_a_record(copied):
    def read():
        weights, events = replayed(copied)
        return [np.zeros(shape) for shape in weights], events

    check_bodies(copied / "growth.json", read, 60)


BODIES = {
    "a list": [],
    "a number": 3,
    "null": None,
    "nothing": {},
    "no seed": {"script": {}, "changes": []},
    "a text for a seed": {"script": {}, "changes": [], "seed": "1"},
    "a negative seed": {"script": {}, "changes": [], "seed": -1},
    "a dict of changes": {"script": {}, "changes": {}, "seed": 1},
    "a change that is none": {"script": {}, "changes": [3], "seed": 1},
}


@pytest.mark.core
@pytest.mark.parametrize("case", BODIES)
def test_body_that_is_no_record(case, tmp_path):
    path = tmp_path / "growth.json"
    files.write_json(path, BODIES[case])
    with pytest.raises(FusionError, match="growth.json"):
        SavedGrowths.read(path)


CONTENTS = {
    "nothing": "",
    "deep": "[" * 200_000,
    "NaN": '{"version": 1, "sha256": "", "body": {"seed": NaN}}',
    "a long number": '{"version": 1, "sha256": "", "body": ' + "9" * 10_000 + "}",
    "a long version": '{"version": "' + "x" * 10**7 + '", "sha256": "", "body": {}}',
    "no text": b"\xff\xfe\x00",
}


@pytest.mark.core
@pytest.mark.parametrize("case", CONTENTS)
def test_content_that_is_no_record(case, tmp_path):
    path, content = tmp_path / "growth.json", CONTENTS[case]
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(FusionError, match="growth.json") as error:
        SavedGrowths.read(path)
    assert len(str(error.value)) < 2000


def test_record_that_is_a_folder(tmp_path):
    (tmp_path / "growth.json").mkdir()
    with pytest.raises(FusionError, match="growth.json is damaged"):
        SavedGrowths.read(tmp_path / "growth.json")


@pytest.mark.core
def test_schedule_that_cannot_use_its_state(copied):
    """It is found when the first epoch begins, and names the schedule."""
    (copied / "growth.json").unlink()

    class Own(keras_fusion.GrowthSchedule):
        def should_grow(self, moment):
            return False

        def get_state(self):
            return {"seen": 1}

        def set_state(self, state):
            self.seen = state["other"]

    def fit(*others):
        grow = DeepFusion(schedule=Own(), verbose=0)
        backup = keras_fusion.BackupAndRestore(copied / "other")
        options = {"batch_size": 8, "verbose": 0, "epochs": 4}
        made().fit(X, X[:, :1], callbacks=[backup, grow, *others], **options)

    with pytest.raises(Crash):
        fit(CrashAt())
    with pytest.raises(FusionError, match="state of the schedule Own.*KeyError"):
        fit()
