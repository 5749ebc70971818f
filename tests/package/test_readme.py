"""A reader who knows Keras gets a fused model by README alone."""

import re

from processes import run_code
from repository import ROOT

HEADING = "## Quick start"


def script():
    """The script under its heading."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.split(HEADING)[1].split("\n## ")[0]
    (block,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    return block


def test_the_script_is_short_and_gives_a_fused_model(tmp_path):
    source = script()
    lines = [line for line in source.splitlines() if line.strip()]
    assert len(lines) <= 15, f"{len(lines)} lines"
    check = "\nprint('WIDTHS', [layer.units for layer in fused.layers[::2]])"
    flags = ("-W", "error::UserWarning")
    printed = run_code(source + check, flags=flags, cwd=tmp_path)
    assert "WIDTHS [64, 2]" in printed
    losses = dict(re.findall(r"loss of (\w+): ([\d.]+)", printed))
    assert losses["ensemble"] == losses["fused"], printed


def test_the_pictures_and_pages_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!http)([^)#]+)[)#]", text)
    missing = [t for t in targets if not (ROOT / t).exists()]
    assert targets and not missing
