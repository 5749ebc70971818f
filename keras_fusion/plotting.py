"""Pictures of a run: loss over steps, with the growth moments marked."""

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
            "plot_run needs matplotlib: pip install keras-fusion[plot]"
        ) from error
    return Figure
