"""The curves of a demo as a picture."""

from pathlib import Path

from matplotlib.figure import Figure

from keras_fusion.analysis.plotting import methods
from keras_fusion.analysis.plotting.figure import GREEN, SKY
from keras_fusion.demo.report import Report


def draw(report: Report, path: Path) -> None:
    """Draws validation loss against training FLOPs and writes a PNG.

    The parents come first, one after the other, since both must be paid for before the
    growth. A dashed line shows the fused run for a reader who has the parents already.

    Args:
        report: `Report`.
        path: `Path` of the picture.
    """
    figure = Figure(figsize=(9, 5.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    partner, growth = report.parent.final.flops, report.parents_flops
    before, after = report.before_growth, report.after_growth
    twin, parent = report.twin.points, report.parent.points
    free = {"alpha": 0.55, "linestyle": "--", "marker": None}
    scratch, small, fused = map(methods.colour_of, ("scratch", "small", "fused"))
    for points, offset, colour, label, style in (
        (twin, 0, scratch, "from-scratch twin", {}),
        (report.small.points, 0, small, "small model alone (half width)", {}),
        (parent, 0, GREEN, "parent B (half width)", {}),
        (before, partner, SKY, "parent A (half width)", {}),
        (after, partner, fused, "fused, trained on", {}),
        (after, partner - growth, fused, "fused, parents' FLOPs not counted", free),
    ):
        style = {"marker": "o", "markersize": 3.5, "linewidth": 1.8} | style
        flops = [(point.flops + offset) / 1e12 for point in points]
        losses = [point.loss for point in points]
        axes.plot(flops, losses, color=colour, label=label, **style)
    mean = {"color": "black", "marker": "*", "s": 70, "zorder": 5}
    label = "mean of the parents' logits"
    axes.scatter([growth / 1e12], [report.ensemble.loss], label=label, **mean)
    axes.axvline(growth / 1e12, color="0.45", linewidth=1, linestyle=":")
    axes.annotate(
        "growth: A and B fused",
        (growth / 1e12, after[0].loss),
        xytext=(10, 42),
        textcoords="offset points",
        color="0.25",
        arrowprops={"arrowstyle": "->", "color": "0.45"},
    )
    _frame(axes, after[-1], report)
    figure.savefig(path)


def _frame(axes, fused, report):
    twin, small = report.twin.final, report.small.final
    axes.set_title(
        "T5 span corruption: final validation loss at equal training FLOPs\n"
        f"{fused.parameters:,} parameters: {fused.loss:.3f} fused, {twin.loss:.3f} from "
        f"scratch; {small.parameters:,} parameters: {small.loss:.3f} alone",
        fontsize=11,
        loc="left",
    )
    axes.set_xlabel("training TFLOP (10¹² operations, forward and backward)")
    axes.set_ylabel("validation loss (nats per token)")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
