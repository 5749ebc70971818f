"""The official metrics of the tasks, on texts: scikit-learn's and SciPy's functions.

They are fractions and correlations: at most 1, not 100. All of them take the task's
labels, so that they have one signature. A text that is not a label is always wrong.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.stats
import sklearn.metrics

# T5's value for a text that is not a number: lower than every true similarity.
NO_NUMBER = -1.0


def accuracy(
    truth: Sequence[str], predicted: Sequence[str], labels: Sequence[str] = ()
) -> float:
    """The fraction of right answers.

    Args:
        truth: sequence of strings.
        predicted: sequence of strings.
        labels: not needed.

    Returns:
        Float.

    Example:

    >>> from keras_fusion.t5.metrics import accuracy
    >>> accuracy(["yes", "no"], ["yes", "maybe"])
    0.5
    """
    return float(sklearn.metrics.accuracy_score(list(truth), list(predicted)))


def f1(truth: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> float:
    """The F1 score of the second label.

    Args:
        truth: sequence of strings.
        predicted: sequence of strings. One that is not a label counts as the wrong label,
            as in T5.
        labels: sequence of two strings, the negative and the positive label.

    Returns:
        Float; 0 if the positive label is never right.

    Example:

    >>> from keras_fusion.t5.metrics import f1
    >>> f1(["yes", "yes", "no"], ["yes", "maybe", "no"], ("no", "yes"))
    0.666...
    """
    positive = labels[1]
    wanted = [t == positive for t in truth]
    found = [
        p == positive if p in labels else not w
        for p, w in zip(predicted, wanted, strict=True)
    ]
    zero: Any = 0.0  # typed as a string, of which it is one option
    return float(sklearn.metrics.f1_score(wanted, found, zero_division=zero))


def matthews(
    truth: Sequence[str], predicted: Sequence[str], labels: Sequence[str]
) -> float:
    """Matthews's correlation coefficient, for two labels or more.

    Args:
        truth: sequence of strings.
        predicted: sequence of strings. Those that are not labels form one more class.
        labels: sequence of strings.

    Returns:
        Float; 0 if all predictions are the same.

    Example:

    >>> from keras_fusion.t5.metrics import matthews
    >>> matthews(["yes", "yes", "no", "no"], ["yes"] * 4, ("no", "yes"))
    0.0
    """
    number = {label: i for i, label in enumerate(labels)}
    classes = [[number.get(text, -1) for text in texts] for texts in (truth, predicted)]
    return float(sklearn.metrics.matthews_corrcoef(*classes))


def pearson(
    truth: Sequence[str], predicted: Sequence[str], labels: Sequence[str] = ()
) -> float:
    """Pearson's correlation of two columns of numbers written as text.

    Args:
        truth: sequence of strings.
        predicted: sequence of strings. One that is not a number counts as -1, as in T5.
        labels: not needed.

    Returns:
        Float; 0 if a column is constant, since it has no correlation.

    Example:

    >>> from keras_fusion.t5.metrics import pearson
    >>> round(pearson(["1.0", "2.0", "3.0"], ["2.0", "4.0", "6.0"]), 6)
    1.0
    """
    return _correlation(scipy.stats.pearsonr, truth, predicted)


def spearman(
    truth: Sequence[str], predicted: Sequence[str], labels: Sequence[str] = ()
) -> float:
    """Spearman's rank correlation of two columns of numbers written as text.

    Args:
        truth: sequence of strings.
        predicted: sequence of strings. One that is not a number counts as -1, as in T5.
        labels: not needed.

    Returns:
        Float; 0 if a column is constant, since it has no correlation.

    Example:

    >>> from keras_fusion.t5.metrics import spearman
    >>> round(spearman(["1.0", "2.0", "3.0"], ["0.2", "0.4", "5.0"]), 6)
    1.0
    """
    return _correlation(scipy.stats.spearmanr, truth, predicted)


def _correlation(function, truth, predicted):
    columns = [np.array([_number(t) for t in texts]) for texts in (truth, predicted)]
    if min(np.ptp(column) for column in columns) == 0:
        return 0.0
    return float(function(*columns).statistic)


def _number(text):
    try:
        number = float(text)
    except ValueError:
        return NO_NUMBER
    return number if math.isfinite(number) else NO_NUMBER  # "nan" is no answer
