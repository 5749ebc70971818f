import gc
import sys
import types

import keras
import models
import pytest
import rule_samples
import transformers

# Until the test modules that import these have moved to their rooms.
sys.modules["test_rules"] = rule_samples
sys.modules["test_norms"] = types.SimpleNamespace(
    Blocks=transformers.Blocks, ids_for=transformers.ids_for, mean_of=models.mean_of
)

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
