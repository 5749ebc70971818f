"""State attached to a model or an optimizer: it stays in training, and in no copy."""

import copy
import gc
import pickle
import weakref

import keras
import numpy as np
import pytest

from keras_fusion import DeepFusion, fuse
from keras_fusion.layout import parent_blocks
from keras_fusion.models import private
from keras_fusion.training import journal

pytestmark = pytest.mark.core

X = np.random.default_rng(0).standard_normal((16, 4)).astype("float32")


class State:
    pass


def made():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu")])
    model.add(keras.layers.Dense(1))
    model.compile(keras.optimizers.Adam(0.01), "mse")
    return model


def fit(model, *callbacks):
    options = {"batch_size": 4, "verbose": 0, "shuffle": False}
    return model.fit(X, X[:, :1], callbacks=list(callbacks), **options)


def test_one_value_per_class():
    model = made()
    assert private.attached(model, State) is None
    state = private.attach(model, State())
    private.attach(model, 3)
    assert private.attached(model, State) is state and private.attached(model, int) == 3
    assert private.attached(object(), State) is None
    other = private.attach(model, State())
    assert private.attached(model, State) is other


def saved(model, folder):
    model.save(folder / "model.keras")
    return keras.saving.load_model(folder / "model.keras")


COPIES = {
    "copy": lambda model, folder: copy.copy(model),
    "deepcopy": lambda model, folder: copy.deepcopy(model),
    "pickle": lambda model, folder: pickle.loads(pickle.dumps(model)),
    "clone": lambda model, folder: keras.models.clone_model(model),
    "config": lambda model, folder: type(model).from_config(model.get_config()),
    "file": saved,
}


@pytest.mark.filterwarnings("ignore:Skipping variable loading")
@pytest.mark.parametrize("way", COPIES)
def test_copies_begin_without(way, tmp_path):
    model = made()
    fit(model)
    for owner in (model, model.optimizer):
        private.attach(owner, State())
    names = sorted(v.path for v in model.variables)
    twin = COPIES[way](model, tmp_path)
    assert private.attached(twin, State) is None
    assert private.attached(getattr(twin, "optimizer", None), State) is None
    assert sorted(v.path for v in model.variables) == names
    assert private.attached(model, State) is not None


def test_a_growth_leaves_it_in_place():
    model = made()
    state = private.attach(model, State())
    of_optimizer = private.attach(model.optimizer, State())
    grow = DeepFusion(at_step=2, verbose=0)
    fit(model, grow)
    assert model.layers[0].units == 16
    assert private.attached(model, State) is state
    assert private.attached(model.optimizer, State) is of_optimizer
    assert parent_blocks.of(model) is grow.blocks


def test_what_a_target_has_stays_there():
    """`into` may be a model with a past; the live model has its own."""
    model, target = made(), fuse([made(), made()])
    assert parent_blocks.of(target) is not None
    own = journal.of(model)
    journal.of(target)
    grow = DeepFusion(at_step=2, into=target, verbose=0)
    fit(model, grow)
    assert model.layers[0].units == 16
    assert journal.of(model) is own and len(own.entries) == 1
    assert parent_blocks.of(model) is grow.blocks


def test_it_is_freed_with_its_owner():
    model = made()
    grow = DeepFusion(at_step=2, rewarmup_steps=5, verbose=0)
    fit(model, grow)
    refs = [model, model.optimizer, journal.of(model), parent_blocks.of(model)]
    refs = [weakref.ref(thing) for thing in refs]
    del model, grow
    gc.collect()
    assert [ref() for ref in refs] == [None] * 4


def test_the_journal_keeps_no_callback_alive():
    model, grow = made(), DeepFusion(at_step=2, verbose=0)
    fit(model, grow)
    ref = weakref.ref(grow)
    del grow
    gc.collect()
    assert ref() is None
    (entry,) = journal.of(model).entries
    assert entry.author is None and entry.change.step == 2
