"""One colour for each way of training, the same in all pictures.

Settings of one way in one picture differ in their lines and marks.
"""

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from keras_fusion.analysis.plotting.figure import (
    BLACK,
    BLUE,
    DASHES,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    SKY,
    VERMILLION,
)

# Words of a setting's name, and its colour; the first that are found count.
_METHODS = (
    (r"four|seven|eight", SKY),  # many parents
    (r"width.* depth|depth.* width|1x to", ORANGE),  # several growths
    (r"new (random )?features|padding", PINK),
    (r"depth|layers? that|blocks", GREEN),
    (r"self-fus|copies|noise|paired|random 0|rates by|growth at", VERMILLION),
    (r"hypercloning", GREEN),
    (r"net2net|lemon", ORANGE),
    (r"staged", SKY),
    (r"^(M |L )?(from )?scratch", BLACK),
    (r"small|^S\b|layers? alone", GREY),
    (r"two|fused|parents|norms$|annealed", BLUE),  # distinct parents
    (r"parent", SKY),
)
_OTHER = ORANGE
# Those of the second setting of a colour differ in more than the line.
_LINES = (*DASHES, (0, (8, 2)))
_MARKS = ("o", "s", "^", "D", "v")


def colour_of(name: str) -> str:
    """The colour of a setting, by the words of its name."""
    found = (c for words, c in _METHODS if re.search(words, name, re.IGNORECASE))
    return next(found, _OTHER)


def styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The styles of a picture's settings, as keyword arguments of matplotlib's `plot`.

    Args:
        names: strings, in the order of the legend.

    Returns:
        Dict from each name to its `color`, `linestyle`, `marker` and `fillstyle`.
    """
    seen: Counter[str] = Counter()
    found = {}
    for name in names:
        colour = colour_of(name)
        number = seen[colour]
        seen[colour] += 1
        found[name] = {
            "color": colour,
            "linestyle": _LINES[number % len(_LINES)],
            "marker": _MARKS[number % len(_MARKS)],
            "fillstyle": "none" if number else "full",
        }
    return found
