import gc

import keras
import pytest

# What importing made stays: a collection need not look at half a million old objects.
gc.collect()
gc.freeze()


def pytest_collection_modifyitems(config, items):
    """Of a test with `core(*ids)` the other parameters run on TensorFlow alone."""
    if config.option.markexpr == "core":
        others = [item for item in items if not _is_core(item)]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in others]


def _is_core(item):
    mark = item.get_closest_marker("core")
    return not (mark and mark.args) or item.callspec.id in mark.args


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
