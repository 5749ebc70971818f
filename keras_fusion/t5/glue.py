"""The tasks of GLUE through tensorflow-datasets, cast text-to-text as T5 casts them.

An input is the task's name and then each feature's name and text, the features sorted by
name; a target is the label's name, or for STS-B the similarity rounded to a multiple of
0.2. Label names and features are read from tensorflow-datasets.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from keras_fusion.errors import FusionError
from keras_fusion.t5 import metrics
from keras_fusion.t5.text_task import Texts, TextTask

_NOT_TEXT = frozenset({"idx", "label"})
_SIMILARITY_STEPS = np.float32(5)  # one unit of similarity has so many


@dataclasses.dataclass(frozen=True)
class GlueTask:
    """The data of a task, and the metrics that it is scored by.

    Attributes:
        metrics: mapping from the names of the official metrics to functions of the true
            texts, the predicted texts and the labels.
        training: string. The config of tensorflow-datasets to train on, whose name is
            also the first word of every input. Defaults to the task's own.
        validation: mapping from the validation sets' names to pairs of config and split.
            Defaults to the training config's `"validation"`.
        unlabelled: the same for sets without labels. Defaults to none.
    """

    metrics: Mapping[str, Callable]
    training: str | None = None
    validation: Mapping[str, tuple[str, str]] | None = None
    unlabelled: Mapping[str, tuple[str, str]] = dataclasses.field(default_factory=dict)


_ACCURACY = {"accuracy": metrics.accuracy}
_F1_AND_ACCURACY = {"f1": metrics.f1, "accuracy": metrics.accuracy}
_MNLI = {
    "matched": ("mnli", "validation_matched"),
    "mismatched": ("mnli", "validation_mismatched"),
}

GLUE = {
    "cola": GlueTask({"matthews": metrics.matthews}),
    "sst2": GlueTask(_ACCURACY),
    "mrpc": GlueTask(_F1_AND_ACCURACY),
    "qqp": GlueTask(_F1_AND_ACCURACY),
    "stsb": GlueTask({"pearson": metrics.pearson, "spearman": metrics.spearman}),
    "mnli": GlueTask(_ACCURACY, validation=_MNLI),
    "mnli_matched": GlueTask(
        _ACCURACY, "mnli", {"validation": ("mnli_matched", "validation")}
    ),
    "mnli_mismatched": GlueTask(
        _ACCURACY, "mnli", {"validation": ("mnli_mismatched", "validation")}
    ),
    "qnli": GlueTask(_ACCURACY),
    "rte": GlueTask(_ACCURACY),
    "wnli": GlueTask(_ACCURACY),
    # The diagnostic set is for models trained on MNLI; only GLUE's server has its labels.
    "ax": GlueTask(
        {"matthews": metrics.matthews}, "mnli", _MNLI, {"ax": ("ax", "test")}
    ),
}


def glue(name: str) -> TextTask:
    """Opens a task of GLUE, and downloads it first if it is not there.

    Args:
        name: string. A key of `GLUE`.

    Returns:
        A `TextTask`. That of `"ax"` is trained and validated on MNLI, and has the
        diagnostic set among its `unlabelled` ones.

    Raises:
        FusionError: if tensorflow-datasets cannot prepare it, such as without a network.
    """
    row = GLUE[name]
    prefix = row.training or name
    validation = row.validation or {"validation": (prefix, "validation")}
    labels = _labels(_builder(prefix)) or ()
    return TextTask(
        name=name,
        training=_texts(prefix, "train", prefix),
        validation={s: _texts(*place, prefix) for s, place in validation.items()},
        labels=tuple(labels),
        metrics={
            metric: functools.partial(function, labels=tuple(labels))
            for metric, function in row.metrics.items()
        },
        unlabelled={
            s: _texts(*place, prefix).inputs for s, place in row.unlabelled.items()
        },
    )


def similarity(label: float) -> str:
    """Writes a similarity as text: the nearest multiple of 0.2.

    Args:
        label: float between 0 and 5.

    Returns:
        A string such as `"3.8"`.

    Example:

    >>> from keras_fusion.t5.glue import similarity
    >>> similarity(3.75), similarity(0.0)
    ('3.8', '0.0')
    """
    # In 32 bits and with halves rounded to even, as T5: 3.1 lies between two multiples.
    rounded = np.round(np.float32(label) * _SIMILARITY_STEPS) / _SIMILARITY_STEPS
    return f"{rounded:.1f}"


def _builder(config):
    import tensorflow_datasets as tfds  # Takes seconds, and only this needs it.

    return tfds.builder(f"glue/{config}")


def _labels(builder):
    """The names of the labels, or `None` if the label is a number."""
    return getattr(builder.info.features["label"], "names", None)


def _texts(config, split, prefix):
    builder: Any = _builder(config)
    try:
        builder.download_and_prepare()  # does nothing if that has been done
    # Of many kinds: no network, no space, a file that is not as it was.
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        raise FusionError(
            f"tensorflow-datasets cannot prepare glue/{config}: {type(error).__name__}: "
            f"{first}"
        ) from error
    names = _labels(builder)
    # An unlabelled example has the label -1; T5 gives it this text.
    word = similarity if names is None else lambda i: names[i] if i >= 0 else "<unk>"
    features = sorted(set(builder.info.features) - _NOT_TEXT)
    examples = list(
        builder.as_dataset(split=split, shuffle_files=False).as_numpy_iterator()
    )
    return Texts(
        tuple(
            " ".join([prefix, *(f"{f}: {e[f].decode()}" for f in features)])
            for e in examples
        ),
        tuple(word(e["label"]) for e in examples),
    )
