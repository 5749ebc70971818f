"""The demo, at a scale at which it takes a minute."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_fusion.demo import __main__ as demo
from keras_fusion.t5 import corpus
from keras_fusion.t5.span_corruption import SpanCorruption


def test_corpus_is_real_text_and_split():
    first = corpus.standard_library()
    corpus.standard_library.cache_clear()
    assert first == corpus.standard_library()
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


@pytest.mark.slow
def test_smoke_run(tmp_path, capsys):
    assert demo.main(["--smoke", "--output", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    for row in ("mean of their logits", "small model alone", "from-scratch twin"):
        assert row in shown
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    assert json.loads((tmp_path / "figures.json").read_text())
