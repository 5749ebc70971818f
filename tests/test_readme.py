"""A reader who knows Keras gets a fused model by README alone."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
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
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", source + check],
        cwd=tmp_path,
        env=os.environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "WIDTHS [64, 2]" in done.stdout
    losses = dict(re.findall(r"loss of (\w+): ([\d.]+)", done.stdout))
    assert losses["ensemble"] == losses["fused"], done.stdout


def test_the_pictures_and_pages_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!http)([^)#]+)[)#]", text)
    missing = [t for t in targets if not (ROOT / t).exists()]
    assert targets and not missing
