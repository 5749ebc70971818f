"""Runs with growths that are resumed in a new process end as if uninterrupted."""

import contextlib
import copy
import dataclasses
import json

import keras
import numpy as np
import pytest

import keras_fusion
from keras_fusion import (
    AnnealBlockNorms,
    AtStep,
    Chain,
    DeepFusion,
    DepthStacking,
    FusionError,
    GrowModel,
    HyperCloning,
    OnPlateau,
)
from keras_fusion.dynamics import WhenItPays
from keras_fusion.models import processes
from keras_fusion.training import files
from keras_fusion.training.files import whole_folder

EPOCHS, STEPS = 4, 4  # of eight examples each


class Crash(Exception):
    """What stands for the process's end."""


class CrashAt(keras.callbacks.Callback):
    """Ends the run at a moment: `(epoch, batch)`, or `(epoch, None)` at its end."""

    def __init__(self, moment):
        super().__init__()
        self.moment = moment

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.moment:
            raise Crash

    def on_epoch_end(self, epoch, logs=None):
        if (epoch, None) == self.moment:
            raise Crash


# On PyTorch, dropout without a seed draws from PyTorch's own generator.
DROPOUT = 0.0 if keras.config.backend() == "torch" else 0.2


def net(norm=None, width=8, dropout=DROPOUT):
    layers = keras.layers
    stack = [keras.Input((6,)), layers.Dense(width, "relu"), layers.Dropout(dropout)]
    stack += [norm()] if norm else []
    return keras.Sequential([*stack, layers.Dense(width, "relu"), layers.Dense(1)])


# Compiling takes most of the tests' time: on TensorFlow only one of them does it.
EAGERLY = keras.config.backend() == "tensorflow"


def made(scheduled=False, optimizer=None, eagerly=EAGERLY, **options):
    """The model as a script builds it."""
    keras.utils.set_random_seed(7)
    model = net(**options)
    rate = 0.02
    if scheduled:
        rate = keras.optimizers.schedules.CosineDecay(0.02, 20)
    optimizer = optimizer or keras.optimizers.Adam(rate)
    model.compile(optimizer, "mse", run_eagerly=eagerly)
    return model


def run(*callbacks, crash=None, model=None, epochs=EPOCHS, initial_epoch=0, **options):
    """A script from its start: the small model is built, and trained with callbacks."""
    model = model or made(**options)
    x = np.random.default_rng(1).standard_normal((8 * STEPS, 6)).astype("float32")
    y = x[:, :1] * x[:, 1:2]
    callbacks = [*callbacks, *([CrashAt(crash)] if crash else [])]
    with contextlib.suppress(Crash):
        model.fit(
            x,
            y,
            batch_size=8,
            epochs=epochs,
            initial_epoch=initial_epoch,
            shuffle=False,
            verbose=0,
            validation_data=(x, y),
            callbacks=callbacks,
        )
        assert crash is None
    return model


def state(model):
    values = (*model.weights, *model.optimizer.variables)
    return [keras.ops.convert_to_numpy(v) for v in values]


def assert_equal(ours, theirs):
    assert [a.shape for a in ours] == [b.shape for b in theirs]
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


def untimed(events):
    return [dataclasses.replace(event, seconds=0) for event in events]


GROWTHS = {
    "steps": lambda **k: DeepFusion(at_step=[3, 9], **k),
    "epochs": lambda **k: DeepFusion(at_epoch=[1, 2], **k),
    "ramps": lambda **k: DeepFusion(
        at_step=[3, 9],
        optimizer_state="reset",
        learning_rate_factor=0.7,
        learning_rate_multipliers="width",
        rewarmup_steps=6,
        **k,
    ),
    "plateau": lambda **k: DeepFusion(
        schedule=OnPlateau("val_loss", patience=2, min_delta=100.0), **k
    ),
}


@pytest.fixture(scope="module")
def uninterrupted():
    """The runs that the others must equal, each made once."""
    made = {}

    def of(kind, **options):
        key = (kind, *options.items())
        if key not in made:
            grow = GROWTHS[kind](verbose=0)
            made[key] = (state(run(grow, **options)), untimed(grow.events))
        return made[key]

    return of


def assert_same(model, grow, expected):
    values, events = expected
    assert untimed(grow.events) == events and events
    assert_equal(state(model), values)


# Our own callback.


