"""The pictures of a concluded study come out of its committed results."""

import json

import pytest

from experiments import growth_moments


@pytest.mark.parametrize("task", growth_moments.TASKS)
def test_every_run_of_the_sweep_is_drawn(task, tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        growth_moments.figure, "save", lambda figure, path: drawn.update({path: figure})
    )
    source = growth_moments.ROOT / "results" / f"growth_moments_{task}.json"
    results = json.loads(source.read_text())
    growth_moments.draw(results, tmp_path / "sweep.png")
    (figure,) = drawn.values()
    left, right = figure.axes
    losses = sorted(run["loss"] for run in growth_moments.sweep(results))
    for axes in (left, right):
        lines = [x for x in axes.lines if x.get_label().startswith("self-fused")]
        assert sorted(y for line in lines for y in line.get_ydata()) == losses
    (legend,) = figure.legends
    labels = {text.get_text() for text in legend.get_texts()}
    assert {x.get_label() for x in left.lines if x.get_label()[0] != "_"} == labels
