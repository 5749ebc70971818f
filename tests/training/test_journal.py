"""The journal: every change of a moment, once, whoever comes first; and on record."""

import contextlib
import copy
import json
import re
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_fusion
from keras_fusion import AnnealBlockNorms, DeepFusion, FusionError
from keras_fusion.training import journal
from keras_fusion.training.journal import Clock

X = np.random.default_rng(0).standard_normal((16, 4)).astype("float32")


def net():
    layers = keras.layers
    stack = [keras.Input((4,)), layers.Dense(4), layers.LayerNormalization()]
    return keras.Sequential([*stack, layers.Dense(1)])


def made():
    model = net()
    model.compile(keras.optimizers.Adam(0.01), "mse", jit_compile=False)
    return model


def fit(model, *callbacks, epochs=1):
    options = {"batch_size": 4, "verbose": 0, "shuffle": False, "epochs": epochs}
    return model.fit(X, X[:, :1], callbacks=list(callbacks), **options)


class Look(keras.callbacks.Callback):
    """The model's number of parameters after each batch and epoch."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append((batch, self.model.count_params()))

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append(("end", self.model.count_params()))


def test_all_changes_of_a_moment_happen_at_the_first_hook(tmp_path):
    """Two growths are due after step 2; a backup comes first, or a callback between."""
    sizes = [made().count_params()]
    for factor in (2, 4):
        sizes.append(keras_fusion.fuse(made(), factor=factor).count_params())
    backup = keras_fusion.BackupAndRestore(tmp_path, save_freq=2)
    for first in ([], [backup]):
        grows = [DeepFusion(at_step=2, verbose=0) for _ in range(2)]
        look = Look()
        fit(made(), *first, *grows[:1], look, *grows[1:])
        assert [size for _, size in look.seen] == [sizes[0], *[sizes[2]] * 4]
        events = [event for grow in grows for event in grow.events]
        assert [e.params_after for e in events] == sizes[1:]


def test_no_callback_calls_another_ones_hooks():
    folder = Path(journal.__file__).parent
    for path in folder.glob("*.py"):
        calls = re.findall(r"(\S+)\.on_(?:train|epoch|batch)\w*\(", path.read_text())
        assert not set(calls) - {"super()"}, f"{path.name}: {calls}"


def test_changes_of_an_epochs_end_happen_once(tmp_path):
    backup = keras_fusion.BackupAndRestore(tmp_path)
    grow = DeepFusion(at_epoch=1, verbose=0)
    model = made()
    fit(model, backup, grow, epochs=2)
    assert [(e.step, e.epoch) for e in grow.events] == [(4, 1)]
    (entry,) = journal.of(model).entries
    assert entry.change.event is grow.events[0]
    assert entry.change.event.seconds == grow.events[0].seconds > 0


def test_the_event_and_the_ramps_are_computed_once(tmp_path, monkeypatch):
    """What is on record is what the callback has, to the last digit."""
    calls = []
    of_growth = journal.ramps.of_growth

    def counted(*arguments):
        calls.append(arguments)
        return of_growth(*arguments)

    monkeypatch.setattr(journal.ramps, "of_growth", counted)
    path = tmp_path / "growth.json"
    grow = DeepFusion(at_step=2, rewarmup_steps=3, record=path, verbose=0)
    model = made()
    fit(model, grow)
    assert len(calls) == 1
    (change,) = json.loads(path.read_text())["body"]["changes"]
    assert change["event"] == grow.events[0].to_dict()
    (entry,) = journal.of(model).entries
    assert change["ramps"] == [ramp.get_config() for ramp in entry.change.ramps]


def test_a_record_has_the_change_before_the_model_has_it(tmp_path, monkeypatch):
    path, seen = tmp_path / "growth.json", []
    put = journal.swap.in_place

    @contextlib.contextmanager
    def watched(model, prepared):
        changes = json.loads(path.read_text())["body"]["changes"]
        seen.append((len(changes), changes[-1]["kind"], len(changes[-1]["before"])))
        assert changes[-1]["before"] == [list(v.shape) for v in model.weights]
        with put(model, prepared):
            yield

    monkeypatch.setattr(journal.swap, "in_place", watched)
    grow = DeepFusion(
        at_step=1,
        partners=[net()],
        norms="block",
        optimizer_state="reset",
        record=path,
        verbose=0,
    )
    fit(made(), grow, AnnealBlockNorms(steps=2))
    # The block norm's blend is a weight too.
    assert seen == [(1, "growth", 6), (2, "stock norms", 7)]


def test_measured_ramps_are_written_when_they_are_known(tmp_path):
    path, seen = tmp_path / "growth.json", []

    def measure(model, blocks, optimizer):
        seen.append(json.loads(path.read_text())["body"]["changes"][0]["ramps"])
        return 0.5

    grow = DeepFusion(at_step=2, learning_rate_factor=measure, record=path, verbose=0)
    fit(made(), grow)
    assert seen == [None]
    (change,) = json.loads(path.read_text())["body"]["changes"]
    assert change["ramps"][0]["factor"] == 0.5


def test_authors_are_in_the_order_of_their_fit():
    model = made()
    first, second = (DeepFusion(at_step=9, verbose=0) for _ in range(2))
    other = AnnealBlockNorms(steps=3)
    order = []

    class Order(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            authors = journal.of(self.model).authors(self)
            order.append([author.callback for author in authors])

    fit(model, first, other, second, Order(), epochs=3)
    fit(model, second, first, Order(), epochs=3)
    assert order == [[first, other, second], [second, first]]


def test_a_copied_callback_grows_on_its_own():
    first = DeepFusion(at_step=2, verbose=0)
    second = copy.deepcopy(first)
    for grow in (first, second):
        model = made()
        fit(model, grow)
        assert len(grow.events) == 1 and model.layers[0].units == 8


def test_clock():
    clock = Clock()
    assert not clock.end_batch(0)  # No epoch has begun.
    clock.begin_epoch(2, raw=20)
    assert (clock.epochs, clock.epoch, clock.raw) == (2, 3, 20)
    assert clock.end_batch(1) and not clock.end_batch(1)  # two steps an execution
    assert clock.raw == 22
    assert clock.end_epoch(2) and not clock.end_epoch(2)
    assert (clock.epochs, clock.epoch) == (3, 3)


def test_a_growth_outside_of_training_is_refused():
    grow = DeepFusion(at_step=2, verbose=0)
    grow.set_model(made())
    with pytest.raises(FusionError, match="seed is drawn when training begins"):
        grow.grow()
