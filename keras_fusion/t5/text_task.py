"""A text-to-text task: texts in, texts out, and metrics of the answers."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from keras_fusion.errors import FusionError

Metric = Callable[[Sequence[str], Sequence[str]], float]


@dataclasses.dataclass(frozen=True)
class Texts:
    """Inputs and the targets that belong to them.

    Args:
        inputs: tuple of strings.
        targets: tuple of as many strings.

    Raises:
        FusionError: if there are more of one than of the other.
    """

    inputs: tuple[str, ...]
    targets: tuple[str, ...]

    def __post_init__(self):
        if len(self.inputs) != len(self.targets):
            raise FusionError(
                "`inputs` and `targets` must have the same length. Received: "
                f"{len(self.inputs)} inputs, {len(self.targets)} targets."
            )

    def __len__(self) -> int:
        return len(self.inputs)


@dataclasses.dataclass(frozen=True)
class TextTask:
    """A task cast as text to text.

    Args:
        name: string.
        training: `Texts`.
        validation: mapping from the names of the validation sets to their `Texts`.
        labels: tuple of strings. The possible targets in order; empty for a regression,
            whose targets are numbers.
        metrics: mapping from a metric's name to a function of the true and the predicted
            targets, two sequences of strings, that returns a float.
        unlabelled: mapping from the names of the sets whose targets are not published to
            their inputs. A model's answers to them are kept, and no metric is computed.
            Defaults to none.

    Example:

    >>> from keras_fusion.t5.metrics import accuracy
    >>> from keras_fusion.t5.text_task import Texts, TextTask
    >>> texts = Texts(("animal: cat", "animal: oak"), ("yes", "no"))
    >>> task = TextTask("animal", texts, {"seen": texts}, ("no", "yes"), {"acc": accuracy})
    >>> task.score("seen", ["yes", "yes"])
    {'acc': 0.5}
    """

    name: str
    training: Texts
    validation: Mapping[str, Texts]
    labels: tuple[str, ...]
    metrics: Mapping[str, Metric]
    unlabelled: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def score(self, name: str, predicted: Sequence[str]) -> dict[str, float]:
        """Scores predictions for a validation set.

        Args:
            name: string. The set's name.
            predicted: sequence of strings, one for each of its inputs.

        Returns:
            Dict from the metrics' names to their values.
        """
        truth = self.validation[name].targets
        return {metric: f(truth, predicted) for metric, f in self.metrics.items()}
