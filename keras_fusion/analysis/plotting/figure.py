"""The style of all pictures: a figure without a window, and accessible colours."""

from typing import Any

# Okabe and Ito's palette, distinct for people with any kind of colour vision.
BLUE, ORANGE, PINK, SKY = "#0072B2", "#E69F00", "#CC79A7", "#56B4E9"
GREEN, VERMILLION = "#009E73", "#D55E00"
BLACK, GREY = "#000000", "#888888"
PARENTS = (BLUE, ORANGE, PINK, SKY)
NEW_CAPACITY = GREEN
INK = "#333333"
# Lines in one panel also differ in their dashes, for greyscale prints.
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))
LINES = tuple(
    {"color": color, "linestyle": dashes}
    for color, dashes in zip((BLUE, VERMILLION, GREEN, PINK), DASHES, strict=True)
)


def new_figure(width: float, height: float) -> Any:
    """Makes a matplotlib `Figure` of a size in inches.

    Raises:
        ImportError: without matplotlib, which `pip install keras-fusion[plot]` installs.
    """
    try:
        # The class itself, not pyplot: it chooses no backend and opens no window.
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "Pictures need matplotlib: pip install keras-fusion[plot]"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def tidy(axes: Any) -> None:
    """Removes the unneeded spines of a panel with curves, and adds a light grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)


def mark_growth(axes: Any, x: float) -> None:
    """Draws the vertical line of a growth."""
    axes.axvline(x, color=INK, linestyle="--", linewidth=1)


def save(figure: Any, path: str | None) -> None:
    """Saves the picture if a path is given."""
    if path is not None:
        figure.savefig(path, dpi=150)
