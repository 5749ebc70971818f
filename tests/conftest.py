import gc

import keras
import pytest

# What importing made stays: `clear_session` collects after each test, and need not look
# at half a million old objects each time.
gc.collect()
gc.freeze()


@pytest.fixture(autouse=True)
def seeded():
    """Every test draws the same random numbers, alone or in company."""
    keras.utils.set_random_seed(0)
    yield
    keras.mixed_precision.set_global_policy("float32")
    keras.utils.clear_session()
