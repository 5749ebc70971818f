"""The sizes, rates and lengths of the study, for a card and for a test."""

import dataclasses

from experiments.harness.study import Model, Size

OPTIMIZER = {
    "name": "AdamW",
    "beta_2": 0.95,
    "weight_decay": 0.1,
    "global_clipnorm": 1.0,
}
INITIALIZATION = {"kernels": "fan_in", "residual": "by_depth"}


@dataclasses.dataclass(frozen=True)
class Pair:
    """A size, and the one that it grows to.

    Args:
        small: `Size`.
        big: `Size`, twice as wide.
        tokens_per_parameter: float. Of the bigger one; all runs read as many tokens.
        rates: tuple of floats. The bigger one is trained at each of them.
        small_rate: float.
    """

    small: Size
    big: Size
    tokens_per_parameter: float
    rates: tuple[float, ...]
    small_rate: float

    def __str__(self):
        return f"{self.small} to {self.big}"


@dataclasses.dataclass(frozen=True)
class Scale:
    """All that the study trains, the most important first.

    Args:
        pairs: tuple of `Pair`.
        model: `Model`, the settings of all trainings.
        validation_rows: int.
    """

    pairs: tuple[Pair, ...]
    model: Model
    validation_rows: int


def _model(**options) -> Model:
    return Model(
        "decoder", OPTIMIZER, initialization=INITIALIZATION, decay=0.2, **options
    )


# Rates: those of the studies at widths 64 and 128 (0.008 and 0.004), halved as the width
# doubles. 2.5M, 10M and 39M parameters.
CARD = Scale(
    (
        Pair(Size(128, 12), Size(256, 12), 20, (0.004, 0.002), 0.004),
        Pair(Size(256, 12), Size(512, 12), 2, (0.002, 0.001), 0.002),
    ),
    _model(row_length=128, batch_size=128, warmup_steps=100),
    1024,
)
# What growing itself costs, meant for three minutes: losses after a quarter token a
# parameter say nothing of what it saves.
SHORT = Scale(
    (Pair(Size(256, 12), Size(512, 12), 0.25, (0.002,), 0.002),), CARD.model, 256
)
TINY = Scale(
    (Pair(Size(16, 1), Size(32, 1), 0.05, (0.004,), 0.004),),
    _model(row_length=16, batch_size=4, warmup_steps=2, head_size=8),
    8,
)
SCALES = {"card": CARD, "short": SHORT, "tiny": TINY}
