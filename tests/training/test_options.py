"""The callbacks' and schedules' arguments are checked at once, and named as they were."""

import inspect

import keras
import numpy as np
import pytest

from keras_fusion import (
    AnnealBlockNorms,
    AtEpoch,
    AtStep,
    BackupAndRestore,
    DeepFusion,
    FusionError,
    FusionOperator,
    GrowModel,
    OnPlateau,
)
from keras_fusion.training.options import is_integer, is_number, is_path


def net():
    layers = [keras.layers.Dense(8), keras.layers.Dense(1)]
    return keras.Sequential([keras.Input((4,)), *layers])


def grow(**options):
    return GrowModel(FusionOperator(), AtStep(3), **options)


def fused(**options):
    return DeepFusion(at_step=3, **options)


FACTOR = r"`learning_rate_factor` must be a finite positive number.*"
CASES = {
    # GrowModel
    "no operator": (
        lambda: GrowModel("nonsense", AtStep(3)),
        "`operator` must be a growth operator.*operator='nonsense'",
    ),
    "a class": (
        lambda: GrowModel(FusionOperator, AtStep(3)),
        "operator=<class.*FusionOperator",
    ),
    "no schedule": (
        lambda: GrowModel(FusionOperator(), 3),
        r"`schedule` must be a GrowthSchedule.*schedule=3",
    ),
    "state": (
        lambda: grow(optimizer_state="keep"),
        "`optimizer_state` must be 'carry' or 'reset'.*optimizer_state='keep'",
    ),
    "rate 0": (lambda: grow(learning_rate_factor=0), FACTOR + "factor=0"),
    "rate NaN": (lambda: grow(learning_rate_factor=np.nan), FACTOR + "factor=nan"),
    "rate infinite": (lambda: grow(learning_rate_factor=np.inf), FACTOR + "factor=inf"),
    "rate a bool": (lambda: grow(learning_rate_factor=True), FACTOR + "factor=True"),
    "rate text": (lambda: grow(learning_rate_factor="0.5"), FACTOR + "factor='0.5'"),
    "multipliers": (
        lambda: grow(learning_rate_multipliers="muP"),
        "`learning_rate_multipliers` must be 'width' or None.*='muP'",
    ),
    "re-warm-up": (
        lambda: grow(rewarmup_steps=-1),
        "`rewarmup_steps` must be an integer of at least 0.*rewarmup_steps=-1",
    ),
    "re-warm-up a bool": (lambda: grow(rewarmup_steps=True), "rewarmup_steps=True"),
    "tolerance": (
        lambda: grow(tolerance=0.0),
        r"`tolerance` must be a finite positive number or None.*tolerance=0\.0",
    ),
    "verbose": (
        lambda: grow(verbose="auto"),
        "`verbose` must be 0 or 1.*verbose='auto'",
    ),
    "record": (lambda: grow(record=3), "`record` must be a path or None.*record=3"),
    # DeepFusion
    "no moment": (lambda: DeepFusion(), "exactly one of `at_step`.*none of them"),
    "two moments": (
        lambda: DeepFusion(at_step=1, at_epoch=1),
        "exactly one of.*at_step.*at_epoch",
    ),
    "at_step": (
        lambda: DeepFusion(at_step=0),
        "`at_step` must be a positive integer.*at_step=0",
    ),
    "at_epoch": (
        lambda: DeepFusion(at_epoch=[3, 2]),
        r"`at_epoch` must be a positive integer.*at_epoch=\[3, 2\]",
    ),
    "schedule": (
        lambda: DeepFusion(schedule="soon"),
        "`schedule` must be a GrowthSchedule.*schedule='soon'",
    ),
    "no partners": (
        lambda: fused(partners=[]),
        r"`partners` must be a list of at least one model.*partners=\[\]",
    ),
    "a partner without list": (
        lambda: fused(partners="a.keras"),
        "`partners` must be a list.*partners='a.keras'",
    ),
    "a partner that is none": (lambda: fused(partners=[3]), r"partners=\[3\]"),
    "factor": (
        lambda: fused(factor=0.5),
        r"`factor` must be a number above 1.*Received: factor=0\.5",
    ),
    "factor text": (lambda: fused(factor="2"), "`factor` must be.*factor='2'"),
    "off_diagonal": (
        lambda: fused(off_diagonal="noise"),
        "`off_diagonal` must be one of .*'paired'.*off_diagonal='noise'",
    ),
    "paired partners": (
        lambda: fused(partners=[net()], off_diagonal="paired"),
        "`off_diagonal='paired'` is for copies of one model",
    ),
    "noise": (
        lambda: fused(noise_scale=-1),
        "`noise_scale` must be a number of at least 0.*scale=-1",
    ),
    "into": (lambda: fused(into=3), "`into` must be a model, a function.*into=3"),
    "norms": (
        lambda: fused(norms="blok"),
        r"`norms` must be one of .*'block'.*norms='blok'",
    ),
    "calibrated": (
        lambda: fused(norms="calibrated"),
        "`norms='calibrated'` measures the norms on data.*probe=None",
    ),
    "seed": (
        lambda: fused(seed=-1),
        "`seed` must be an integer of at least 0.*seed=-1",
    ),
    # AnnealBlockNorms
    "anneal a bool": (
        lambda: AnnealBlockNorms(True),
        "`steps` must be an integer of at least 1.*steps=True",
    ),
    "anneal 0": (lambda: AnnealBlockNorms(0), "`steps` must.*steps=0"),
    # BackupAndRestore
    "no folder": (lambda: BackupAndRestore(""), "`backup_dir` must be.*backup_dir=''"),
    "a folder elsewhere": (
        lambda: BackupAndRestore("gs://bucket/x"),
        "`backup_dir` must be.*local disk.*'gs://bucket/x'",
    ),
    "a number as folder": (lambda: BackupAndRestore(3), "backup_dir=3"),
    "save_freq": (
        lambda: BackupAndRestore("x", save_freq=0),
        "`save_freq` must be 'epoch' or a positive integer.*save_freq=0",
    ),
    "save_freq a bool": (lambda: BackupAndRestore("x", True), "save_freq=True"),
    "double_checkpoint": (
        lambda: BackupAndRestore("x", double_checkpoint=2),
        "`double_checkpoint` must be True or False.*double_checkpoint=2",
    ),
    "delete_checkpoint": (
        lambda: BackupAndRestore("x", delete_checkpoint=None),
        "`delete_checkpoint` must be True or False.*delete_checkpoint=None",
    ),
    # Schedules
    "AtStep": (lambda: AtStep(0), "`steps` must be a positive integer.*steps=0"),
    "AtStep a bool": (lambda: AtStep(True), "`steps` must.*steps=True"),
    "AtStep empty": (lambda: AtStep([]), r"`steps` must.*steps=\[\]"),
    "AtStep twice": (lambda: AtStep([2, 2]), r"increasing list.*steps=\[2, 2\]"),
    "AtEpoch": (lambda: AtEpoch(0.5), r"`epochs` must be a positive.*epochs=0\.5"),
    "monitor": (lambda: OnPlateau(3), "`monitor` must be the name.*monitor=3"),
    "patience": (
        lambda: OnPlateau(patience=[1, 2]),
        r"`patience` must be an integer of at least 1.*patience=\[1, 2\]",
    ),
    "min_delta": (
        lambda: OnPlateau(min_delta=-0.1),
        r"`min_delta` must be a finite number of at least 0.*min_delta=-0\.1",
    ),
    "mode": (
        lambda: OnPlateau(mode="up"),
        "`mode` must be 'min' or 'max'.*mode='up'",
    ),
    "max_growths": (
        lambda: OnPlateau(max_growths=0),
        "`max_growths` must be an integer of at least 1.*max_growths=0",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_refused_at_once(case):
    make, pattern = CASES[case]
    with pytest.raises(FusionError, match=pattern):
        make()


def test_accepted(tmp_path):
    """Numbers of NumPy, paths, and an operator that is none of ours."""

    class Own:
        def plan(self, model, seed):
            return FusionOperator().plan(model, seed)

    numbers = {"learning_rate_factor": np.float32(0.5), "rewarmup_steps": np.int64(3)}
    GrowModel(Own(), AtStep(np.int64(3)), record=tmp_path / "x.json", **numbers)
    fused(partners=[net(), "a.keras", tmp_path / "b.keras"], factor=2, seed=np.int64(0))
    fused(factor=1.5, into=net, norms="calibrated", probe=np.ones((1, 4)), verbose=True)
    BackupAndRestore(tmp_path, save_freq=np.int64(2))


def test_an_operator_that_is_none_of_ours_grows_a_model():
    """`plan` alone is enough."""

    class Own:
        def plan(self, model, seed):
            return FusionOperator(seed=0).plan(model, seed)

    model = net()
    model.compile("adam", "mse")
    x = np.ones((8, 4), "float32")
    callback = GrowModel(Own(), AtStep(1), verbose=0)
    model.fit(x, x[:, :1], batch_size=4, verbose=0, callbacks=[callback])
    assert model.layers[0].units == 16 and len(callback.events) == 1


def test_warnings_in_training_name_what_the_user_passed():
    """`steps` of a schedule is the `at_step` of a `DeepFusion`."""
    model = net()
    model.compile("adam", "mse")
    x = np.ones((8, 4), "float32")
    for callback, pattern in (
        (DeepFusion(at_step=9), "`at_step=9` lies past the end"),
        (DeepFusion(at_epoch=9), "`at_epoch=9` lies past the end"),
        (GrowModel(FusionOperator(), AtStep(9)), "`steps=9` lies past the end"),
        (GrowModel(FusionOperator(), AtEpoch(9)), "`epochs=9` lies past the end"),
    ):
        with pytest.warns(UserWarning, match=pattern):
            model.fit(x, x[:, :1], verbose=0, callbacks=[callback])
        assert callback.events == []


def test_every_argument_of_a_growth_stands_in_deep_fusion():
    """None is hidden in keyword arguments; those in common have one default."""
    own = inspect.signature(DeepFusion.__init__).parameters
    base = inspect.signature(GrowModel.__init__).parameters
    assert not any(p.kind is p.VAR_KEYWORD for p in own.values())
    for name in set(base) - {"self", "operator"}:
        assert name in own
        assert name == "schedule" or own[name].default == base[name].default


@pytest.mark.parametrize(
    ("function", "good", "bad"),
    [
        (is_integer, [0, 3, np.int32(2)], [-1, True, 1.0, "1", None, np.float32(1)]),
        (is_number, [0, -1.5, np.float32(2)], [True, np.nan, np.inf, "1", None, 1j]),
        (is_path, ["a", b"a".decode()], ["", None, 3, b"a"]),
    ],
)
def test_kinds_of_values(function, good, bad):
    assert all(map(function, good)) and not any(map(function, bad))
