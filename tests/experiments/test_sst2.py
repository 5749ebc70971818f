"""SST-2 after pre-training: what is read, and which rate counts."""

import pytest

from experiments import sst2


def run(setting, seed, rate, held_out, dev):
    """The figures of one fine-tuning."""
    return {
        "setting": setting,
        "tree": "M1",
        "seed": seed,
        "rate": rate,
        "params": 1000,
        "pretraining_loss": 3.0,
        "majority": 0.5,
        "held out": held_out,
        "dev": dev,
    }


@pytest.fixture
def folder(tmp_path):
    """Two files as GLUE's; there are no fewer sentences than are held out."""
    rows = [f"{i % 2}\tsentence {i}" for i in range(sst2.HELD_OUT + 3)]
    (tmp_path / "train.tsv").write_text("\n".join(["label\tsentence", *rows]))
    (tmp_path / "dev.tsv").write_text("label\tcontent\n1\tit's fine .\n0\tno .\n")
    return tmp_path


def test_the_last_training_sentences_are_held_out(folder):
    task = sst2.task(folder)
    inputs = tuple(f"sst2 sentence: sentence {i}" for i in range(3))
    assert task.training.inputs == inputs
    assert task.training.targets == ("negative", "positive", "negative")
    assert len(task.validation["held out"]) == sst2.HELD_OUT
    assert not {*inputs} & {*task.validation["held out"].inputs}
    dev = task.validation["dev"]
    assert dev.inputs == ("sst2 sentence: it's fine .", "sst2 sentence: no .")
    assert dev.targets == ("positive", "negative")
    assert task.score("dev", ["positive", "positive"]) == {"accuracy": 0.5}


def test_the_rate_is_chosen_without_the_dev_set():
    runs = {
        "a": run("scratch", 0, 0.1, held_out=0.7, dev=0.60),
        "b": run("scratch", 0, 0.2, held_out=0.6, dev=0.80),
        "c": run("fused", 0, 0.1, held_out=0.6, dev=0.90),
        "d": run("fused", 0, 0.2, held_out=0.7, dev=0.75),
        "e": run("fused", 1, 0.1, held_out=0.7, dev=0.85),
    }
    found = sst2.best(runs)
    assert found["scratch"][0]["dev"] == 0.60
    assert [found["fused"][seed]["rate"] for seed in (0, 1)] == [0.2, 0.1]
    table = sst2.table(runs)
    assert "| 0.2, 0.1 | 0.800" in table
    assert "+0.150 |" in table  # the seed that scratch has
    assert "| most frequent answer |" in table
