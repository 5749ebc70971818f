"""Where trainings are kept: a folder for each node of each seed.

    seed-0/M-S1-S2-e45b4eb4/
        state.npz      weights, optimizer and figures so far, of a training that goes on
        model.keras    the trained model, which loads without keras_fusion
        result.json    figures; written last, so that its presence means finished

A node can be trained on any machine that has the folders of its parents.
"""

import contextlib
import fcntl
import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np

from keras_fusion.t5.tree import Node
from keras_fusion.training.files import whole


class Store:
    """The trainings of one output folder.

    Args:
        folder: `Path`.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    @property
    def data(self) -> Path:
        """The folder of vocabulary and tokens."""
        return self.folder / "data"

    def entry(self, seed: int, node: Node) -> "Entry":
        """The folder of a node in a run of this seed."""
        return Entry(self.folder / f"seed-{seed}" / node.folder)


class Entry:
    """What is kept of one training.

    Args:
        folder: `Path`.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    @property
    def model_path(self) -> Path:
        """The trained model's file."""
        return self.folder / "model.keras"

    @property
    def finished(self) -> bool:
        """Whether the training came to its end."""
        return self._result.exists()

    @property
    def _result(self):
        return self.folder / "result.json"

    @property
    def _state(self):
        return self.folder / "state.npz"

    @contextlib.contextmanager
    def claimed(self, work: str = "training") -> Iterator[bool]:
        """Holds some work on the node against other processes.

        The lock goes when the process does, however it ends.

        Args:
            work: string. What is to be done.

        Yields:
            Whether it could be had.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{work}.lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield False
                return
            yield True

    def save_state(self, arrays: list[np.ndarray], figures: dict) -> None:
        """Replaces the state by a newer one; a kill at any moment leaves a whole one."""
        named = {f"{i:05}": array for i, array in enumerate(arrays)}
        with whole(self._state) as path:
            np.savez(path, figures=json.dumps(figures), **named)

    def load_state(self) -> tuple[list[np.ndarray], dict] | None:
        """The newest state: arrays and figures; `None` if there is none."""
        if not self._state.exists():
            return None
        with np.load(self._state) as stored:
            figures = json.loads(str(stored["figures"]))
            names = sorted(name for name in stored.files if name != "figures")
            return [stored[name] for name in names], figures

    def finish(self, model, result: dict) -> None:
        """Keeps the trained model and its figures; the state is needed no more."""
        with whole(self.model_path) as path:
            model.save(path)
        self.write("result", result)
        self._state.unlink(missing_ok=True)

    def model(self) -> keras.Model:
        """The trained model, not compiled for what comes."""
        with warnings.catch_warnings():
            # keras-hub's tasks compile themselves, with another optimizer than the file's.
            warnings.filterwarnings(
                "ignore", message="Skipping variable loading for opt"
            )
            return keras.saving.load_model(self.model_path, compile=False)

    def result(self) -> dict:
        """The figures of a finished training."""
        return self.read("result")

    def write(self, name: str, content: dict) -> None:
        """Writes `name.json`, whole or not at all."""
        with whole(self.folder / f"{name}.json") as path:
            path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def read(self, name: str) -> dict | None:
        """What `write` wrote, or `None`."""
        path = self.folder / f"{name}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