@pytest.mark.parametrize(
    ("kind", "scheduled", "order", "crashes"),
    [
        ("steps", False, "backup first", [(0, 1), (0, 2), (1, 0), (2, 0), (3, 2)]),
        ("steps", True, "backup last", [(1, None), (2, None)]),
        ("epochs", False, "backup first", [(0, None), (1, None)]),
        ("ramps", False, "backup first", [(0, None), (2, 0), (3, 0)]),
        ("ramps", True, "backup last", [(1, 1), (2, 1)]),
        ("plateau", False, "backup first", [(1, 2), (2, 1)]),
    ],
)
def test_resumes_after_crashes(
    kind, scheduled, order, crashes, tmp_path, uninterrupted
):
    """To the bit, with the events, wherever the callback stands in the list."""
    for crash in [*crashes, None]:
        grow = GROWTHS[kind](verbose=0)
        backup = keras_fusion.BackupAndRestore(tmp_path / "backup")
        callbacks = [backup, grow] if order == "backup first" else [grow, backup]
        model = run(*callbacks, crash=crash, scheduled=scheduled)
    assert_same(model, grow, uninterrupted(kind, scheduled=scheduled))
    assert not (tmp_path / "backup").exists()


@pytest.mark.core
def test_resumes_on_every_backend(tmp_path):
    expected = state(run(DeepFusion(at_step=3, verbose=0), eagerly=False))
    for crash in [(1, 1), None]:
        grow = DeepFusion(at_step=3, verbose=0)
        backup = keras_fusion.BackupAndRestore(tmp_path / "backup")
        model = run(backup, grow, crash=crash, eagerly=False)
    assert len(grow.events) == 1
    for ours, theirs in zip(state(model), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_block_norms_are_annealed_across_crashes(tmp_path):
    """Where the norms' kind changes the variables do; and two callbacks change them."""
    keras.utils.set_random_seed(3)
    partner = net(keras.layers.LayerNormalization)

    def callbacks():
        return [
            AnnealBlockNorms(steps=4),
            DeepFusion(
                at_step=2,
                partners=[partner],
                norms="block",
                optimizer_state="reset",
                verbose=0,
            ),
            DeepFusion(at_step=10, verbose=0),
        ]

    norm = keras.layers.LayerNormalization
    expected = state(run(*callbacks(), norm=norm))
    for crash in [(1, 0), (2, 0), (3, 0), None]:
        backup = keras_fusion.BackupAndRestore(tmp_path / "backup")
        anneal, first, second = callbacks()
        model = run(backup, anneal, first, second, norm=norm, crash=crash)
    assert_equal(state(model), expected)
    assert [e.step for e in first.events + second.events] == [2, 10]


def test_depth_and_width_in_one_growth(tmp_path):
    def residual():
        keras.utils.set_random_seed(7)
        inputs = keras.Input((6,))
        x = keras.layers.Dense(8)(inputs)
        for _ in range(2):
            x = x + keras.layers.Dense(8, activation="relu")(x)
        model = keras.Model(inputs, keras.layers.Dense(1)(x))
        model.compile(keras.optimizers.Adam(0.02), "mse", jit_compile=False)
        return model

    def growth():
        operator = Chain([DepthStacking(), HyperCloning(noise=0.1)])
        return GrowModel(operator, AtStep(3), verbose=0)

    expected = state(run(growth(), model=residual()))
    for crash in [(1, 1), None]:
        backup = keras_fusion.BackupAndRestore(tmp_path / "backup")
        model = run(backup, growth(), model=residual(), crash=crash)
    assert_equal(state(model), expected)


def test_backups_in_mid_epoch(tmp_path):
    """The weights and growths are those of the batch; the data starts its epoch anew."""
    backup = keras_fusion.BackupAndRestore(tmp_path / "backup", save_freq=3)
    grow = DeepFusion(at_step=6, verbose=0)
    run(backup, grow, crash=(1, 2))
    backup = keras_fusion.BackupAndRestore(tmp_path / "backup", save_freq=3)
    again, log = DeepFusion(at_step=6, verbose=0), Steps()
    model = run(backup, again, log)
    assert untimed(again.events) == untimed(grow.events)
    # Backed up after step 6, right after the growth, in the second epoch.
    assert (log.epochs, log.first) == ([1, 2, 3], 6)
    assert model.layers[0].units == 16


class Steps(keras.callbacks.Callback):
    """Where a run began, and the epochs that it had."""

    def __init__(self):
        super().__init__()
        self.epochs, self.first = [], None

    def on_epoch_begin(self, epoch, logs=None):
        self.epochs.append(epoch)

    def on_train_batch_begin(self, batch, logs=None):
        if self.first is None:
            self.first = int(self.model.optimizer.iterations)


def test_a_run_that_is_over_leaves_nothing_behind(tmp_path):
    """A second fit() of the same script begins where it is told."""
    folder, log = tmp_path / "backup", Steps()
    run(keras_fusion.BackupAndRestore(folder), crash=(2, 0))
    model = run(keras_fusion.BackupAndRestore(folder))
    run(log, model=model)
    assert log.epochs == [0, 1, 2, 3]
    kept = keras_fusion.BackupAndRestore(folder, delete_checkpoint=False)
    run(kept, model=model)
    assert [path.name for path in folder.iterdir()] == ["backup-4"]


def test_a_damaged_backup_gives_way_to_the_one_before(tmp_path, uninterrupted):
    def callbacks():
        grow = GROWTHS["steps"](verbose=0)
        folder = tmp_path / "backup"
        return keras_fusion.BackupAndRestore(folder, double_checkpoint=True), grow

    run(*callbacks(), crash=(2, 0))
    backups = sorted((tmp_path / "backup").iterdir())
    assert [path.name for path in backups] == ["backup-1", "backup-2"]
    weights = backups[1] / "model.weights.h5"
    weights.write_bytes(weights.read_bytes()[:-1])
    backup, grow = callbacks()
    with pytest.warns(UserWarning, match="backup-2.*damaged.*from the backup before"):
        model = run(backup, grow)
    assert_same(model, grow, uninterrupted("steps"))


def test_what_a_killed_process_left_is_removed(tmp_path):
    folder = tmp_path / "backup"
    with pytest.raises(Crash), whole_folder(folder / "backup-7"):
        raise Crash
    assert list(folder.iterdir()) == []
    (folder / "unfinished-1-backup-7").mkdir()
    (folder / "unfinished-1-backup-7" / "model.weights.h5").write_text("half")
    backup = keras_fusion.BackupAndRestore(folder, delete_checkpoint=False)
    run(backup, epochs=1)
    assert [path.name for path in folder.iterdir()] == ["backup-1"]


# Keras's own callbacks and checkpoints, next to a record.


@pytest.mark.parametrize(
    ("kind", "order"), [("epochs", "backup first"), ("steps", "backup last")]
)
def test_beside_kerass_backup(kind, order, tmp_path, uninterrupted):
    folder = tmp_path / "backup"
    for crash in [(1, 1), (2, 1), None]:
        grow = GROWTHS[kind](verbose=0, record=folder / "growth.json")
        backup = keras.callbacks.BackupAndRestore(folder)
        callbacks = [backup, grow] if order == "backup first" else [grow, backup]
        model = run(*callbacks, crash=crash, dropout=0.0)
    # Without dropout, whose state is not in Keras's files of weights.
    assert_same(model, grow, uninterrupted(kind, dropout=0.0))
    assert not folder.exists()


def test_a_record_ahead_of_the_backup(tmp_path, uninterrupted):
    """The growth of step 3 came after the last backup: it is done at its time."""
    path = tmp_path / "growth.json"
    run(GROWTHS["steps"](verbose=0, record=path), crash=(1, 0), dropout=0.0)
    assert len(json.loads(path.read_text())["body"]["changes"]) == 1
    grow = GROWTHS["steps"](verbose=0, record=path)
    model = run(grow, dropout=0.0)
    assert_same(model, grow, uninterrupted("steps", dropout=0.0))


def test_weights_of_a_model_checkpoint(tmp_path, uninterrupted):
    path = tmp_path / "growth.json"
    file = str(tmp_path / "{epoch}.weights.h5")
    checkpoint = keras.callbacks.ModelCheckpoint(file, save_weights_only=True)
    grow = GROWTHS["ramps"](verbose=0, record=path)
    run(grow, checkpoint, dropout=0.0)
    for epoch, growths, by_file in (1, 1, True), (2, 1, False), (3, 2, True):
        weights = file.format(epoch=epoch)
        model = made(dropout=0.0)
        grow = GROWTHS["ramps"](verbose=0, record=path)
        grow.replay(model, growths=weights if by_file else growths)
        model.load_weights(weights)
        assert len(grow.events) == growths
        if epoch == 2:  # in the middle of a ramp
            model = run(grow, model=model, initial_epoch=epoch)
            assert_same(model, grow, uninterrupted("ramps", dropout=0.0))


def test_a_whole_model_of_a_model_checkpoint(tmp_path, uninterrupted):
    """It has its shape and optimizer; the callback counts its growths as done."""
    path, file = tmp_path / "growth.json", tmp_path / "model.keras"
    checkpoint = keras.callbacks.ModelCheckpoint(str(file))
    callbacks = GROWTHS["ramps"](verbose=0, record=path), checkpoint
    run(*callbacks, crash=(2, 1), dropout=0.0)
    grow = GROWTHS["ramps"](verbose=0, record=path)
    model = keras.models.load_model(file)
    model = run(grow, model=model, initial_epoch=2)
    # A file does not hold the multipliers; the rest is as it was.
    values, events = uninterrupted("ramps", dropout=0.0)
    assert untimed(grow.events)[0] == events[0]
    assert [e.step for e in grow.events] == [e.step for e in events]
    assert [v.shape for v in state(model)] == [v.shape for v in values]


def test_a_tensorflow_checkpoint(tmp_path, uninterrupted):
    import tensorflow as tf

    path = tmp_path / "growth.json"

    class Save(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            checkpoint = tf.train.Checkpoint(
                model=self.model, optimizer=self.model.optimizer
            )
            checkpoint.write(str(tmp_path / str(epoch + 1)))

    run(GROWTHS["ramps"](verbose=0, record=path), Save(), dropout=0.0)
    model = made(dropout=0.0)
    grow = GROWTHS["ramps"](verbose=0, record=path)
    grow.replay(model, growths=1)
    checkpoint = tf.train.Checkpoint(model=model, optimizer=model.optimizer)
    checkpoint.read(str(tmp_path / "2")).assert_consumed()
    model = run(grow, model=model, initial_epoch=2)
    assert_same(model, grow, uninterrupted("ramps", dropout=0.0))


def test_partners_are_known_by_their_weights(tmp_path):
    """A partner's file may have been moved, but not changed."""
    partner = made()
    run(model=partner, epochs=1)
    partner.save(tmp_path / "a.keras")
    folder = tmp_path / "backup"

    def callbacks(file):
        grow = DeepFusion(at_step=3, partners=[tmp_path / file], verbose=0)
        return keras_fusion.BackupAndRestore(folder), grow

    run(*callbacks("a.keras"), crash=(1, 0))
    (tmp_path / "a.keras").rename(tmp_path / "b.keras")
    run(*callbacks("b.keras"), crash=(2, 0))
    partner.layers[0].bias.assign_add(keras.ops.ones((8,)))
    partner.save(tmp_path / "b.keras")
    with pytest.raises(FusionError, match=r"operator\.partners\[0\]\.sha256.*record"):
        run(*callbacks("b.keras"))


# What does not fit is refused, and nothing has changed.

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


def test_configs_round_trip(tmp_path):
    backup = keras_fusion.BackupAndRestore(tmp_path, save_freq=3)
    again = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(backup)
    )
    assert again.get_config() == backup.get_config()
    grow = DeepFusion(at_step=3, record=tmp_path / "growth.json")
    again = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(grow)
    )
    assert again.record == str(tmp_path / "growth.json")


@pytest.mark.parametrize(
    "schedule",
    [OnPlateau("loss", patience=3), WhenItPays(3.0, parameters_ratio=3.0)],
    ids=lambda schedule: type(schedule).__name__,
)
def test_schedules_go_on_from_their_state(schedule):
    """Also through JSON, at every point of a row of losses."""
    losses = [3.0, 2.5, 2.3, 2.25, 2.24, 2.24, 2.24, 2.24]

    def decide(schedule, state=None, start=0):
        schedule.reset()
        if state is not None:
            schedule.set_state(json.loads(json.dumps(state)))
        answers, states = [], []
        for i, loss in list(enumerate(losses))[start:]:
            states.append(schedule.get_state())
            moment = keras_fusion.Moment(10 * (i + 1), i + 1, 0, {"loss": loss})
            answers.append(schedule.should_grow(moment))
        return answers, copy.deepcopy(states)

    if hasattr(schedule, "cost_ratio"):
        schedule.monitor = "loss"
    answers, states = decide(schedule)
    assert any(answers) or hasattr(schedule, "cost_ratio")
    for start, held in enumerate(states):
        assert decide(schedule, held, start)[0] == answers[start:]
