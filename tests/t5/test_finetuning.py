"""Fine-tuning a T5 on a text-to-text task."""

import dataclasses
import json

import keras
import numpy as np
import pytest

pytest.importorskip("keras_hub")

from keras_fusion.errors import FusionError
from keras_fusion.t5 import corpus, finetuning, metrics
from keras_fusion.t5.batches import streamed
from keras_fusion.t5.finetuning import Answerer, TaskBatches, finetune
from keras_fusion.t5.model import Architecture, build
from keras_fusion.t5.tasks import open_task
from keras_fusion.t5.text_task import Texts, TextTask
from keras_fusion.t5.vocabulary import EOS_ID, Vocabulary

DOCUMENTS = [
    "color sentence: the sky is blue and the sea is blue",
    "color sentence: the grass is green and the tree is green",
    "a color is blue or green",
]


@pytest.fixture(scope="module")
def vocabulary():
    return Vocabulary.train(DOCUMENTS, size=32, sentinels=4)


@pytest.fixture
def task():
    texts = Texts(
        ("color sentence: the sky", "color sentence: the sea", "color sentence: grass"),
        ("blue", "blue", "green"),
    )
    return TextTask(
        "color",
        texts,
        {"seen": texts},
        ("blue", "green"),
        {"accuracy": metrics.accuracy},
        {"hidden": ("color sentence: the tree", "color sentence: the sky")},
    )


SMALL = {"batch_size": 2, "input_length": 12, "target_length": 8}


# Texts and batches.


@pytest.mark.core
def test_encoded_texts_keep_their_end(vocabulary):
    text = "the sky is blue"
    tokens = vocabulary.encode(text)
    short, cut = (finetuning.encoded([text], vocabulary, n)[0] for n in (20, 4))
    assert short.tolist() == [*tokens, EOS_ID] + [0] * (19 - len(tokens))
    assert cut.tolist() == [*tokens[:3], EOS_ID]


@pytest.mark.core
def test_batches_are_a_function_of_seed_and_step():
    inputs = np.arange(1, 8)[:, None].repeat(2, axis=1).astype("int32")
    batches = TaskBatches(inputs, inputs[:, :1], batch_size=3, seed=5)
    taken = [int(x) for i in range(7) for x in batches(i)[1][:, 0]]
    # 7 batches of 3 are 3 epochs of 7, each with all examples in another order.
    epochs = [taken[i : i + 7] for i in range(0, 21, 7)]
    assert [sorted(e) for e in epochs] == [list(range(1, 8))] * 3
    assert epochs[0] != epochs[1]
    for step, (features, targets, weights) in enumerate(
        streamed(batches, 4, 7), start=4
    ):
        expected = batches(step)
        for name, array in features.items():
            np.testing.assert_array_equal(array, expected[0][name])
        np.testing.assert_array_equal(targets, expected[1])
        np.testing.assert_array_equal(weights, expected[2])
        np.testing.assert_array_equal(features["encoder_token_ids"][:, :1], targets)
    assert step == 6
    other = TaskBatches(inputs, inputs[:, :1], batch_size=7, seed=6)
    assert other(0)[1][:, 0].tolist() != epochs[0]


# Answers.


def chain_model(successor):
    """A model whose next token depends on the decoder's last one alone."""
    names = [f"{side}_{kind}" for side in ("encoder", "decoder") for kind in KINDS]
    inputs = {n: keras.Input((None,), dtype="int32", name=n) for n in names}
    size = len(successor)
    table = keras.layers.Embedding(size, size)
    outputs = table(inputs["decoder_token_ids"])
    table.set_weights([np.eye(size, dtype="float32")[successor]])
    return keras.Model(inputs, outputs)


KINDS = ("token_ids", "padding_mask")


@pytest.mark.core
def test_answers_are_greedy_and_stop_at_the_end(vocabulary):
    text = "the sky"
    tokens = vocabulary.encode(text)
    assert len(set(tokens)) == len(tokens) > 1
    successor = np.zeros(vocabulary.size, int)
    successor[[0, *tokens]] = [*tokens, EOS_ID]
    successor[EOS_ID] = tokens[0]  # it would go on
    length = len(tokens) + 4
    ask = Answerer(chain_model(successor), vocabulary, 2, 6, length)
    assert ask(["the sea", "the tree", "the grass"]) == (text,) * 3
    assert ask([]) == ()
    # One that never ends is cut.
    successor[tokens[-1]] = tokens[-1]
    (answer,) = Answerer(chain_model(successor), vocabulary, 2, 6, length)(["the sea"])
    assert answer == vocabulary.decode([*tokens, *tokens[-1:] * 4])


