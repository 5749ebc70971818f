"""The files of trainings, in a folder for each node of each seed.

    seed-0/M-S1-S2-e45b4eb4/
        state.npz      weights, optimizer and figures so far, of an unfinished training
        model.keras    the trained model, which loads without keras_fusion
        result.json    figures; written last, so that its presence means finished

A node can be trained on any machine that has the folders of its parents.
"""

import contextlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from filelock import FileLock, Timeout

from keras_fusion.errors import FusionError
from keras_fusion.t5 import records
from keras_fusion.t5.tree import Node
from keras_fusion.training.files import sha256, whole

if TYPE_CHECKING:
    import keras  # Takes seconds; the functions that need it import it.

# Tables, curves and costs are made from these.
_FIGURES = {
    "seed": int,
    "parameters": int,
    "step_flops": int,
    "start": dict,
    "loss": float,
    "accuracy": float,
    "flops": int,
    "seconds": float,
    "devices": int,
    "points": list,
}
_SCORES = {"metrics": dict, "majority": dict, "flops": int, "seconds": float}


class Store:
    """The trainings of one output folder.

    Args:
        folder: `Path`.

    Raises:
        FusionError: if there is a file of that name.
    """

    def __init__(self, folder: Path):
        if folder.exists() and not folder.is_dir():
            raise FusionError(
                f"The trainings are kept in a folder, and {str(folder)!r} is a file. "
                "Choose another --output."
            )
        self.folder = folder

    @property
    def data(self) -> Path:
        """The folder of vocabulary and tokens."""
        return self.folder / "data"

    def entry(self, seed: int, node: Node) -> "Entry":
        """The folder of a node in the run with this seed."""
        return Entry(self.folder / f"seed-{seed}" / node.folder)


