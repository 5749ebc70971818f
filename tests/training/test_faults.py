"""Real faults around a growth: the message is clear, and training goes on."""

import contextlib
import gc
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import types
import zipfile
from pathlib import Path

import keras
import numpy as np
import processes
import pytest
from fitting import fit, live_model
from models import values
from repository import ROOT

import keras_fusion
from keras_fusion import DeepFusion, FusionError, GrowthError, GrowthSchedule
from keras_fusion.training import swap
from keras_fusion.training.files import whole

pytestmark = pytest.mark.eager


class Before(keras.callbacks.Callback):
    """What the model was right before each growth, with something done then."""

    def __init__(self, action=lambda: None):
        super().__init__()
        self.action, self.values = action, None

    def before_growth(self, growth):
        self.values = values(growth.model)
        self.action()

    def after_growth(self, growth):
        pass


def watched(action=lambda: None, **options):
    grow = DeepFusion(**{"at_step": 3, "verbose": 0, **options})
    before = Before(action)
    grow.watchers.append(before)
    return grow, before


def assert_as_it_was(model, before):
    assert model.layers[1].output_dim == 8
    for ours, theirs in zip(values(model), before.values, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def assert_trains_on(model, before):
    """It is as it was, and trains; a growth without the fault then comes off."""
    assert_as_it_was(model, before)
    step = int(model.optimizer.iterations)
    fit(model, DeepFusion(at_step=step + 2, verbose=0))
    assert int(model.optimizer.iterations) == step + 8
    assert model.layers[1].output_dim == 16


@contextlib.contextmanager
def no_room(size=64):
    """No file may become larger: the system refuses to write on, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


# Memory and disk.


def test_out_of_memory_while_the_target_is_built():
    """The system really has no memory left for the larger one of two tables."""
    limits = resource.getrlimit(resource.RLIMIT_AS)

    def no_memory():
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        room = pages * resource.getpagesize() + 2**25  # 32 MB, and 128 are needed
        resource.setrlimit(resource.RLIMIT_AS, (room, limits[1]))

    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,), dtype="int32")])
    model.add(keras.layers.Embedding(1_000_000, 16))
    model.add(keras.layers.Dense(1))
    model.compile("sgd", "mse", jit_compile=False)
    x, y = np.arange(128).reshape(32, 4), np.ones((32, 4, 1))
    grow, before = watched(no_memory)
    try:
        with pytest.raises((GrowthError, FusionError), match="(?i)alloc|OOM|memory"):
            model.fit(x, y, batch_size=8, verbose=0, callbacks=[grow])
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert grow.events == []
    for ours, theirs in zip(values(model), before.values, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    model.fit(x, y, batch_size=8, verbose=0)
    model.fit(x, y, batch_size=8, verbose=0, callbacks=[DeepFusion(at_step=9)])
    assert model.layers[0].output_dim == 32


def test_disk_full_while_the_record_is_written(tmp_path):
    model, room = live_model(), no_room()
    path = tmp_path / "growth.json"
    grow, before = watched(room.__enter__, record=path)
    try:
        with pytest.raises(GrowthError, match="growth.json cannot be written.*large"):
            fit(model, grow)
    finally:
        room.__exit__(None, None, None)
    assert grow.events == [] and list(tmp_path.iterdir()) == []
    assert_trains_on(model, before)


def test_disk_full_after_the_growth(tmp_path):
    """What was measured on the grown model comes late: the growth stays."""
    room, path = no_room(), tmp_path / "growth.json"

    class Measured:
        def check(self, model):
            pass

        def __call__(self, model, blocks, optimizer):
            room.__enter__()
            return 0.5

    grow, _ = watched(record=path, learning_rate_factor=Measured())
    model = live_model()
    try:
        with pytest.warns(UserWarning, match="growth.json lacks the measured"):
            fit(model, grow)
    finally:
        room.__exit__(None, None, None)
    assert model.layers[1].output_dim == 16
    grow = DeepFusion(
        at_step=3, record=path, learning_rate_factor=Measured(), verbose=0
    )
    with pytest.raises(FusionError, match="killed at the growth of step 3"):
        grow.replay(live_model())
    grow.replay(model)  # It has the growth behind it, and the factor in its rate.
    assert len(grow.events) == 1


@pytest.mark.compiled
def test_disk_full_while_a_backup_is_written(tmp_path):
    """HDF5 may then take the process with it. The backup before is whole all the same."""
    script = processes.start("disk_full.py", tmp_path / "backup")
    script.communicate(timeout=300)
    assert script.returncode != 0
    names = [path.name for path in (tmp_path / "backup").iterdir()]
    assert "backup-1" in names and "backup-2" not in names
    model, expected = live_model(), live_model()
    fit(expected, DeepFusion(at_step=3, verbose=0), epochs=3)
    backup = keras_fusion.BackupAndRestore(tmp_path / "backup")
    grow = DeepFusion(at_step=3, verbose=0)
    history = fit(model, backup, grow, epochs=3)
    assert history.epoch == [1, 2] and len(grow.events) == 1
    for ours, theirs in zip(values(model), values(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_disk_that_is_too_full_for_a_backup(tmp_path, monkeypatch):
    """It is told before, as far as the system tells it."""
    full = types.SimpleNamespace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: full)
    model, backup = live_model(), keras_fusion.BackupAndRestore(tmp_path / "backup")
    with pytest.raises(FusionError, match="does not fit in .*backup, where 1,000 are"):
        fit(model, backup, epochs=1)
    monkeypatch.undo()
    fit(model, backup, epochs=1)


def test_files_are_whole_or_not_there(tmp_path):
    path = tmp_path / "file"
    with whole(path) as unfinished:
        unfinished.write_text("old")
    with no_room(), pytest.raises(OSError), whole(path) as unfinished:
        unfinished.write_text("new" * 100)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


# Partners that are not what they should be.


def bad_partner(kind, folder):
    """A partner's path or object, and what the error says."""
    path = folder / "partner.keras"
    partner = live_model()
    fit(partner, epochs=1)
    if kind == "truncated":
        partner.save(path)
        path.write_bytes(path.read_bytes()[:-1000])
        return path, r"partners\[0\].*partner.keras, cannot be read.*cut off"
    if kind == "missing":
        return path, r"partners\[0\].*partner.keras, is not there"
    if kind == "a Lambda":
        inputs = keras.Input((4,))
        outputs = keras.layers.Lambda(lambda x: x + 1)(inputs)
        keras.Model(inputs, outputs).save(path)
        return path, r"partners\[0\].*partner.keras, holds code \(a Lambda layer\)"
    if kind == "unknown":
        partner.save(path)
        with zipfile.ZipFile(path) as file:
            parts = {name: file.read(name) for name in file.namelist()}
        parts["config.json"] = parts["config.json"].replace(b"Functional", b"Unheard")
        with zipfile.ZipFile(path, "w") as file:
            for name, content in parts.items():
                file.writestr(name, content)
        return path, r"partners\[0\].*partner.keras, cannot be loaded: .*Unheard"
    if kind == "h5":
        return folder / "partner.h5", r"path of a `.keras` file.*partner.h5"
    value = np.nan if kind == "NaN" else np.inf
    kernel = partner.get_layer("logits").kernel
    kernel.assign(keras.ops.full(kernel.shape, value))
    if kind == "NaN":
        return partner, r"partners\[0\].*'logits/kernel' that are not finite"
    partner.save(path)
    return path, r"partners\[0\]`, .*partner.keras, has values in 'logits/kernel'"


@pytest.mark.parametrize(
    "kind", ["truncated", "missing", "a Lambda", "unknown", "h5", "NaN", "infinite"]
)
def test_bad_partners(kind, tmp_path):
    partner, pattern = bad_partner(kind, tmp_path)
    model, before = live_model(), Before()
    before.values = values(model)
    with pytest.raises(FusionError, match=pattern):
        fit(model, DeepFusion(at_step=3, partners=[partner], verbose=0))
    assert_as_it_was(model, before)


def test_safe_mode_cannot_be_switched_off(tmp_path):
    """What a program allows for its own files it does not allow for partners."""
    path, pattern = bad_partner("a Lambda", tmp_path)
    keras.config.enable_unsafe_deserialization()  # until the session is cleared
    with pytest.raises(FusionError, match=pattern):
        fit(live_model(), DeepFusion(at_step=3, partners=[path]))


# Exceptions and signals.


def test_an_exception_in_a_schedule():
    class Broken(GrowthSchedule):
        def should_grow(self, moment):
            if moment.step == 3:
                before.values = values(model)
                raise ZeroDivisionError("float division by zero")
            return False

    model, before = live_model(), Before()
    with pytest.raises(
        GrowthError, match="Broken failed at step 3.*ZeroDivisionError.*as it was"
    ):
        fit(model, DeepFusion(schedule=Broken()))
    assert_trains_on(model, before)


@pytest.fixture
def interruptible():
    """SIGINT interrupts, also in a shell's background, where it is ignored."""
    gc.collect()  # Python drops an interrupt that falls into a finalizer.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.mark.parametrize("delay", [0.0, 0.03, 0.1, 0.3])
def test_keyboard_interrupt_in_a_growth(delay, interruptible):
    """A real SIGINT, at some moment of the growth: it happens whole or not at all."""
    timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
    grow, before = watched(timer.start)
    model = live_model()
    try:
        with pytest.raises(KeyboardInterrupt):
            fit(model, grow, epochs=200)
    finally:
        timer.cancel()
    if grow.events:
        assert model.layers[1].output_dim == 16
        fit(model)
    else:
        assert_trains_on(model, before)


def test_keyboard_interrupt_while_the_model_is_swapped(monkeypatch, interruptible):
    """It is held back until the growth is done, and comes then."""
    put = swap.graft.grafted

    @contextlib.contextmanager
    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        with put(*arguments):
            os.kill(os.getpid(), signal.SIGINT)
            yield

    monkeypatch.setattr(swap.graft, "grafted", interrupted)
    model, grow = live_model(), DeepFusion(at_step=3, verbose=0)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(model, grow)
    assert model.layers[1].output_dim == 16 and len(grow.events) == 1
    assert signal.getsignal(signal.SIGINT) is handler
    monkeypatch.undo()
    fit(model, grow)
    assert len(grow.events) == 1


def test_growth_in_another_thread():
    """Signals go to the main thread; elsewhere there is nothing to hold back."""
    model, grow = live_model(), DeepFusion(at_step=3, verbose=0)
    thread = threading.Thread(target=fit, args=(model, grow))
    thread.start()
    thread.join()
    assert len(grow.events) == 1


@pytest.mark.slow
def test_kills_at_random_moments(tmp_path):
    """Six real SIGKILLs; `experiments.kill_resume --kills 200` is the long form."""
    path = tmp_path / "result.json"
    command = [sys.executable, "-m", "experiments.kill_resume", "--kills", "6"]
    command += ["--variants", "1", "--setups", "plain"]
    done = subprocess.run(
        [*command, "--results", str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    found = json.loads(path.read_text())
    assert found["kills"] == 6 and found["identical_runs"] == found["runs"]
