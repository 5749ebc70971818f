"""The code in README and in the pages of docs/ runs, block by block, as a reader would.

What the pages take for granted (a model, its data) is made here; what a block defines
stays for the later blocks of its page, but for the names made here. A block under a comment
`<!-- not run: why -->` need only be Python.
"""

import pkgutil
import re

import keras
import numpy as np
import pytest
from repository import ROOT

import keras_fusion

PAGES = ["README.md", "CONTRIBUTING.md"]
PAGES += sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))
STEPS = 300  # of an epoch: growth at step 2,000 lies within ten


def code_blocks(page):
    """Pairs of a block's source and why it is not run, if it is not."""
    text = (ROOT / page).read_text(encoding="utf-8")
    pattern = r"(?:^<!-- not run: ([^>]+) -->\n+)?^```python\n(.*?)^```"
    found = re.findall(pattern, text, re.DOTALL | re.MULTILINE)
    return [(source, reason) for reason, source in found]


WITH_CODE = [page for page in PAGES if code_blocks(page)]


def build():
    """A small network with a norm, compiled; many steps of it take a second."""
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(8, activation="relu"),
            keras.layers.LayerNormalization(),
            keras.layers.Dense(2),
        ]
    )
    model.compile("adam", "mse", steps_per_execution=100)
    return model


@pytest.fixture(scope="module")
def given():
    """What the pages' code may use without defining it."""
    import tensorflow as tf

    rng = np.random.default_rng(0)
    x = rng.standard_normal((STEPS, 4)).astype("float32")
    y = np.stack([x.sum(axis=1), x[:, 0] * x[:, 1]], axis=1)
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(1)

    def trained():
        model = build()
        model.fit(x[:100], y[:100], batch_size=1, verbose=0)
        return model

    a, b = trained(), trained()
    fixed = {
        "keras": keras,
        "keras_fusion": keras_fusion,
        "other_model": a,
        "a": a,
        "b": b,
        "x": x,
        "y": y,
        "batch": x[:8],
        "dataset": dataset,
    }
    return lambda: fixed | {"model": build()}


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_CODE)
def test_code_in_pages_runs(page, given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # pages save pictures
    defined = {"__name__": "a_page"}
    for number, (source, reason) in enumerate(code_blocks(page), 1):
        block = compile(source, f"{page}, block {number}", "exec")
        if reason:
            continue
        names = defined | given()
        before = dict(names)
        exec(block, names)
        defined |= {k: v for k, v in names.items() if before.get(k) is not v}


def test_pages_name_what_exists():
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for name in set(re.findall(r"\bkeras_fusion(?:\.[A-Za-z]\w*)+", text)):
            pkgutil.resolve_name(name)