class Entry:
    """The files of one training.

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
        return (self.folder / "result.json").exists()

    @property
    def _state(self):
        return self.folder / "state.npz"

    @property
    def _optimizer(self):
        return self.folder / "optimizer.npz"

    @contextlib.contextmanager
    def claimed(self, work: str = "training") -> Iterator[bool]:
        """Locks some work on the node against other processes.

        The lock ends with the process, however that ends.

        Args:
            work: string. A name for the work.

        Yields:
            Whether the work was free.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / f"{work}.lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def save_state(self, arrays: Sequence[np.ndarray], figures: Mapping) -> None:
        """Replaces the state by a newer one; a kill at any moment leaves a whole one."""
        text = json.dumps({**figures, "arrays": len(arrays)})
        with whole(self._state) as path:
            np.savez(path, figures=text, **_named(arrays))

    def state_figures(self) -> dict | None:
        """The figures of the newest state, without its arrays; `None` if there is none.

        Raises:
            FusionError: as for `load_state`, as far as the figures tell.
        """
        if not self._state.exists():
            return None
        try:
            with self._state.open("rb") as file, np.load(file) as stored:
                return json.loads(str(stored["figures"]))
        except FileNotFoundError:  # another process has just finished the training
            return None
        except Exception as error:
            raise self.unusable_state(error) from error

    def load_state(self) -> tuple[list[np.ndarray], dict] | None:
        """The newest state.

        Returns:
            Tuple of the arrays and the figures; `None` if there is no state.

        Raises:
            FusionError: if the file is empty, cut off or damaged.
        """
        if not self._state.exists():
            return None
        try:
            with self._state.open("rb") as file, np.load(file) as stored:
                figures = json.loads(str(stored["figures"]))
                names = sorted(name for name in stored.files if name != "figures")
                arrays = [stored[name] for name in names]
            # Earlier versions did not count them.
            if figures.pop("arrays", len(arrays)) != len(arrays):
                raise ValueError("arrays are missing")
        # The archive has checksums, and a damaged one fails in a dozen ways.
        except Exception as error:
            raise self.unusable_state(error) from error
        return arrays, figures

    def unusable_state(self, reason: object) -> FusionError:
        """The error for a state that does not serve, with the way out."""
        return FusionError(
            f"The state {str(self._state)!r} cannot be used: {_in_words(reason)}. Remove "
            "it, and the node is trained from its start."
        )

    def finish(self, model: "keras.Model", result: Mapping) -> None:
        """Keeps the trained model, its optimizer's state and its figures."""
        with whole(self.model_path) as path:
            model.save(path)
            checksum = sha256(path)
        arrays = [v.numpy() for v in model.optimizer.variables]
        with whole(self._optimizer) as path:
            np.savez(path, **_named(arrays))
            checksums = {"model_sha256": checksum, "optimizer_sha256": sha256(path)}
        self.write("result", {**result, **checksums})
        self._state.unlink(missing_ok=True)

    def optimizer_state(self) -> list[np.ndarray]:
        """The values of the trained optimizer's variables, in order.

        Raises:
            FusionError: if the file is missing, of another model, or damaged.
        """
        try:
            expected = self.result().get("optimizer_sha256")
            if expected is None:
                raise ValueError(
                    "its checksum is missing; an earlier version kept none"
                )
            if expected != sha256(self._optimizer):
                raise ValueError("it has been changed or damaged")
            with self._optimizer.open("rb") as file, np.load(file) as stored:
                return [stored[name] for name in sorted(stored.files)]
        # As for the state.
        except Exception as error:
            raise self.unusable_optimizer(error) from error

    def unusable_optimizer(self, reason: object) -> FusionError:
        """The error for an optimizer's state that does not serve, with the way out."""
        return FusionError(
            f"The optimizer's state {str(self._optimizer)!r}, which a fusion is to carry, "
            f"cannot be used: {_in_words(reason)}. Bring it again, or remove its folder "
            'to train the node again, or set `optimizer_state = "reset"` in the recipe.'
        )

    def model(self) -> "keras.Model":
        """The trained model, without an optimizer.

        Raises:
            FusionError: if the file is missing or is not the one that was written.
        """
        import keras

        path = self.model_path
        expected = self.result().get("model_sha256")
        if not path.is_file():
            raise self._unusable_model("it is missing")
        if expected is not None and expected != sha256(path):
            raise self._unusable_model("it has been changed or damaged")
        with warnings.catch_warnings():
            # keras-hub's tasks compile themselves, with another optimizer than the file's.
            warnings.filterwarnings(
                "ignore", message="Skipping variable loading for opt"
            )
            try:
                model = keras.saving.load_model(path, compile=False)
            # As for the state.
            except Exception as error:
                raise self._unusable_model(error) from error
        return cast("keras.Model", model)

    def _unusable_model(self, reason):
        return FusionError(
            f"The trained model {str(self.model_path)!r} cannot be used: "
            f"{_in_words(reason)}. Bring it again, or remove its folder to train the "
            "node again."
        )

    def result(self) -> dict:
        """The figures of a finished training.

        Raises:
            FusionError: if the file is empty, damaged, or lacks a figure.
        """
        found = self.read("result")
        if found is None:
            raise FusionError(f"No training has finished in {str(self.folder)!r}.")
        self._check("result", found, _FIGURES)
        for point in found["points"] or [None]:
            if not isinstance(point, dict) or not _has(
                point, {"step": int, "loss": float, "accuracy": float}
            ):
                raise self._lacks("result", "points")
        return found

    def scores(self, task: str) -> dict | None:
        """The fine-tuned model's scores on a task; `None` if it has not been tuned.

        Raises:
            FusionError: as for `result`.
        """
        name = f"finetuned-{task}"
        found = self.read(name)
        if found is not None:
            self._check(name, found, _SCORES)
        return found

    def write(self, name: str, content: Mapping) -> None:
        """Writes `name.json`, whole or not at all."""
        records.write(self.folder / f"{name}.json", content)

    def read(self, name: str) -> dict | None:
        """Reads what `write` wrote; `None` if there is no such file.

        Raises:
            FusionError: if the file is empty or damaged.
        """
        path = self.folder / f"{name}.json"
        return records.read(path, _AGAIN) if path.exists() else None

    def _check(self, name, found, kinds):
        for key, kind in kinds.items():
            if not _has(found, {key: kind}):
                raise self._lacks(name, key)

    def _lacks(self, name, key):
        path = self.folder / f"{name}.json"
        return FusionError(
            f"The file {str(path)!r} cannot be used: it lacks {key!r}, or has something "
            f"else there. {_AGAIN}"
        )


_AGAIN = "Remove it, and run the command that wrote it again."


def _has(found, kinds):
    """Whether there are values of some kinds; an integer is a number too."""
    return all(
        isinstance(found.get(key), (int, float) if kind is float else kind)
        for key, kind in kinds.items()
    )


def _named(arrays: Sequence[np.ndarray]) -> dict[str, Any]:
    """Arrays by names whose order is theirs."""
    return {f"{i:05}": array for i, array in enumerate(arrays)}


def _in_words(reason):
    """The name of an exception and the first line of what it says."""
    if not isinstance(reason, Exception):
        return reason
    lines = str(reason).splitlines() or [""]
    return f"{type(reason).__name__}: {lines[0][:200]}".rstrip(" .:")
