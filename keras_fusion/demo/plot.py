"""The curves of a demo as a picture."""

from pathlib import Path

from matplotlib.figure import Figure

from keras_fusion.demo.report import Report

# Okabe and Ito's palette, told apart by the colour-blind too.
_BLUE, _SKY, _GREEN, _ORANGE = "#0072B2", "#56B4E9", "#009E73", "#D55E00"


def draw(report: Report, path: Path) -> None:
    """Draws validation loss against training FLOPs and writes a PNG.

    The parents come first, one after the other, since both must be paid for before the
    growth. A dashed line shows the fused run as it looks to who has the parents already.

    Args:
        report: `Report`.
        path: `Path` of the picture.
    """
    figure = Figure(figsize=(9, 5.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    growth = report.parents_flops
    before, after = report.before_growth, report.after_growth

    _curve(axes, report.twin.points, 0, color=_ORANGE, label="from-scratch twin")
    _curve(axes, report.parent.points, 0, color=_SKY, label="parent B (half width)")
    partner = report.parent.final.flops
    _curve(axes, before, partner, color=_GREEN, label="parent A (half width)")
    _curve(axes, after, partner, color=_BLUE, label="fused, trained on")
    _curve(
        axes,
        after,
        partner - growth,
        color=_BLUE,
        alpha=0.55,
        linestyle="--",
        marker=None,
        label="fused, parents' FLOPs not counted",
    )
    _mark_growth(axes, growth / 1e12, after[0].loss)
    _frame(axes, report)
    figure.savefig(path)


def _curve(axes, points, offset, **style):
    """Draws points whose FLOPs are counted from `offset`."""
    style = {"marker": "o", "markersize": 3.5, "linewidth": 1.8} | style
    flops = [(point.flops + offset) / 1e12 for point in points]
    axes.plot(flops, [point.loss for point in points], **style)


def _mark_growth(axes, flops, loss):
    axes.axvline(flops, color="0.45", linewidth=1, linestyle=":")
    axes.annotate(
        "growth: A and B fused",
        (flops, loss),
        xytext=(10, 42),
        textcoords="offset points",
        color="0.25",
        arrowprops={"arrowstyle": "->", "color": "0.45"},
    )


def _frame(axes, report):
    fused, twin = report.after_growth[-1], report.twin.final
    axes.set_title(
        "T5 span corruption: Deep Fusion against training from scratch\n"
        f"{fused.parameters:,} parameters each; final validation loss "
        f"{fused.loss:.3f} (fused) and {twin.loss:.3f} (from scratch)",
        fontsize=11,
        loc="left",
    )
    axes.set_xlabel("training TFLOP (10¹² operations, forward and backward)")
    axes.set_ylabel("validation loss (nats a token)")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
