"""The demo, at a scale at which it takes a minute."""

import json

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_fusion.demo import __main__ as demo
from keras_fusion.demo import corpus
from keras_fusion.demo.flops import training_step_flops
from keras_fusion.demo.span_corruption import SpanCorruption


def test_corpus_is_real_text_and_split():
    first, again = corpus.standard_library(), corpus.standard_library()
    assert first == again
    assert not set(first.training) & set(first.validation)
    assert len(first.training) > 1000 and len(first.validation) > 20


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_span_corruption_hides_a_share(seed):
    task = SpanCorruption(96, 1000, 1)
    rows = np.random.default_rng(seed).integers(3, 900, (4, 96))
    inputs, targets = task.corrupt(rows, np.random.default_rng(seed))
    again = task.corrupt(rows, np.random.default_rng(seed))
    assert np.array_equal(inputs, again[0]) and np.array_equal(targets, again[1])
    for row, kept, hidden in zip(rows, inputs, targets, strict=True):
        words = [w for part in (kept, hidden) for w in part if 3 <= w < 900]
        assert sorted(words) == sorted(row)  # nothing is lost, nothing added
        share = sum(3 <= w < 900 for w in hidden) / len(row)
        assert 0.1 < share < 0.2


def test_flops_of_products_are_counted():
    def flops(*hidden):
        model = keras.Sequential([keras.Input((5, 6)), *hidden])
        model.compile("sgd", "mse")
        shape = model.output_shape[1:]
        shapes = ((2, 5, 6), (2, *shape), (2, 5))
        return training_step_flops(model, tuple(np.ones(s, "float32") for s in shapes))

    layers = keras.layers
    # Forward, and backward by the kernel; nothing lies below the first layer.
    first = 2 * (2 * 10 * 6 * 8)
    assert flops(layers.Dense(8)) == first
    second = 3 * (2 * 10 * 8 * 4)
    assert flops(layers.Dense(8), layers.Dense(4)) == first + second
    einsum = layers.EinsumDense("abc,cd->abd", (5, 4))
    assert flops(layers.Dense(8), einsum) == first + second


@pytest.mark.slow
def test_smoke_run(tmp_path, capsys):
    assert demo.main(["--smoke", "--output", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "from-scratch twin" in shown and "fused, at the end" in shown
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    assert json.loads((tmp_path / "figures.json").read_text())
