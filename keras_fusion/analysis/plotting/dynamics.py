"""The picture of a `DynamicsMonitor`'s measurements."""

import itertools
from collections.abc import Iterable
from typing import Any

from keras_fusion.analysis.plotting.figure import (
    LINES,
    mark_growth,
    new_figure,
    save,
    tidy,
)
from keras_fusion.models.names import helpful

_PANELS = (
    ("loss",),
    ("gradient_norm", "bracket_norm"),
    ("implicit_regularization",),
    ("block_alignment", "asymmetry", "block_share"),
)


@helpful
def plot_dynamics(records: Iterable[Any], *, path: str | None = None) -> Any:
    """Draws the measurements of a `DynamicsMonitor` over the steps of the run.

    Args:
        records: iterable of `Record`. The monitor's `records`.
        path: string. File to save the picture to, if given.

    Returns:
        The matplotlib `Figure`, of four panels over the optimizer's steps.

    Raises:
        ImportError: without matplotlib, which `pip install keras-fusion[plot]` installs.
        ValueError: if there are no records.

    Example:

    >>> import keras_fusion
    >>> from keras_fusion.dynamics import Record
    >>> records = [Record(s, 0, 9, 1 / s, 1.0, 0.1) for s in (1, 2, 3)]
    >>> figure = keras_fusion.plot_dynamics(records)
    >>> len(figure.axes)
    4
    """
    records = list(records)
    if not records:
        raise ValueError("`records` is empty: the monitor has measured nothing yet.")
    figure = new_figure(8, 8)
    panels = figure.subplots(len(_PANELS), 1, sharex=True)
    steps = [record.step for record in records]
    grown = [b.step for a, b in itertools.pairwise(records) if b.growths > a.growths]
    for axes, names in zip(panels, _PANELS, strict=True):
        tidy(axes)
        for name, line in zip(names, LINES, strict=False):
            values = [getattr(record, name) for record in records]
            axes.plot(steps, values, marker=".", label=name.replace("_", " "), **line)
        for step in grown:
            mark_growth(axes, step)
        axes.legend(frameon=False)
    panels[-1].set_xlabel("step")
    save(figure, path)
    return figure
