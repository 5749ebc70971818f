"""Span corruption, packed rows and batches of the T5 pre-training."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_fusion.t5.batches import TrainingBatches, validation_batches
from keras_fusion.t5.rows import Rows
from keras_fusion.t5.span_corruption import SpanCorruption
from keras_fusion.t5.vocabulary import EOS_ID

FIRST = 30_000  # ids of tokens are below, those of sentinels end here
tasks = st.builds(
    lambda length, density, mean: SpanCorruption(
        length, FIRST, EOS_ID, density, mean, sentinels=length
    ),
    length=st.integers(2, 600),
    density=st.floats(0.01, 0.99),
    mean=st.floats(1.0, 10.0),
)


def corrupted(task, seed, rows=3):
    # Every token another one, so that each can be followed.
    tokens = np.arange(rows * task.length).reshape(rows, task.length) + 100
    inputs, targets = task.corrupt(tokens, np.random.default_rng(seed))
    return tokens, inputs, targets


@settings(max_examples=200, deadline=None)
@given(task=tasks, seed=st.integers(0, 2**31))
def test_each_token_is_in_inputs_or_targets_once(task, seed):
    for row, *parts in zip(*corrupted(task, seed), strict=True):
        lowest = FIRST - task.sentinels
        seen = [t for part in parts for t in part if EOS_ID < t <= lowest]
        assert sorted(seen) == sorted(row)


@settings(max_examples=200, deadline=None)
@given(task=tasks, seed=st.integers(0, 2**31))
def test_sentinels_are_in_order_and_the_same_in_both(task, seed):
    _, inputs, targets = corrupted(task, seed)
    expected = FIRST - np.arange(task.spans)
    for part in (*inputs, *targets):
        assert np.array_equal(part[part > FIRST - task.sentinels], expected)
        assert part[-1] == EOS_ID and (part == EOS_ID).sum() == 1


@settings(max_examples=200, deadline=None)
@given(task=tasks, seed=st.integers(0, 2**31))
def test_targets_put_into_inputs_restore_the_text(task, seed):
    for row, kept, hidden in zip(*corrupted(task, seed), strict=True):
        assert np.array_equal(task.restore(kept, hidden), row)


@pytest.mark.parametrize("length", [97, 568, 1024])
def test_noise_density_and_span_length_are_as_asked(length):
    task = SpanCorruption(length, FIRST, EOS_ID)
    mask = task.noise_mask(200, np.random.default_rng(0))
    assert mask.mean() == pytest.approx(0.15, abs=0.01)
    assert task.noise_tokens / task.spans == pytest.approx(3.0, rel=0.05)
    # Every place but the first is as likely to be cut out as another.
    assert np.ptp(mask.mean(axis=0)[length // 4 : -length // 4]) < 0.2


def test_a_row_worked_by_hand():
    """The sentence of the T5 paper's figure 2, with spans fixed by a mask."""
    text = "Thank you for inviting me to your party last week"
    task = SpanCorruption(10, 99, EOS_ID, noise_density=0.3, mean_span_length=1.5)
    mask = np.zeros((1, 10), bool)
    mask[0, [2, 3, 9]] = True  # a row ends with a span, as in T5's code
    object.__setattr__(task, "noise_mask", lambda rows, rng: mask)
    inputs, targets = task.corrupt(np.arange(10, 20)[None], None)
    spell = {99: "<X>", 98: "<Y>", EOS_ID: "</s>"} | dict(enumerate(text.split(), 10))
    assert " ".join(spell[t] for t in inputs[0]) == (
        "Thank you <X> me to your party last <Y> </s>"
    )
    assert " ".join(spell[t] for t in targets[0]) == "<X> for inviting <Y> week </s>"


def test_lengths_are_those_of_t5():
    """T5's random_spans_helper: inputs of 512 hold rows of 568, with targets of 114."""
    task = SpanCorruption.for_input_length(512, first_sentinel=32_099, eos_id=EOS_ID)
    assert (task.length, task.input_length, task.target_length) == (568, 512, 114)


