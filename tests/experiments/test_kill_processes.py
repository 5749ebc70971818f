"""A run of two processes on JAX is killed in a growth, and resumed."""

import random

import keras
import pytest

from experiments import kill_processes

pytestmark = [
    pytest.mark.core,
    pytest.mark.slow,
    pytest.mark.skipif(
        keras.config.backend() != "jax", reason="keras.distribution works on JAX"
    ),
]


def test_a_run_whose_process_was_killed_ends_as_one_that_nobody_killed(monkeypatch):
    monkeypatch.setattr(kill_processes, "AIMS", ("growth",) * 4)
    whole, _ = kill_processes.uninterrupted(1)
    found, hits = kill_processes.killed({"growth": 2.0}, random.Random(0), limit=1)
    assert len(hits) == 1
    assert kill_processes.difference(found, whole) <= kill_processes.TOLERANCE