def test_majority_answers_the_most_frequent_target(task):
    assert finetuning.majority(task) == {"seen": {"accuracy": 2 / 3}}


# Fine-tuning.


@pytest.mark.core
def test_finetuning_gives_a_whole_account(task, vocabulary):
    model = build(Architecture(16, 32, 2, 1, 8, vocabulary.size), seed=0)
    if keras.backend.backend() == "torch":
        with pytest.raises(FusionError, match="FLOPs are counted on"):
            finetune(model, task, vocabulary, steps=5, **SMALL)
        return
    points = []
    result = finetune(
        model, task, vocabulary, steps=5, evaluations=2, report=points.append, **SMALL
    )
    assert tuple(points) == result.history
    assert [p.step for p in result.history] == [2, 5]
    assert result.metrics == result.history[-1].metrics
    assert set(result.metrics["seen"]) == set(result.majority["seen"]) == {"accuracy"}
    assert len(result.predictions["hidden"]) == 2
    assert result.flops > 0 and result.flops % 5 == 0 and result.seconds > 0
    plain = json.loads(json.dumps(result.to_dict()))
    assert plain["metrics"] == result.metrics
    assert plain["training_loss"] == result.training_loss
    assert plain["majority"] == {"seen": {"accuracy": 2 / 3}}


def losses(task, vocabulary, **options):
    """Of a model that is small enough to be trained in a moment."""
    model = chain_model(np.arange(vocabulary.size))
    result = finetune(model, task, vocabulary, **SMALL | {"steps": 4} | options)
    return [p.training_loss for p in result.history]


def test_equal_seeds_give_equal_results(task, vocabulary):
    assert losses(task, vocabulary) == losses(task, vocabulary)
    assert losses(task, vocabulary) != losses(task, vocabulary, seed=1)


def test_loss_is_the_mean_over_the_tokens_of_the_targets(task, vocabulary):
    """More padding changes nothing."""
    padded = losses(task, vocabulary, target_length=16)
    assert losses(task, vocabulary) == pytest.approx(padded, rel=1e-5)


def test_target_that_does_not_fit(task, vocabulary):
    task = dataclasses.replace(task, labels=("blue", "the sky"))
    tokens = len(vocabulary.encode("the sky"))
    message = (
        f"'the sky' of the task 'color' has {tokens} tokens and the end token, more than "
        f"target_length={tokens}. Use target_length={tokens + 1} or more"
    )
    model = chain_model(np.arange(vocabulary.size))
    with pytest.raises(ValueError, match=message):
        finetune(
            model, task, vocabulary, **SMALL | {"steps": 1, "target_length": tokens}
        )
    assert not model.compiled  # refused before anything has changed


def test_target_that_the_vocabulary_cannot_spell(vocabulary):
    texts = Texts(("color sentence: fire",), ("über",))
    task = TextTask("heat", texts, {"seen": texts}, (), {"accuracy": metrics.accuracy})
    with pytest.raises(ValueError, match="cannot spell the target 'über' of the task"):
        losses(task, vocabulary)


def test_no_steps(task, vocabulary):
    with pytest.raises(ValueError, match="at least 1. Received: steps=0"):
        losses(task, vocabulary, steps=0)


@pytest.mark.slow
def test_builtin_task_is_learnt_far_beyond_the_majority():
    task = open_task("builtin")
    documents = corpus.standard_library().training
    vocabulary = Vocabulary.train(documents, size=2048, sentinels=100)
    model = build(Architecture(96, 192, 4, 1, 24, vocabulary.size), seed=0)
    result = finetune(
        model,
        task,
        vocabulary,
        steps=350,
        batch_size=32,
        input_length=32,
        target_length=6,
        learning_rate=0.03,
    )
    (majority,) = result.majority["validation"].values()
    # The standard error of an accuracy of 0.6 is 0.04.
    assert result.metrics["validation"]["accuracy"] > majority + 0.25
    assert result.training_loss < result.history[0].training_loss / 2
