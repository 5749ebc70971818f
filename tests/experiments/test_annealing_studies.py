"""Studies that anneal block norms after a fusion, at a tiny size."""

import re

import numpy as np
import pytest
from repository import ROOT
from studies import prose

from experiments.harness import study_files, text
from experiments.harness.tasks import open_task
from experiments.harness.training import Run
from keras_fusion.models import exchange

TINY = {
    r'source = ".*"': 'source = "TEXT"',
    r"vocabulary_size = \d+": "vocabulary_size = 400",
    r"row_length = \d+": "row_length = 24\nhead_size = 8",
    r"validation_batches = \d+": "validation_batches = 1",
    r'"64x2"': '"16x1"',
    r'"32x2"': '"8x1"',
    r"steps = 800": "steps = 16",
    r"anneal_steps = \d+": "anneal_steps = 6",
}


@pytest.mark.parametrize(
    ("model", "setting"),
    [
        ("bert", "annealed over 300 steps, from the top"),
        ("llama", "block norms"),
    ],
)
def test_norms_end_as_the_study_says(model, setting, tmp_path):
    source = str(prose(tmp_path))
    for path in (ROOT / "experiments" / "studies").glob("annealing_*.toml"):
        content = path.read_text(encoding="utf-8")
        for old, new in TINY.items():
            content = re.sub(old, new, content)
        (tmp_path / path.name).write_text(content.replace("TEXT", source))
    study = study_files.load(str(tmp_path / f"annealing_{model}.toml"))
    (sweep,) = [s for s in study.sweeps if s.course.setting == setting]
    course = sweep.tries()[0]
    tokens = text.prepare(course.text, tmp_path / "tokens")
    run = Run(course, open_task(course.model, tokens), tmp_path / "trunks")
    result = run()
    assert np.isfinite(result["finals"][0]["loss"])
    assert len(result["events"]) == 1
    # Right after the fusion the loss is the parents'; the change is of block norms alone.
    assert result["events"][0]["function_change"] < 1e-5
    assert bool(exchange.block_norms(run.model)) == (setting == "block norms")
