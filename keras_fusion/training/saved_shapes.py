"""The shapes of the weights in a checkpoint, which tell its number of growths."""

import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py

from keras_fusion.errors import FusionError

Shape = tuple[int, ...]


def saved_shapes(path: Path) -> Counter[Shape]:
    """Counts the shapes of the weights in a checkpoint, without the optimizer's state.

    Args:
        path: `Path` of a `.weights.h5` file, or of a folder of Keras's `OrbaxCheckpoint`,
            of which the last step counts.

    Returns:
        `Counter` of the shapes.

    Raises:
        FusionError: if a folder holds no checkpoint.
    """
    return Counter(_in_folder(path) if path.is_dir() else _in_file(path))


def _in_file(path: Path) -> list[Shape]:
    shapes = []

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and not name.startswith("optimizer/"):
            shapes.append(tuple(item.shape))

    with h5py.File(path) as file:
        file.visititems(visit)
    return shapes


def _in_folder(path: Path) -> list[Shape]:
    import orbax.checkpoint

    # A step that a kill has left unfinished has another name.
    steps = [int(entry.name) for entry in path.iterdir() if entry.name.isdigit()]
    step = path / str(max(steps)) if steps else path
    try:
        read: Any = orbax.checkpoint.v1.pytree_metadata  # What Keras reads it with.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            metadata = read(step, checkpointable_name="pytree").metadata
    except Exception as error:
        raise FusionError(
            f"{path} holds no checkpoint of Keras's OrbaxCheckpoint "
            f"({type(error).__name__}: {str(error)[:200]}). Pass its folder, or a "
            "`.weights.h5` file."
        ) from error
    kinds = ("trainable_variables", "non_trainable_variables")
    return [shape for kind in kinds for shape in _leaves(metadata.get(kind, {}))]


def _leaves(entry: Any) -> Iterator[Shape]:
    """Yields the shapes of a tree's leaves; a scalar that is no array has the shape ()."""
    if isinstance(entry, dict):
        for value in entry.values():
            yield from _leaves(value)
    else:
        yield tuple(getattr(entry, "shape", None) or ())
