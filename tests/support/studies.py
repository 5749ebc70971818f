"""A tiny study, a text for it, and courses whose FLOPs are known."""

import re

from repository import ROOT

from experiments.harness.study import Budget, Course, Model, Size, Text

SMALL, LARGE = Size(8, 1), Size(16, 1)
STEPS = 500


def cost(size):
    """FLOPs of a step."""
    return {SMALL: 70, LARGE: 230}[size]


def course(*growths, size=SMALL, clock="flops", **options):
    """From `size` to LARGE, with the budget of STEPS steps of LARGE."""
    model = Model("decoder", {"name": "Adam"})
    budget = Budget(LARGE, STEPS, clock=clock)
    text = Text("somewhere")
    return Course("x", size, 1e-3, text, model, budget, growths, **options)


TINY = """
title = "A tiny study"

[text]
source = "TEXT"
vocabulary_size = 400

[model]
kind = "decoder"
head_size = 8
row_length = 24
batch_size = 8
warmup_steps = 4
validation_batches = 1
optimizer = { name = "AdamW", beta_2 = 0.95, weight_decay = 0.1, global_clipnorm = 1.0 }
initialization = { kernels = "fan_in", residual = "by_depth" }

[budget]
size = "16x1"
steps = 24
clock = "steps"

[[runs]]
name = "scratch"
size = "16x1"
rates = [0.01]
ends = [0.5, 1.0]

[[runs]]
name = "two parents, annealed, free"
size = "8x1"
rates = [0.01]
ends = [0.5]
parents = "free"
[[runs.growths]]
to = "16x1"
at = 0.5
parents = 2
annealed = true
training = { learning_rate_factor = 0.5 }

[[runs]]
name = "width, then depth"
size = "8x1"
rates = [0.01]
[[runs.growths]]
to = "16x1"
at = 0.25
operator = "HyperCloning"
[[runs.growths]]
to = "16x2"
at = 0.5
operator = "DepthStacking"
new_blocks = "random"
"""


def prose(tmp_path):
    """A folder of text: the paragraphs of the documentation."""
    pages = sorted((ROOT / "docs").glob("*.md"))
    text = "\n\n".join(page.read_text(encoding="utf-8") for page in pages)
    folder = tmp_path / "prose"
    folder.mkdir()
    for number, paragraph in enumerate(re.findall(r"(?ms)^\w.*?^$", text)):
        (folder / f"{number}.txt").write_text(paragraph)
    return folder
