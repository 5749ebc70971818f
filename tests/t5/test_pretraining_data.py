"""Span corruption, packed rows, token files and batches of the T5 pre-training."""

import dataclasses
import re

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from t5_stores import write_recipe

from keras_fusion.errors import FusionError
from keras_fusion.t5 import data, documents, recipe, token_files
from keras_fusion.t5.batches import TrainingBatches, validation_batches
from keras_fusion.t5.rows import Rows
from keras_fusion.t5.span_corruption import SpanCorruption
from keras_fusion.t5.vocabulary import EOS_ID, UNKNOWN_ID, Vocabulary

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


@pytest.fixture(scope="module")
def vocabulary():
    source = documents.standard_library()
    texts = source.training[0]().take(3000).as_numpy_iterator()
    return Vocabulary.train((t.decode() for t in texts), size=600, sentinels=32)


def test_token_files_hold_the_text(tmp_path, vocabulary):
    texts = tmp_path / "texts"
    texts.mkdir()
    content = {f"{i}.txt": f"This is the document number {i}." for i in range(60)}
    for name, text in content.items():
        (texts / name).write_text(text)
    source = documents.open_source(str(texts), shards=3)
    folder = tmp_path / "tokens"
    token_files.prepare(source, vocabulary, folder, host=0, hosts=2)
    with pytest.raises(FileNotFoundError, match=r"training-\*\.npy"):
        token_files.read(tmp_path, "training")
    token_files.prepare(source, vocabulary, folder, host=1, hosts=2)
    stamps = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    token_files.prepare(source, vocabulary, folder)
    assert {p: p.stat().st_mtime_ns for p in folder.iterdir()} == stamps
    assert len(token_files.read(folder, "training")) == 3
    found = []
    for name in ("training", "validation"):
        for stream in token_files.read(folder, name):
            ends = np.flatnonzero(stream == EOS_ID)
            found += [vocabulary.decode(d) for d in np.split(stream, ends + 1)[:-1]]
    assert sorted(found) == sorted(content.values())


ENGLISH = (
    "The cat sat on the mat and looked at the moon.",
    "A dog ran over the hill to find the old bone.",
    "We walk home late and talk about the weather.",
)
RUSSIAN = (
    "Кошка сидела на коврике и смотрела на луну.",
    "Собака бежала через холм за старой костью.",
    "Мы идём домой поздно и говорим о погоде.",
)


def bilingual(folder, count=400):
    """All English first, as sorted by name; a shard can have one language alone."""
    for language, sentences in (("en", ENGLISH), ("ru", RUSSIAN)):
        (folder / language).mkdir(parents=True)
        for i in range(count // 2):
            text = " ".join(sentences[(i + j) % 3] for j in range(3))
            path = folder / language / f"{i:04}.txt"
            path.write_text(f"{text} {i}", encoding="utf-8")
    return documents.open_source(str(folder))


def unknown_share(vocabulary, source):
    stream = np.concatenate(
        [token_files.tokens(shard(), vocabulary) for shard in source.training]
    )
    return (stream == UNKNOWN_ID).mean()


def test_vocabulary_samples_all_shards(tmp_path):
    source = bilingual(tmp_path / "texts")
    # As shards come that are cut from a long list, one language after the other.
    items = sorted(item for shard in source.training for item in shard.items)
    parts = [items[i : i + 20] for i in range(0, len(items), 20)]
    source = dataclasses.replace(
        source, training=tuple(documents.Listed(p, are_files=True) for p in parts)
    )
    sizes = {"size": 110, "sentinels": 8}
    whole = Vocabulary.train(source.sample(), **sizes)
    assert unknown_share(whole, source) < 0.01
    # From few documents too, and from a few characters of each.
    assert unknown_share(Vocabulary.train(source.sample(60), **sizes), source) < 0.01
    first = documents.texts(source.training[0](), "first")
    alone = Vocabulary.train(first, size=60, sentinels=8)
    assert unknown_share(alone, source) > 0.1  # what is to be avoided
    # Bytes make up for what a vocabulary has never seen.
    first = documents.texts(source.training[0](), "first")
    spelled = Vocabulary.train(first, size=310, sentinels=8, byte_fallback=True)
    assert unknown_share(spelled, source) == 0
    for text in (*RUSSIAN, "日本語", "🙂"):
        assert spelled.decode(spelled.encode(text)) == text


def test_sample_is_spread_over_each_shard():
    items = [f"{i:04}" for i in range(1000)]
    source = documents.Source(
        "listed", (documents.Listed(items[:100]), documents.Listed(items[100:])), ()
    )
    found = list(source.sample(documents=40))
    assert found == [f"{i:04}" for i in (*range(0, 100, 5), *range(100, 1000, 45))]
    assert list(source.sample()) == items
    # A dataset of unknown size gives its first documents.
    endless = tf.data.Dataset.from_tensors("again").repeat
    source = documents.Source("endless", (endless, endless), ())
    assert list(source.sample(documents=6)) == ["again"] * 6


def test_sample_takes_pieces_of_long_documents():
    text = "a" * 100_000 + "b" * 100_000 + "c" * 100_000
    source = documents.Source("long", (documents.Listed([text, "short"]),), ())
    long, short = source.sample(characters=30_000)
    assert short == "short" and 10_000 < len(long) < 20_000
    counts = [long.count(letter) for letter in "abc"]
    assert min(counts) > 0.8 * max(counts)
    assert list(source.sample()) == [text, "short"]


def test_vocabulary_sees_the_whole_of_long_documents():
    """SentencePiece drops sentences of more than a mebibyte without a word."""
    words = np.array(" ".join(ENGLISH).lower().replace(".", "").split())
    drawn = np.random.default_rng(0).choice(words, 300_000)
    long = " ".join(drawn) + " кошка" * 10
    assert len(long) > 2**20
    vocabulary = Vocabulary.train([long], size=36, sentinels=4, coverage=1.0)
    assert UNKNOWN_ID not in vocabulary.encode("the кошка sat")


def test_coverage_decides_which_characters_have_a_piece():
    texts = ["the cat sat on the mat"] * 500 + ["ж"]
    sizes = {"size": 18, "sentinels": 4}
    covered = Vocabulary.train(texts, coverage=1.0, **sizes)
    assert UNKNOWN_ID not in covered.encode("ж")
    common = Vocabulary.train(texts, coverage=0.999, **sizes)
    assert UNKNOWN_ID in common.encode("ж")


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ([], {}, "the text is empty"),
        (["", " \n"], {}, "the text is empty"),
        (["a cat"], {}, "too short for size=40. It allows at most 1., 4 sentinels"),
        (["a cat"] * 9, {"size": 8}, "size=8 is too small .* at least 1., 4 sentinels"),
        (["a cat"], {"size": 7}, "size=7, sentinels=4"),
        (["a cat"], {"byte_fallback": True}, "no byte fallback .256 ids."),
        (["a cat"], {"size": 4}, "size=4, sentinels=4"),
        (["a cat"], {"coverage": 0.5}, "coverage=0.5"),
        (["a cat"], {"coverage": 1.5}, "coverage=1.5"),
    ],
)
def test_vocabulary_that_cannot_be_trained(texts, options, message):
    with pytest.raises(FusionError, match=message):
        Vocabulary.train(texts, **{"size": 40, "sentinels": 4} | options)


