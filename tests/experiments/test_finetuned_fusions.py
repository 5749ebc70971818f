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
