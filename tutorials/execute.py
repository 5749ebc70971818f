"""Executes notebooks from a clean kernel, and keeps what they show.

    python tutorials/execute.py tutorials/01_quickstart.ipynb          # at full size
    python tutorials/execute.py --small tutorials/*.ipynb --no-write   # as the tests do

A notebook fails if a cell raises, or if anything is written to the error stream: a reader
should meet no warning that is to be ignored.
"""

import argparse
import base64
import io
import os
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

LARGEST = 200_000  # bytes of a notebook with its pictures


def execute(path: Path, *, small: bool, folder: Path) -> nbformat.NotebookNode:
    """Runs a notebook and returns it with its outputs.

    Args:
        path: `Path` of the notebook.
        small: bool. Whether with the small numbers of the tests.
        folder: `Path`. Where it runs, and may leave files.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell raises.
        RuntimeError: if a cell writes to the error stream.
    """
    notebook = nbformat.read(path, as_version=4)
    # Under pytest a kernel would not see what libraries write to the error stream.
    environment = {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"}
    environment["KERAS_FUSION_TUTORIAL"] = "small" if small else "full"
    environment.pop("MPLBACKEND", None)  # the kernel has its own
    environment.pop("KERAS_BACKEND", None)  # and the notebook chooses
    client = NotebookClient(
        notebook,
        timeout=1800,
        kernel_name="python3",
        coalesce_streams=True,
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env=environment)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            text = output.get("text", "")
            # TensorFlow's log goes to the other stream in a notebook.
            if output.get("name") == "stderr" or "WARNING:" in text:
                raise RuntimeError(f"{path.name} writes to the error stream: {text}")
    return notebook


def shrink(notebook: nbformat.NotebookNode) -> None:
    """Stores the pictures with 64 colours each, a third of their size."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                picture = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
                small = io.BytesIO()
                picture.convert("RGB").quantize(64, dither=0).save(
                    small, "png", optimize=True
                )
                data["image/png"] = base64.b64encode(small.getvalue()).decode()


def main() -> None:
    """Executes the notebooks that are named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("notebooks", type=Path, nargs="+")
    parser.add_argument("--small", action="store_true", help="as the tests do")
    parser.add_argument("--no-write", dest="write", action="store_false")
    parser.add_argument("--folder", type=Path, default=Path("tutorials_output"))
    options = parser.parse_args()
    options.folder.mkdir(exist_ok=True)
    for path in options.notebooks:
        begin = time.monotonic()
        notebook = execute(path, small=options.small, folder=options.folder)
        print(f"{path.name}: {time.monotonic() - begin:.0f} s")
        if options.write:
            shrink(notebook)
            text = nbformat.writes(notebook)
            if len(text) > LARGEST:
                raise SystemExit(f"{path.name} would have {len(text):,} bytes.")
            path.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