def test_share_of_unknown_and_byte_pieces_is_shown(tmp_path):
    source = bilingual(tmp_path / "texts", count=200)
    for byte_fallback, size in ((False, 90), (True, 350)):
        path = write_recipe(
            tmp_path / "small.toml",
            source=source.name,
            vocabulary_size=size,
            vocabulary_coverage=0.98,
            byte_fallback=byte_fallback,
        )
        lines, folder = [], tmp_path / f"data{size}"
        data.prepare(recipe.load(path), folder, show=lines.append)
        (line,) = lines
        pattern = (
            r"vocabulary of (\d+) ids: of ([\d,]+) tokens (.+)% are unknown and (.+)%"
        )
        ids, tokens, unknown, in_bytes = re.match(pattern, line).groups()
        streams = token_files.read(folder, "training") + token_files.read(
            folder, "validation"
        )
        everything = np.concatenate(streams)
        kept = Vocabulary.load(folder / "vocabulary.model", sentinels=16)
        assert int(ids) == size and int(tokens.replace(",", "")) == len(everything)
        share = 100 * (everything == UNKNOWN_ID).mean()
        assert float(unknown) == pytest.approx(share, abs=0.01)
        share = 100 * kept.is_byte[everything].mean()
        assert float(in_bytes) == pytest.approx(share, abs=0.01)
        rare = float(in_bytes) if byte_fallback else float(unknown)
        assert rare > 0.1 and float(unknown) + float(in_bytes) == rare


def test_document_that_is_not_utf_8():
    shard = tf.data.Dataset.from_tensor_slices([b"fine", b"\xff"])
    vocabulary = Vocabulary.train(["fine"] * 9, size=12, sentinels=4)
    with pytest.raises(
        FusionError, match="Document 1 of a shard of 'mine' is not UTF-8"
    ):
        token_files.tokens(shard, vocabulary, name="mine")


def test_unknown_and_empty_sources_are_refused(tmp_path):
    with pytest.raises(ValueError, match="source='nowhere'"):
        documents.open_source("nowhere")
    with pytest.raises(ValueError, match="has 0 text files"):
        documents.open_source(str(tmp_path))


def test_vocabulary_is_kept_and_checked(tmp_path, vocabulary):
    path = tmp_path / "vocabulary.model"
    vocabulary.save(path)
    again = Vocabulary.load(path, sentinels=32)
    text = "Return a copy of the list."
    assert again.encode(text) == vocabulary.encode(text) and again.size == 600
    # keras-hub's tests ship none; a model of SentencePiece's own default ids will do.
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["Return a copy of the list."] * 3),
        model_prefix=str(tmp_path / "other"),
        vocab_size=25,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    with pytest.raises(ValueError, match="pad_id=0, eos_id=1, unk_id=2"):
        Vocabulary.load(tmp_path / "other.model")
