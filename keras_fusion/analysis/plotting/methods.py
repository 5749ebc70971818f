"""One colour for each way of training, the same in all pictures.

Settings of one way in one picture differ in their lines and marks. The colours are Okabe
and Ito's, distinct for people with any kind of colour vision.
"""

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

# Words of a setting's name, and its colour; the first that are found count.
_METHODS = (
    (r"four|seven|eight", "#56B4E9"),  # many parents
    (r"width.* depth|depth.* width|1x to", "#E69F00"),  # several growths
    (r"new (random )?features|padding", "#CC79A7"),
    (r"depth|layers? that|blocks", "#009E73"),
    (r"self-fus|copies|noise|paired|random 0|rates by|growth at", "#D55E00"),
    (r"hypercloning", "#009E73"),
    (r"net2net|lemon", "#E69F00"),
    (r"staged", "#56B4E9"),
    (r"^(M |L )?(from )?scratch", "#000000"),
    (r"small|^S\b|layers? alone", "#888888"),
    (r"two|fused|parents", "#0072B2"),  # distinct parents
    (r"parent", "#56B4E9"),
)
_OTHER = "#E69F00"
# Those of the second setting of a colour differ in more than the line.
_LINES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (8, 2)))
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
