"""Exceptions at random points of a growth: it is undone, or it has happened, wholly.

KERAS_FUSION_FAULTS=100 tries as many points with each kind of growth.
"""

import os
import random
import signal
import sys
from inspect import CO_GENERATOR
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers
from models import numpy, values

import keras_fusion
from keras_fusion import DeepFusion, GrowthSchedule

PACKAGE = str(Path(keras_fusion.__file__).parent)
COUNT = int(os.environ.get("KERAS_FUSION_FAULTS", 8))
X = np.random.default_rng(0).standard_normal((16, 4)).astype("float32")

pytestmark = pytest.mark.core


class Fault(Exception):
    """What goes wrong, as a full disk or a bug might."""


class Never(GrowthSchedule):
    def should_grow(self, moment):
        return False


def made():
    norm = layers.LayerNormalization()
    stack = [layers.Dense(8, "relu"), norm, layers.Dropout(0.1), layers.Dense(1)]
    model = keras.Sequential([keras.Input((4,)), *stack])
    model.compile(keras.optimizers.Adam(0.01), "mse", jit_compile=False)
    return model


def fit(model, *callbacks):
    options = {"batch_size": 8, "verbose": 0, "shuffle": False}
    return model.fit(X, X[:, :1], callbacks=list(callbacks), **options)


def partner():
    model = made()
    fit(model)
    return model


KINDS = {
    "itself": dict,
    "reset": lambda: {"optimizer_state": "reset", "rewarmup_steps": 5},
    "measured": lambda: {"learning_rate_factor": lambda *_: 0.5},
    "partner": lambda: {"partners": [partner()], "norms": "block"},
}


class At:
    """Counts the calls of the package's functions, and raises at one of them."""

    def __init__(self, place=None, error=Fault):
        self.place, self.error, self.calls = place, error, 0

    def __enter__(self):
        sys.setprofile(self)
        return self

    def __exit__(self, *error):
        sys.setprofile(None)

    def __call__(self, frame, event, argument):
        code = frame.f_code
        # A generator that Python goes on with cannot fail before its next line.
        if (
            event != "call"
            or not code.co_filename.startswith(PACKAGE)
            or code.co_flags & CO_GENERATOR
        ):
            return
        self.calls += 1
        if self.calls == self.place:
            raise self.error(f"in {code.co_qualname}")


def attributes(owner):
    """The attributes of an object, and which objects they are."""
    lists = (list, tuple)
    return {
        name: (id(value), [*map(id, value)] if isinstance(value, lists) else None)
        for name, value in vars(owner).items()
    }


def state(model, grow, record):
    """Everything that a growth changes."""
    optimizer = model.optimizer
    return {
        "model": attributes(model),
        "optimizer": attributes(optimizer),
        "rate": float(optimizer.learning_rate),
        "events": list(grow.events),
        "blocks": grow.blocks,
        "record": record.read_bytes() if record.exists() else None,
        "folder": sorted(path.name for path in record.parent.iterdir()),
        "keras": {k: v for k, v in vars(keras.Variable).items() if callable(v)},
        "signal": signal.getsignal(signal.SIGINT),
        "random": (random.getstate(), repr(np.random.get_state())),
    }


def numbers(model):
    return [*values(model), *map(numpy, model.optimizer.variables)]


def begun(kind, record):
    model = made()
    grow = DeepFusion(schedule=Never(), record=record, verbose=0, **KINDS[kind]())
    fit(model, grow)
    return model, grow


@pytest.mark.core("itself", "partner")
@pytest.mark.parametrize("kind", KINDS)
def test_growth_happens_wholly_or_not_at_all(kind, tmp_path):
    record = tmp_path / "run" / "growth.json"
    record.parent.mkdir()
    model, grow = begun(kind, record)
    with At() as counted:
        grow.grow()
    assert counted.calls > 500
    record.unlink()
    model, grow = begun(kind, record)
    rng = random.Random(0)
    # Most calls are those of the preparation, which changes nothing: every second fault
    # comes later.
    places = [
        rng.randint(1 if i % 2 else counted.calls * 3 // 4, counted.calls)
        for i in range(COUNT)
    ]
    for i, place in enumerate(places):
        before, held = state(model, grow, record), numbers(model)
        try:
            with At(place, KeyboardInterrupt if i % 3 == 0 else Fault):
                grow.grow()
        except (keras_fusion.FusionError, keras_fusion.GrowthError, Fault) as error:
            message = f"call {place}, {error!r}"
        except KeyboardInterrupt as error:
            message = f"call {place}, {error!r}"
        else:
            message = f"call {place}, without an error"
        if not grow.events:
            after = state(model, grow, record)
            different = [name for name in before if before[name] != after[name]]
            assert not different, f"{message}: {different}"
            for ours, theirs in zip(numbers(model), held, strict=True):
                np.testing.assert_array_equal(ours, theirs, err_msg=message)
            continue
        assert model.layers[0].units == 16 and record.exists(), message
        assert grow.blocks is not None and len(grow.events) == 1
        fit(model)
        record.unlink()
        model, grow = begun(kind, record)
    fit(model)
    grow.grow()
    fit(model)
    assert model.layers[0].units == 16 and len(grow.events) == 1
