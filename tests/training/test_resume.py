"""Runs with growths that are resumed in a new process end as if uninterrupted."""

import copy
import json

import keras
import numpy as np
import pytest
from resumed_runs import (
    GROWTHS,
    Crash,
    Steps,
    assert_equal,
    assert_same,
    made,
    net,
    run,
    state,
    uninterrupted,
    untimed,
)

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
from keras_fusion.training.files import whole_folder


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
def test_resumes_after_crashes(kind, scheduled, order, crashes, tmp_path):
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


def test_a_damaged_backup_gives_way_to_the_one_before(tmp_path):
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
