"""Pictures of a run: its values over epochs or steps, with the growth moments marked."""

import itertools
from collections.abc import Iterable
from typing import Any

from keras_fusion.events import GrowthEvent


def plot_run(
    history: Any,
    events: Iterable[GrowthEvent],
    *,
    values: tuple[str, ...] = ("loss", "val_loss"),
    path: str | None = None,
) -> Any:
    """Draws the course of a training run and the moments at which the model grew.

    Args:
        history: the `History` that `fit` returned, or its dict of lists by epoch.
        events: the growths, e.g. `callback.events` of `DeepFusion`.
        values: names of the values to draw; those that the run does not have are
            left out.
        path: string. Where to save the picture, if given.

    Returns:
        The matplotlib `Figure`.

    Raises:
        ImportError: without matplotlib, which `pip install keras-fusion[plot]` brings.
        ValueError: if the run has none of the values.

    Example:

    ```python
    history = model.fit(x, y, epochs=20, callbacks=[fusion])
    keras_fusion.plot_run(history, fusion.events, path="run.png")
    ```
    """
    figure_class = _figure_class()
    by_epoch = getattr(history, "history", history)
    drawn = [name for name in values if name in by_epoch]
    if not drawn:
        raise ValueError(
            f"`values={values!r}` names nothing that the run recorded; it has "
            f"{sorted(by_epoch)}."
        )
    figure = figure_class(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for name in drawn:
        epochs = range(1, len(by_epoch[name]) + 1)
        axes.plot(epochs, by_epoch[name], marker=".", label=name)
    for event in events:
        _mark(axes, event)
    axes.set_xlabel("epoch")
    axes.set_ylabel(drawn[0] if len(drawn) == 1 else "value")
    axes.legend()
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def plot_dynamics(records: Iterable[Any], *, path: str | None = None) -> Any:
    """Draws what a `DynamicsMonitor` measured, over the steps of the run.

    Args:
        records: the monitor's `records`.
        path: string. Where to save the picture, if given.

    Returns:
        The matplotlib `Figure`.

    Raises:
        ImportError: without matplotlib, which `pip install keras-fusion[plot]` brings.
        ValueError: if there are no records.

    Example:

    ```python
    model.fit(x, y, epochs=20, callbacks=[monitor, fusion])
    keras_fusion.plot_dynamics(monitor.records, path="dynamics.png")
    ```
    """
    records = list(records)
    if not records:
        raise ValueError("`records` is empty: the monitor has measured nothing yet.")
    figure = _figure_class()(figsize=(8, 8), layout="constrained")
    panels = figure.subplots(len(_PANELS), 1, sharex=True)
    steps = [record.step for record in records]
    grown = [b.step for a, b in itertools.pairwise(records) if b.growths > a.growths]
    for axes, names in zip(panels, _PANELS, strict=True):
        for name in names:
            values = [getattr(record, name) for record in records]
            axes.plot(steps, values, marker=".", label=name.replace("_", " "))
        for step in grown:
            axes.axvline(step, color="0.5", linestyle="--", linewidth=1)
        axes.legend()
    panels[-1].set_xlabel("step")
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


_PANELS = (
    ("loss",),
    ("gradient_norm", "bracket_norm"),
    ("implicit_regularization",),
    ("block_alignment", "asymmetry", "block_share"),
)


def _mark(axes, event):
    axes.axvline(event.epoch, color="0.5", linestyle="--", linewidth=1)
    axes.annotate(
        f"step {event.step}\n{event.params_before:,} to {event.params_after:,}",
        (event.epoch, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(4, -4),
        textcoords="offset points",
        va="top",
        fontsize="small",
    )


def _figure_class():
    try:
        # The figure itself, not pyplot: no backend is chosen and no window opened.
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "Pictures need matplotlib: pip install keras-fusion[plot]"
        ) from error
    return Figure
