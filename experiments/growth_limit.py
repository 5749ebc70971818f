"""What one growth can save at most, if a model's loss says all about its state.

python -m experiments.growth_limit                          # prints the tables
python -m experiments.growth_limit --page docs/savings.md   # puts them into a page

Let the loss be L = E + A / N^a + B / D^b for N parameters and D tokens (Hoffmann et al.,
Training Compute-Optimal Large Language Models, 2022), let a growth keep the loss, and let
the grown model go on along its own curve from where that has this loss (the assumption of
Shen et al., Staged Training for Transformer Language Models, ICML 2022). Then the best
moment and the FLOPs that are left follow from the exponents alone: at the compute-optimal
number of tokens A / N^a and B / D^b are as b to a.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from keras_fusion.t5 import markdown

# Exponents (a, b) of published fits, and of one in which both are large.
LAWS = {
    "Hoffmann et al. 2022": (0.34, 0.28),
    "Besiroglu et al. 2024": (0.35, 0.37),
    "a = b = 0.5": (0.5, 0.5),
}
TOKENS = (0.05, 0.2, 1.0, 5.0)  # of those that are compute-optimal for the grown model
RATIOS = np.linspace(2.0, 4.0, 21)  # parameters of the grown model to the small one's
FREE_RATIOS = (2.0, 3.0, 4.0)


def skipped(law: tuple[float, float], ratio: float, tokens: Any) -> Any:
    """The tokens that a grown model need not read.

    Args:
        law: the exponents `(a, b)`.
        ratio: float. Parameters of the grown model to the small one's.
        tokens: float or array. What the small model has read, in compute-optimal numbers
            of the grown one.

    Returns:
        The tokens after which the big model alone has the small one's loss.
    """
    a, b = law
    excess = b * (ratio**a - 1) + a * tokens**-b
    return (excess / a) ** (-1 / b)


def counted(law: tuple[float, float], tokens: float) -> float:
    """The least share of the from-scratch FLOPs, the small model's included.

    Args:
        law: the exponents `(a, b)`.
        tokens: float. What the run from scratch reads.
    """

    def share(ratio):
        # The small model reads at most as much as costs what the run from scratch does.
        read = np.geomspace(tokens / 50, tokens * ratio, 2000)
        left = np.maximum(tokens - skipped(law, ratio, read), 0.0)
        return np.min(read / ratio + left) / tokens

    return float(min(map(share, RATIOS)))


def free(law: tuple[float, float], ratio: float, trained: float = 1.0) -> float:
    """The share that is left when the small model exists.

    Args:
        law: the exponents `(a, b)`.
        ratio: float. Parameters of the grown model to the small one's.
        trained: float. Tokens of the small model, in those of the target. Defaults to 1.
    """
    return max(1.0 - float(skipped(law, ratio, trained)), 0.0)


def text() -> str:
    """Both tables, in Markdown."""
    head = "tokens per parameter", *LAWS
    rows = [
        (f"{20 * tokens:g}", *(f"{counted(law, tokens):.2f}" for law in LAWS.values()))
        for tokens in TOKENS
    ]
    existing = [
        (
            f"{ratio:g} times smaller, {trained:g} times the tokens",
            *(f"{free(law, ratio, trained):.2f}" for law in LAWS.values()),
        )
        for trained in (1.0, 10.0)
        for ratio in FREE_RATIOS
    ]
    return (
        "The least share of the from-scratch FLOPs to the same loss, the small model's "
        "included, for a grown model of 2 to 4 times the parameters:\n\n"
        f"{markdown.table(head, rows)}\n\n"
        "The same where the small model exists, and the target gets 20 tokens "
        "per parameter:\n\n"
        f"{markdown.table(('small model', *LAWS), existing)}\n"
    )


def main():
    """Prints the tables, or puts them into a page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", type=Path)
    page = parser.parse_args().page
    if page:
        markdown.insert(text(), page, "limit")
    print(text())


if __name__ == "__main__":
    main()
