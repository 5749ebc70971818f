"""Partners from files that nobody should trust: refused in time, and in few words."""

import io
import json
import random
import resource
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from damage import damage_count, damages
from keras import layers

from keras_fusion import DeepFusion, FusionError, FusionOperator

pytestmark = pytest.mark.core

X = np.random.default_rng(0).standard_normal((16, 4)).astype("float32")


def made():
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(8, "relu"), layers.Dense(1)]
    )
    model.compile("adam", "mse", jit_compile=False)
    return model


def fit(model, *callbacks):
    return model.fit(X, X[:, :1], batch_size=8, verbose=0, callbacks=list(callbacks))


@pytest.fixture
def path(tmp_path):
    """The file of a trained partner."""
    model = made()
    fit(model)
    model.save(tmp_path / "partner.keras")
    return tmp_path / "partner.keras"


def parts(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewrite(path, compression=zipfile.ZIP_STORED, **changed):
    """The same file with some of its parts changed; keys are `config` and `weights`."""
    names = {"config": "config.json", "weights": "model.weights.h5"}
    content = parts(path) | {names[key]: value for key, value in changed.items()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, value in content.items():
            archive.writestr(name, value)


def refused(path, pattern):
    """It is refused by name, in few words, and without much memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(FusionError, match=r"partners\[0\].*partner.keras") as error:
        FusionOperator(partners=[path]).plan(made())
    assert pattern in str(error.value) and len(str(error.value)) < 2000
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert used < 600_000  # kilobytes


def config_of(path):
    """The config, of layers that are built for whatever comes in."""
    config = json.loads(parts(path)["config.json"])
    for layer in config["config"]["layers"]:
        layer.pop("build_config", None)
    return config


def test_a_partner_from_a_file(path):
    model = made()
    fit(model, DeepFusion(at_step=1, partners=[path], optimizer_state="reset"))
    assert model.layers[0].units == 16


def test_layers_larger_than_the_weights(path):
    config = config_of(path)
    dense = config["config"]["layers"][1]
    dense["config"]["units"] = 2_000_000_000
    rewrite(path, config=json.dumps(config))
    refused(path, "and holds values of")


def test_more_layers_than_the_weights(path):
    config = config_of(path)
    inner = config["config"]["layers"]
    big = json.loads(json.dumps(inner[1]))
    big["config"] |= {"units": 4_000_000, "name": "big"}
    config["config"]["layers"] = [inner[0], big, *inner[1:]]
    rewrite(path, config=json.dumps(config))
    refused(path, "and holds values of")


@pytest.mark.tensorflow
@pytest.mark.parametrize("part", ["config", "weights"])
def test_a_bomb(part, path):
    """A gigabyte of blanks, in a megabyte."""
    rewrite(path, zipfile.ZIP_DEFLATED, **{part: b" " * 10**9})
    refused(path, "unpacked, which no model has")


def test_a_long_config(path):
    rewrite(path, config=b" " * (2**26 + 1))
    refused(path, "has a config of 67,108,865 bytes")


def test_weights_that_say_they_are_large(path):
    """Values that were never written take no room in a file."""
    held = io.BytesIO(parts(path)["model.weights.h5"])
    with h5py.File(held, "a") as file:
        file.create_dataset("layers/huge", (10**6, 10**6), "f4", chunks=(1000, 1000))
    rewrite(path, weights=held.getvalue())
    refused(path, "says that its weights have")


@pytest.mark.parametrize("kind", ["soft link", "external link", "external data"])
def test_weights_in_other_files(kind, path, tmp_path):
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["secret"] = np.ones(3)
    held = io.BytesIO(parts(path)["model.weights.h5"])
    with h5py.File(held, "a") as file:
        if kind == "soft link":
            file["link"] = h5py.SoftLink("/layers")
        elif kind == "external link":
            file["link"] = h5py.ExternalLink(str(other), "secret")
        else:
            places = [(str(other), 0, 12)]
            file.create_dataset("link", (3,), "f4", external=places)
    rewrite(path, weights=held.getvalue())
    refused(path, "other files")


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"3", b"[" * 10**6, b"\xff"])
def test_a_config_that_is_none(content, path):
    rewrite(path, config=content)
    refused(path, "")


def test_a_long_message_of_kerass(path):
    config = config_of(path)
    config["config"]["layers"][1]["class_name"] = "x" * 10**6
    rewrite(path, config=json.dumps(config))
    refused(path, "cannot be loaded")


def test_code_is_called_code(path):
    inputs = keras.Input((4,))
    keras.Model(inputs, layers.Lambda(lambda x: x + 1)(inputs)).save(path)
    refused(path, "holds code (a Lambda layer)")


def test_a_vocabulary_file_is_not_called_code(path, tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("a\nb\n")
    inputs = keras.Input((1,), dtype="int64")
    x = layers.IntegerLookup(vocabulary=[1, 2])(inputs)
    model = keras.Model(inputs, layers.Dense(1)(layers.Embedding(4, 8)(x)))
    model.save(path)
    config = config_of(path)
    lookup = config["config"]["layers"][1]
    assert lookup["class_name"] == "IntegerLookup"
    lookup["config"]["vocabulary"] = str(words)
    rewrite(path, config=json.dumps(config))
    refused(path, "names a vocabulary file outside of itself")


def test_damaged_files(path):
    """Each is refused as such, or has the weights that were saved."""
    whole = Path(path).read_bytes()

    def read():
        operator = FusionOperator(partners=[path])
        return [w for p in operator.parents(made())[1:] for w in p.get_weights()]

    expected, refusals, count = read(), 0, damage_count(10)
    for _ in damages(path, count, seed=random.Random(0).randrange(100)):
        try:
            found = read()
        except FusionError as error:
            assert "partner.keras" in str(error) and len(str(error)) < 2000
            refusals += 1
        else:
            assert all(map(np.array_equal, found, expected))
    assert path.read_bytes() == whole and refusals > 0.5 * count
