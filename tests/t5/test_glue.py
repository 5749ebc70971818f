"""GLUE and C4 through the real loaders of tensorflow-datasets, on its mock data."""

import numpy as np
import pytest

tfds = pytest.importorskip("tensorflow_datasets")
tf = pytest.importorskip("tensorflow")

from keras_fusion.t5 import documents, metrics  # noqa: E402
from keras_fusion.t5.builtin_task import builtin  # noqa: E402
from keras_fusion.t5.glue import GLUE, glue, similarity  # noqa: E402
from keras_fusion.t5.tasks import open_task  # noqa: E402
from keras_fusion.t5.text_task import Texts  # noqa: E402

# From each config's features and label to T5's input and target, written by hand.
EXAMPLES = {
    "cola": (
        {"sentence": "Bill floated.", "label": 1},
        "cola sentence: Bill floated.",
        "acceptable",
    ),
    "sst2": (
        {"sentence": "a fine film ", "label": 0},
        "sst2 sentence: a fine film ",
        "negative",
    ),
    "mrpc": (
        {"sentence2": "He rose.", "sentence1": "He got up.", "label": 1},
        "mrpc sentence1: He got up. sentence2: He rose.",
        "equivalent",
    ),
    "qqp": (
        {"question2": "Why eat?", "question1": "Why read?", "label": 0},
        "qqp question1: Why read? question2: Why eat?",
        "not_duplicate",
    ),
    "stsb": (
        {"sentence1": "A cat.", "sentence2": "A dog.", "label": 3.75},
        "stsb sentence1: A cat. sentence2: A dog.",
        "3.8",
    ),
    "mnli": (
        {"premise": "It rains.", "hypothesis": "It is wet.", "label": 0},
        "mnli hypothesis: It is wet. premise: It rains.",
        "entailment",
    ),
    "qnli": (
        {"sentence": "It fell in 1453.", "question": "When did it fall?", "label": 1},
        "qnli question: When did it fall? sentence: It fell in 1453.",
        "not_entailment",
    ),
    "rte": (
        {"sentence1": "It is café.", "sentence2": "It is.", "label": 0},
        "rte sentence1: It is café. sentence2: It is.",
        "entailment",
    ),
    "wnli": (
        {"sentence1": "It sank.", "sentence2": "The ship sank.", "label": 1},
        "wnli sentence1: It sank. sentence2: The ship sank.",
        "entailment",
    ),
}
EXAMPLES |= {name: EXAMPLES["mnli"] for name in ("mnli_matched", "mnli_mismatched")}
EXAMPLES["ax"] = ({**EXAMPLES["mnli"][0], "label": -1}, EXAMPLES["mnli"][1], "<unk>")

METRICS = {
    "cola": ["matthews"],
    "mrpc": ["f1", "accuracy"],
    "qqp": ["f1", "accuracy"],
    "stsb": ["pearson", "spearman"],
    "ax": ["matthews"],
}


def mocked(as_dataset=None):
    """No file is read: what is known of a data set is what its code says."""
    return tfds.testing.mock_data(
        num_examples=4,
        policy=tfds.testing.MockPolicy.USE_CODE,
        as_dataset_fn=as_dataset,
    )


def dataset_of(features):
    return tf.data.Dataset.from_tensors({"idx": 0} | features)


@pytest.mark.parametrize("name", GLUE)
def test_every_task_of_glue_on_mock_data(name):
    with mocked():
        task = open_task(name)
        builder = tfds.builder(f"glue/{name}")
    assert set(GLUE) == set(builder.builder_configs)  # no task of GLUE is missing
    assert task.name == name
    assert list(task.metrics) == METRICS.get(name, ["accuracy"])
    assert task.labels == tuple(getattr(builder.info.features["label"], "names", ()))
    for texts in (task.training, *task.validation.values()):
        assert len(texts) == 4
        assert all(t.startswith(EXAMPLES[name][1].split(": ")[0]) for t in texts.inputs)
        assert task.labels == () or set(texts.targets) <= set(task.labels)
    for set_name, texts in task.validation.items():
        scores = task.score(set_name, texts.targets)
        assert all(np.isfinite(list(scores.values())))
        assert name == "ax" or max(scores.values()) == pytest.approx(1)


@pytest.mark.parametrize("name", EXAMPLES)
def test_text_of_each_task(name):
    features, text, target = EXAMPLES[name]
    with mocked(lambda builder, split, **_: dataset_of(features)):
        task = glue(name)
    assert task.training == Texts((text,), (target,))
    assert all(texts == task.training for texts in task.validation.values())


def test_splits_of_mnli_and_its_diagnostic_set():
    def as_dataset(builder, split, **_):
        place = f"{builder.builder_config.name}/{split}"
        return dataset_of({"premise": place, "hypothesis": "", "label": 2})

    def place(inputs):
        (text,) = inputs
        return text.removeprefix("mnli hypothesis:  premise: ")

    with mocked(as_dataset):
        tasks = {name: glue(name) for name in GLUE if EXAMPLES[name][1][:4] == "mnli"}
    assert {place(task.training.inputs) for task in tasks.values()} == {"mnli/train"}
    both = {
        "matched": "mnli/validation_matched",
        "mismatched": "mnli/validation_mismatched",
    }
    assert {
        name: {s: place(texts.inputs) for s, texts in task.validation.items()}
        for name, task in tasks.items()
    } == {
        "mnli": both,
        "mnli_matched": {"validation": "mnli_matched/validation"},
        "mnli_mismatched": {"validation": "mnli_mismatched/validation"},
        "ax": both,
    }
    assert {s: place(t) for s, t in tasks["ax"].unlabelled.items()} == {"ax": "ax/test"}
    assert not tasks["mnli"].unlabelled


