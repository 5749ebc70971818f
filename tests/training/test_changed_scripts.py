"""A script that resumes a run with something changed: refused or told, one by one."""

import json
import warnings

import keras
import numpy as np
import pytest
from keras import layers
from keras.optimizers.schedules import CosineDecay

import keras_fusion
from keras_fusion import DeepFusion, FusionError

pytestmark = pytest.mark.eager

X = np.random.default_rng(0).standard_normal((32, 4)).astype("float32")


class Crash(Exception):
    """What stands for the process's end."""


class CrashAt(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise Crash


def run(folder, crash=None, grow=True, record=False, **changed):
    """A script from its start: a small model, trained with a backup or a record."""
    options = {
        "optimizer": lambda: keras.optimizers.Adam(0.01),
        "activation": "relu",
        "loss": "mse",
        "batch_size": 8,
        "examples": 32,
        "loss_weights": None,
        "epsilon": 1e-3,
    } | changed
    norm = layers.LayerNormalization(epsilon=options["epsilon"])
    stack = [layers.Dense(8, options["activation"]), norm, layers.Dense(1)]
    model = keras.Sequential([keras.Input((4,)), *stack])
    model.compile(
        options["optimizer"](),
        options["loss"],
        loss_weights=options["loss_weights"],
        jit_compile=False,
    )
    growth = DeepFusion(
        at_step=5, verbose=0, record=folder / "growth.json" if record else None
    )
    kept = (
        keras.callbacks.BackupAndRestore(folder)
        if record
        else keras_fusion.BackupAndRestore(folder)
    )
    x = X[: options["examples"]]
    history = model.fit(
        x,
        x[:, :1],
        batch_size=options["batch_size"],
        epochs=4,
        verbose=0,
        shuffle=False,
        callbacks=[kept, *([growth] if grow else []), CrashAt(crash)],
    )
    return model, history


REFUSED = {
    "amsgrad": (
        {"optimizer": lambda: keras.optimizers.Adam(0.01, amsgrad=True)},
        r"optimizers\[0\]\.amsgrad: False in the record, True",
    ),
    "decay": (
        {"optimizer": lambda: keras.optimizers.Adam(0.01, beta_2=0.9)},
        r"optimizers\[0\]\.beta_2: 0\.999 in the record, 0\.9",
    ),
    "clipping": (
        {"optimizer": lambda: keras.optimizers.Adam(0.01, clipnorm=1.0)},
        r"optimizers\[0\]\.clipnorm: None in the record, 1\.0",
    ),
    "moving average": (
        {"optimizer": lambda: keras.optimizers.Adam(0.01, use_ema=True)},
        r"optimizers\[0\]\.use_ema: False in the record, True",
    ),
    "another optimizer": (
        {"optimizer": lambda: keras.optimizers.SGD(0.01)},
        r"optimizer.*'Adam' in the record, 'SGD'",
    ),
    "loss": ({"loss": "mae"}, r"loss.*mse.* in the record, .*mae"),
    "weights of the loss": (
        {"loss_weights": [2.0]},
        r"loss_weights.*: None in the record, \[2\.0\]",
    ),
    "epsilon of a norm": (
        {"epsilon": 1e-5},
        r"epsilon: 0\.001 in the record, 1e-05",
    ),
    "kind of rate": (
        {"optimizer": lambda: keras.optimizers.Adam(CosineDecay(0.01, 100))},
        r"another kind of learning rate for optimizer 0: 0\.0\d+, and .*CosineDecay",
    ),
    "structure": (
        {"activation": "tanh"},
        r"activation: 'relu' in the record, 'tanh'",
    ),
}
TOLD = {
    "rate": (
        {"optimizer": lambda: keras.optimizers.Adam(0.02)},
        r"learning_rates\[0\]: 0\.0\d+ in the record, 0\.0\d+ in this",
    ),
    "batch size": ({"batch_size": 4}, r"data\.batch_size: 8 in the record, 4 in"),
    "less data": ({"examples": 20}, r"data\.examples: 32 in the record, 20 in"),
}


@pytest.fixture(scope="module")
def cut_off(tmp_path_factory):
    """Folders of runs that were cut off: before a growth, after one, with a record."""
    folders = {}
    for kind, options in KINDS.items():
        folders[kind] = tmp_path_factory.mktemp("cut")
        with pytest.raises(Crash):
            run(folders[kind], **options)
    return folders


KINDS = {
    "before": {"crash": 1},
    "after": {"crash": 3},
    "without growth": {"crash": 2, "grow": False},
    "record": {"crash": 3, "record": True},
}


def options_of(kind):
    return {k: v for k, v in KINDS[kind].items() if k != "crash"}


@pytest.mark.core
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", REFUSED)
def test_changed_script_is_refused(case, kind, cut_off):
    changed, pattern = REFUSED[case]
    with pytest.raises(FusionError, match=f"(?s)is of another run.*{pattern}"):
        run(cut_off[kind], **options_of(kind), **changed)


@pytest.mark.parametrize("kind", ["before", "after", "without growth"])
@pytest.mark.parametrize("case", TOLD)
def test_changed_circumstances_are_told(case, kind, cut_off):
    changed, pattern = TOLD[case]
    with pytest.warns(UserWarning, match=pattern), pytest.raises(Crash):
        run(cut_off[kind], crash=3, **options_of(kind), **changed)


@pytest.mark.core
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_script_hears_nothing(kind, tmp_path):
    with pytest.raises(Crash):
        run(tmp_path, **KINDS[kind])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*was made with another value.*")
        _, history = run(tmp_path, **options_of(kind))
    assert history.epoch == list(range(KINDS[kind]["crash"], 4))


def test_every_difference_is_named(cut_off):
    changed = REFUSED["amsgrad"][0] | REFUSED["structure"][0] | REFUSED["loss"][0]
    with pytest.raises(FusionError) as error:
        run(cut_off["before"], **changed)
    for word in "amsgrad", "activation", "mae":
        assert word in str(error.value)


def test_a_backup_that_tells_less_is_resumed(cut_off, tmp_path):
    """Version 0.1.0 did not write what the run was."""
    folder = tmp_path / "backup"
    with pytest.raises(Crash):
        run(folder, crash=1)
    path = folder / "backup-1" / "state.json"
    body = json.loads(path.read_text())["body"]
    del body["run"], body["behind"]
    keras_fusion.training.files.write_json(path, body)
    _, history = run(folder)
    assert history.epoch == [1, 2, 3]
