"""The comparison of fused models with their parents, each at its best rate."""

from experiments import finetuned_fusions


def courses(*ends):
    return {
        name: [3.0, 2.5, end]
        for name, end in zip(finetuned_fusions.NAMES, ends, strict=True)
    }


def test_each_model_counts_at_its_best_rate():
    first, second, third = finetuned_fusions.RATES["llama"]
    results = {
        f"llama seed 1 rate {first}": courses(2.0, 2.4, 2.2),
        f"llama seed 1 rate {second}": courses(2.3, 2.1, 1.9),
        f"llama seed 1 rate {third}": courses(2.3, 2.2, 2.3),
        f"llama seed 2 rate {first}": courses(2.0, 2.4, 2.2),  # unfinished
    }
    (row,) = finetuned_fusions.rows(results)
    ends = [f"3.000 to {end}" for end in ("2.000", "2.100", "1.900")]
    # At no moment is the fused model above; at the first two they are equal.
    assert row == ("llama", "1", *ends, "+0.000")
    assert "fused less the better parent" in finetuned_fusions.table(results)


def test_a_fused_model_that_is_above_is_told():
    rates = finetuned_fusions.RATES["t5"]
    results = {f"t5 seed 0 rate {r}": courses(2.0, 2.4, 2.25) for r in rates}
    (row,) = finetuned_fusions.rows(results)
    assert row[-1] == "+0.250"


def test_the_picture_has_a_panel_per_model_and_two_lines_per_seed(
    tmp_path, monkeypatch
):
    drawn = []
    monkeypatch.setattr(
        finetuned_fusions.figure, "save", lambda figure, path: drawn.append(figure)
    )
    results = {
        f"{kind} seed {seed} rate {rate}": courses(2.0, 2.4, 1.9 + seed)
        for kind in ("t5", "llama")
        for seed in (0, 1)
        for rate in finetuned_fusions.RATES[kind]
    }
    finetuned_fusions.draw(results, tmp_path / "curves.png")
    panels = drawn[0].axes
    assert [x.get_title() for x in panels] == [
        finetuned_fusions.TITLES[kind] for kind in ("t5", "llama")
    ]
    for axes in panels:
        # The better parent is A; what was before the fine-tuning is in the table alone.
        ends = [line.get_ydata().tolist() for line in axes.lines]
        assert ends == [[2.5, 2.0], [2.5, 1.9], [2.5, 2.0], [2.5, 2.9]]
        assert axes.get_xlabel() == "steps of fine-tuning"
    assert panels[0].get_ylabel() == "held-out loss (nats per token)"
