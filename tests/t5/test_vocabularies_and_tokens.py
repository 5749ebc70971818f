"""Vocabularies of a text, and its token files."""

import dataclasses
import re

import numpy as np
import pytest
import tensorflow as tf
from t5_stores import write_recipe

from keras_fusion.errors import FusionError
from keras_fusion.t5 import data, documents, recipe, token_files
from keras_fusion.t5.vocabulary import EOS_ID, UNKNOWN_ID, Vocabulary


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
