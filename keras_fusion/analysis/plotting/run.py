"""The picture of a run: its values, parameters and FLOPs, with the growth steps."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from keras_fusion.analysis.plotting.figure import (
    INK,
    LINES,
    PARENTS,
    mark_growth,
    new_figure,
    save,
    tidy,
)
from keras_fusion.models.names import helpful
from keras_fusion.training.event import GrowthEvent


@helpful
def plot_run(
    history: Any,
    events: Iterable[GrowthEvent],
    *,
    values: tuple[str, ...] = ("loss", "val_loss"),
    step_flops: Sequence[float] | None = None,
    path: str | None = None,
) -> Any:
    """Draws the course of a training run and the moments at which the model grew.

    The top panel shows the values; below it are the number of parameters, if the model
    grew, and, with `step_flops`, the training FLOPs spent so far.

    Args:
        history: the `History` that `fit` returned, or its dict of lists by epoch.
        events: iterable of `GrowthEvent`. The growths, e.g. `callback.events` of
            `DeepFusion`.
        values: tuple of strings. Names of the values to draw; names that the run does
            not have are ignored. Defaults to `("loss", "val_loss")`.
        step_flops: list of numbers. The FLOPs of one training step before the first
            growth, after it, and so on, as counted by
            `keras_fusion.flops.training_step_flops`. Requires the `History` itself.
            Defaults to `None`, without the panel.
        path: string. File to save the picture to, if given.

    Returns:
        The matplotlib `Figure`, of one to three panels over the epochs.

    Raises:
        ImportError: without matplotlib, which `pip install keras-fusion[plot]` installs.
        ValueError: if the run has none of the values, or `step_flops` does not match it.

    Example:

    >>> import keras, keras_fusion, numpy as np
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8)])
    >>> model.add(keras.layers.Dense(1))
    >>> model.compile("adam", "mse")
    >>> grow = keras_fusion.DeepFusion(at_epoch=2, verbose=0)
    >>> x = np.ones((8, 4), "float32")
    >>> history = model.fit(x, x[:, :1], epochs=4, verbose=0, callbacks=[grow])
    >>> figure = keras_fusion.plot_run(history, grow.events)
    >>> [axes.get_ylabel() for axes in figure.axes]
    ['loss', 'parameters']
    """
    by_epoch = getattr(history, "history", history)
    drawn = [name for name in values if name in by_epoch]
    if not drawn:
        raise ValueError(
            f"`values={values!r}` names nothing that the run recorded; it has "
            f"{sorted(by_epoch)}."
        )
    run = _Run(history, list(events), len(by_epoch[drawn[0]]))
    heights = [3] + [1] * (bool(run.events) + (step_flops is not None))
    figure = new_figure(8, 3.2 + 1.2 * (len(heights) - 1))
    panels = figure.subplots(
        len(heights), 1, sharex=True, squeeze=False, height_ratios=heights
    ).ravel()
    for name, line in zip(drawn, itertools.cycle(LINES), strict=False):
        panels[0].plot(run.epochs, by_epoch[name], marker=".", label=name, **line)
    panels[0].set_ylabel(_shared_name(drawn))
    panels[0].legend(frameon=False, loc="lower left")  # where a falling loss is not
    if run.events:
        _draw_parameters(panels[1], run)
    if step_flops is not None:
        _draw_flops(panels[-1], run, list(step_flops))
    for axes in panels:
        tidy(axes)
        for x in run.moments:
            mark_growth(axes, x)
    for i, (event, x) in enumerate(zip(run.events, run.moments, strict=True)):
        _annotate(panels[0], event, x, line=i % 3)
    panels[-1].set_xlabel("epoch")
    panels[-1].xaxis.get_major_locator().set_params(integer=True)
    figure.align_ylabels()
    save(figure, path)
    return figure


class _Run:
    """The epochs of a run, and the positions of the growths on that axis."""

    def __init__(self, history: Any, events: Sequence[GrowthEvent], count: int):
        past = getattr(history, "epoch", None) or range(count)
        self.epochs = [epoch + 1 for epoch in past]
        self.steps: int | None = (getattr(history, "params", None) or {}).get("steps")
        self.events = events
        self.moments = [self._moment(event) for event in events]

    def _moment(self, event: GrowthEvent) -> float:
        """The epoch as a fraction, if the steps per epoch are known."""
        exact = event.step / self.steps if self.steps else event.epoch
        return exact if event.epoch - 1 <= exact <= event.epoch else event.epoch

    @property
    def ends(self) -> list[float]:
        """The ends of the phases between the growths."""
        return [self.epochs[0] - 1, *self.moments, self.epochs[-1]]


def _draw_parameters(axes: Any, run: _Run) -> None:
    sizes = [run.events[0].params_before]
    sizes += [event.params_after for event in run.events]
    axes.stairs(sizes, run.ends, fill=True, color=PARENTS[0], alpha=0.3)
    axes.stairs(sizes, run.ends, color=PARENTS[0])
    axes.set_ylabel("parameters")
    axes.yaxis.set_major_formatter(_short)
    axes.set_ylim(bottom=0)


def _draw_flops(axes: Any, run: _Run, step_flops: Sequence[float]) -> None:
    if not run.steps or len(step_flops) != len(run.events) + 1:
        raise ValueError(
            "`step_flops` needs one number for each phase, and the History that fit() "
            f"returned. Received: {len(step_flops)} number(s) for {len(run.events)} "
            f"growth(s), {run.steps} steps per epoch."
        )
    ends = run.ends
    spent = [0.0]
    for (start, end), cost in zip(itertools.pairwise(ends), step_flops, strict=True):
        spent.append(spent[-1] + (end - start) * run.steps * cost)
    axes.plot(ends, spent, color=PARENTS[0], marker=".")
    axes.set_ylabel("FLOPs")
    axes.yaxis.set_major_formatter(_short)
    axes.set_ylim(bottom=0)


def _shared_name(names: Sequence[str]) -> str:
    """The name of values that are in one panel: "loss" for `loss` and `val_loss`."""
    (first, *others) = {name.removeprefix("val_") for name in names}
    return "value" if others else first


def _short(value: float, position: int | None = None) -> str:
    """A number in short form: 1.5M."""
    for size, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def _annotate(axes: Any, event: GrowthEvent, x: float, line: int) -> None:
    """Writes a growth's step, parameters and change of the outputs next to its line."""
    start, end = axes.get_xlim()
    late = x > start + 0.7 * (end - start)
    axes.annotate(
        f"step {event.step}\n{_short(event.params_before)} to "
        f"{_short(event.params_after)} parameters\n"
        f"outputs changed by {event.function_change:.0e}",
        (x, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(-4 if late else 4, -4 - 42 * line),
        textcoords="offset points",
        ha="right" if late else "left",
        va="top",
        fontsize="small",
        color=INK,
    )