def test_similarity_is_rounded_as_in_t5():
    labels = np.arange(0, 5.001, 0.05, dtype="float32")
    rounded = tf.as_string(tf.round(labels * 5) / 5, precision=1)
    assert [similarity(x) for x in labels] == [t.decode() for t in rounded.numpy()]
    assert [similarity(x) for x in (0, 2.5, 3.1, 4.99)] == ["0.0", "2.4", "3.2", "5.0"]


@pytest.mark.parametrize("shards", [1, 3])
def test_c4_on_mock_data(shards):
    with mocked():
        source = documents.open_source("c4/en", shards=shards)
        parts = [list(s().as_numpy_iterator()) for s in source.training]
        (held_out,) = [list(s().as_numpy_iterator()) for s in source.validation]
    assert [len(p) for p in parts] == [4] * shards
    assert len(held_out) == 4
    assert all(isinstance(text, bytes) and text for text in held_out)


def test_c4_reads_its_splits_in_parts():
    def as_dataset(builder, split, **_):
        return tf.data.Dataset.from_tensors({"text": f"{builder.name} {split}"})

    with mocked(as_dataset):
        source = documents.c4(shards=2)
        read = [next(iter(s())).numpy().decode() for s in source.training]
        (held_out,) = [next(iter(s())).numpy().decode() for s in source.validation]
    assert len(set(read)) == 2 and all("train" in text for text in read)
    assert held_out == "c4 validation"


# Metrics against values worked out by hand.

YES_NO = ("no", "yes")


def test_accuracy():
    assert metrics.accuracy(["yes", "no", "no"], ["yes", "yes", "who"]) == 1 / 3


def test_f1_and_matthews():
    truth = ["yes", "yes", "yes", "no", "no"]
    predicted = ["yes", "yes", "no", "no", "yes"]  # 2 TP, 1 FN, 1 TN, 1 FP
    assert metrics.f1(truth, predicted, YES_NO) == pytest.approx(2 / 3)
    assert metrics.matthews(truth, predicted, YES_NO) == pytest.approx(1 / 6)
    assert metrics.f1(truth, ["no"] * 5, YES_NO) == 0
    assert metrics.matthews(truth, ["no"] * 5, YES_NO) == 0
    assert metrics.matthews(truth, truth, YES_NO) == 1


def test_no_label_is_wrong():
    truth = ["yes", "yes", "no", "no"]
    # The second is missed, the fourth found wrongly: 1 TP, 1 FN, 1 TN, 1 FP.
    predicted = ["yes", "maybe", "no", ""]
    assert metrics.f1(truth, predicted, YES_NO) == 0.5
    # Of a third class, whichever text: (2·4 - (1·2 + 1·2)) / sqrt((16 - 6)·(16 - 8)).
    expected = (2 * 4 - 4) / np.sqrt(10 * 8)
    assert metrics.matthews(truth, predicted, YES_NO) == pytest.approx(expected)


def test_matthews_of_three_labels():
    # 3 of 4 right; per label 2, 1, 1 true ones and 1, 2, 1 predicted ones.
    expected = (3 * 4 - 5) / np.sqrt((16 - 6) * (16 - 6))
    value = metrics.matthews(list("aabc"), list("abbc"), tuple("abc"))
    assert value == pytest.approx(expected)


def test_correlations():
    truth = ["1.0", "2.0", "3.0", "4.0"]
    assert metrics.pearson(truth[:3], ["1.0", "3.0", "2.0"]) == pytest.approx(0.5)
    assert metrics.spearman(truth[:3], ["1.0", "3.0", "2.0"]) == pytest.approx(0.5)
    bent = ["0.0", "0.2", "0.4", "5.0"]
    assert metrics.spearman(truth, bent) == pytest.approx(1)
    assert metrics.pearson(truth, bent) == pytest.approx(7.6 / np.sqrt(5 * 17.36))
    assert (
        metrics.pearson(truth, ["3.0"] * 4) == metrics.spearman(truth, ["3"] * 4) == 0
    )


def test_no_number_is_below_all_similarities():
    for text in ("", "entailment", "nan", "inf"):
        value = metrics.pearson(["0.0", "1.0", "2.0"], [text, "0.0", "1.0"])
        assert value == pytest.approx(1)


# The task that needs no download.


def test_builtin_task_holds_out_what_pretraining_holds_out():
    task = builtin()
    source = documents.standard_library()
    trained, held_out = (
        [t.decode() for t in shard().as_numpy_iterator()]
        for (shard,) in (source.training, source.validation)
    )
    validation = task.validation["validation"]
    assert len(validation) > 100 and len(task.training) > 10 * len(validation)
    inputs = [*task.training.inputs, *validation.inputs]
    assert len(set(inputs)) == len(inputs)
    assert set(validation.targets) == set(task.training.targets) == set(task.labels)
    # Each label is a fair part of the whole, so that the majority is beatable.
    counts = np.array([task.training.targets.count(label) for label in task.labels])
    assert counts.max() < 3 * counts.min()
    joined = "\n".join(trained)
    prefix = "builtin sentence: "
    for text in validation.inputs:
        sentence = text.removeprefix(prefix)
        assert sentence not in joined
        assert any(sentence in document for document in held_out)


def test_unknown_task():
    with pytest.raises(ValueError, match="one of builtin, cola, .*: name='glue'"):
        open_task("glue")


def test_texts_are_equally_many():
    with pytest.raises(
        ValueError, match="the same length. Received: 2 inputs, 1 targets"
    ):
        Texts(("a", "b"), ("c",))