@settings(max_examples=100, deadline=None)
@given(length=st.integers(4, 700), density=st.floats(0.05, 0.5))
def test_the_longest_row_that_fits(length, density):
    options = {"first_sentinel": FIRST, "eos_id": EOS_ID, "sentinels": 700}
    options |= {"noise_density": density}
    task = SpanCorruption.for_input_length(length, **options)
    longer = SpanCorruption(task.length + 1, **options)
    assert task.input_length <= length < longer.input_length


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 1}, "length=1"),
        ({"length": 50, "noise_density": 1.0}, "noise_density=1.0"),
        ({"length": 50, "mean_span_length": 0.5}, "mean_span_length=0.5"),
        ({"length": 600, "sentinels": 8}, "30 spans, more than sentinels=8"),
    ],
)
def test_corruption_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SpanCorruption(first_sentinel=FIRST, eos_id=EOS_ID, **arguments)


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 60), min_size=1, max_size=4),
    length=st.integers(1, 12),
    data=st.data(),
)
def test_rows_are_pieces_of_the_streams(sizes, length, data):
    streams = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    if not any(len(s) >= 2 * length - 1 for s in streams):
        with pytest.raises(ValueError, match=f"length={length}"):
            Rows(streams, length)
        return
    rows = Rows(streams, length)
    shift = data.draw(st.integers(0, length - 1))
    taken = rows.take(np.arange(len(rows)), shift)
    assert len(np.unique(taken)) == taken.size  # no token twice
    owners = np.searchsorted(np.cumsum(sizes), taken, side="right")
    assert (owners == owners[:, :1]).all()  # no row over the end of a stream
    assert (np.diff(taken, axis=1) == 1).all()


def training(seed=0, host=0, hosts=1, batch_size=4):
    rows = Rows([np.arange(100, 1000)], 20)
    return TrainingBatches(
        rows, SpanCorruption(20, FIRST, EOS_ID), batch_size, seed, host, hosts
    )


def equal(a, b):
    same = tf.nest.map_structure(np.array_equal, a, b)
    return all(tf.nest.flatten(same))


def test_batches_are_functions_of_seed_and_step():
    from_start = list(training().dataset().take(30))
    for step, batch in enumerate(from_start):
        assert equal(training()(step), batch)
    (resumed,) = training().dataset(start=23).take(1)
    assert equal(resumed, from_start[23])
    assert not equal(training(seed=1)(0), training()(0))


def test_an_epoch_has_every_row_once():
    batches = training()
    steps = len(batches.rows) // batches.batch_size
    for epoch in range(3):
        seen = []
        for step in range(epoch * steps, (epoch + 1) * steps):
            features, targets, _ = batches(step)
            for part in (features["encoder_token_ids"], targets):
                seen += part[(part >= 100) & (part < 1000)].tolist()
        assert len(set(seen)) == len(seen) == steps * 4 * 20


def test_hosts_share_a_batch_out():
    whole = training()
    parts = [training(host=h, hosts=2) for h in range(2)]
    for step in (0, 5):
        rows = [
            np.sort(np.concatenate([f["encoder_token_ids"], t], axis=1))[:, -20:]
            for b in (whole, *parts)
            for f, t, _ in [b(step)]
        ]
        # The spans are the hosts' own; the rows are those of the whole batch.
        first = [r.max(axis=1, where=r < 1000, initial=0) for r in rows]
        assert sorted(first[0]) == sorted([*first[1], *first[2]])
    with pytest.raises(ValueError, match="hosts=3, batch_size=4"):
        training(hosts=3)
    with pytest.raises(ValueError, match="fewer than batch_size=400"):
        training(batch_size=400)


def test_validation_is_the_same_at_every_pass():
    rows = Rows([np.arange(100, 400)], 20)
    batches = validation_batches(
        rows, SpanCorruption(20, FIRST, EOS_ID), batch_size=4, batches=5, seed=0
    )
    first, again = list(batches), list(batches)
    assert len(first) == 5 and all(map(equal, first, again))
