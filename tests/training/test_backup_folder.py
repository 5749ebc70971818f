"""The folder of the backups: one process at a time, and nothing else is touched."""

import os
import time

import keras
import numpy as np
import processes
import pytest
from keras import layers

import keras_fusion
from keras_fusion import DeepFusion, FusionError

X = np.random.default_rng(0).standard_normal((16, 4)).astype("float32")


def run(folder, *callbacks, epochs=2, stop=None, **options):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(8), layers.Dense(1)])
    model.compile("adam", "mse", jit_compile=False)
    backup = keras_fusion.BackupAndRestore(folder, **options)
    stops = [StopAt(stop)] if stop is not None else []
    fit = {"batch_size": 8, "verbose": 0, "shuffle": False, "epochs": epochs}
    return model.fit(X, X[:, :1], callbacks=[backup, *callbacks, *stops], **fit)


class StopAt(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KeyboardInterrupt


def content(folder):
    """Every file with its content, and every folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def fill(folder):
    """Files of somebody else's, some with names like ours."""
    for name in (
        "notes.txt",
        "backup-old/model.weights.h5",
        "backup-1.tar",
        "backup-/x",
        "backup-3x/state.json",
        "unfinished-thesis/chapter.txt",
        "unfinished-12-growth.json",
        "backup-9/only.txt",
        "results/state.json",
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"This is {name}.")
    (folder / "backup-77").symlink_to(folder / "results")
    return content(folder)


@pytest.mark.core
@pytest.mark.parametrize("delete", [True, False])
@pytest.mark.parametrize("save_freq", ["epoch", 1])
def test_strange_files_are_left_alone(delete, save_freq, tmp_path):
    """Before, while and after a run is interrupted and resumed."""
    strange = fill(tmp_path)
    options = {"delete_checkpoint": delete, "save_freq": save_freq}
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, DeepFusion(at_step=3, verbose=0), stop=2, epochs=3, **options)
    assert strange.items() <= content(tmp_path).items()
    grow = DeepFusion(at_step=3, verbose=0)
    history = run(tmp_path, grow, epochs=3, **options)
    assert history.epoch[-1] == 2 and len(grow.events) == 1
    after = content(tmp_path)
    assert strange.items() <= after.items()
    assert (after == strange) is delete


@pytest.mark.core
def test_the_folder_that_the_script_works_in(tmp_path, monkeypatch):
    """`BackupAndRestore('.')` deletes only what it has written."""
    monkeypatch.chdir(tmp_path)
    run(".")
    assert list(tmp_path.iterdir()) == []
    strange = fill(tmp_path)
    run(".", double_checkpoint=True)
    assert content(tmp_path) == strange
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    run("..")
    assert content(tmp_path) == strange | {"below": None}


def test_files_that_somebody_puts_into_a_backup(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop=1)
    (tmp_path / "backup-1" / "notes.txt").write_text("Mine.")
    assert run(tmp_path).epoch == [1]
    assert content(tmp_path) == {"backup-1": None, "backup-1/notes.txt": b"Mine."}


def test_a_new_folder_is_removed_at_the_end(tmp_path):
    run(tmp_path / "a" / "b")
    assert content(tmp_path) == {"a": None}


@pytest.mark.parametrize("kind", ["a file", "no permission"])
def test_a_folder_that_cannot_be_used(kind, tmp_path):
    folder = tmp_path / "backup"
    if kind == "a file":
        folder.write_text("")
    elif os.getuid() == 0:
        pytest.skip("The system refuses root nothing.")
    else:
        tmp_path.chmod(0o500)
    with pytest.raises(FusionError, match="backup` cannot be used|backup cannot be us"):
        run(folder)
    tmp_path.chmod(0o700)


# Two processes.


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None, process.stderr.read()[-3000:]
        time.sleep(0.1)


def test_the_second_process_is_refused(tmp_path):
    folder, ready, end = (tmp_path / name for name in ("backup", "ready", "end"))
    process = processes.start("locked_folder.py", folder, ready, end)
    try:
        wait_for(ready, process)
        # By another path, too.
        (tmp_path / "link").symlink_to(folder)
        for path in folder, tmp_path / "link":
            with pytest.raises(FusionError, match="Another process uses `backup_dir`"):
                run(path)
        assert run(tmp_path / "other").epoch == [0, 1]
        end.touch()
        assert process.wait(timeout=60) == 0, process.stderr.read()[-3000:]
    finally:
        process.kill()
        process.communicate()
    assert not folder.exists()
    assert run(folder).epoch == [0, 1]


def test_a_killed_process_leaves_no_lock(tmp_path):
    folder, ready, end = (tmp_path / name for name in ("backup", "ready", "end"))
    process = processes.start("locked_folder.py", folder, ready, end)
    try:
        wait_for(ready, process)
    finally:
        process.kill()
        process.communicate()
    with pytest.raises(FusionError, match="is of another run"):
        run(folder)  # The script at hand is another one; nobody is in its way.


def test_one_process_may_try_again(tmp_path):
    """After an error the callback that had the folder may still be there."""
    kept = []
    for stop in 1, 1, None:
        backup = keras_fusion.BackupAndRestore(tmp_path / "backup")
        kept.append(backup)
        model = keras.Sequential([keras.Input((4,)), layers.Dense(1)])
        model.compile("adam", "mse", jit_compile=False)
        stops = [StopAt(stop)] if stop else []
        try:
            model.fit(X, X[:, :1], epochs=2, verbose=0, callbacks=[backup, *stops])
        except KeyboardInterrupt:
            assert stop
    assert not (tmp_path / "backup").exists()
