import gc

import keras
import pytest

# What importing made stays: a collection need not look at half a million old objects.
gc.collect()
gc.freeze()


@pytest.fixture(autouse=True)
def seeded(monkeypatch):
    """Every test draws the same random numbers, alone or in company."""
    keras.utils.set_random_seed(0)
    yield
    keras.mixed_precision.set_global_policy("float32")
    # It collects garbage, which takes half a second: once for each file is enough.
    monkeypatch.setattr(gc, "collect", lambda *args: 0)
    keras.utils.clear_session()


@pytest.fixture(autouse=True, scope="module")
def collected():
    """The models of a file are gone before the next one."""
    yield
    gc.collect()
