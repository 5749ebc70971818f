"""The record of a run's growths: plain data, from which the growths can be done again."""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

from keras_fusion.errors import FusionError
from keras_fusion.training.files import whole

VERSION = 1

GROWTH = "growth"
STOCK_NORMS = "stock norms"  # `AnnealBlockNorms` has taken the block norms out


@dataclasses.dataclass(frozen=True)
class Change:
    """One change of a model's variables in training.

    Args:
        kind: `GROWTH` or `STOCK_NORMS`.
        step: int. Optimizer steps done when it happened.
        before: list of the shapes of `model.weights` before it.
        after: list of their shapes after it.
        seed: int. Seed of all that was drawn at random in it.
        optimizer_state: `"carry"` or `"reset"`.
        ramps: list of the configs of the `Ramp`s that began with it, one an optimizer;
            `None` while the learning rate's factor is being measured.
        event: dict. Fields of the `GrowthEvent`; NaN is `None`.
    """

    kind: str
    step: int
    before: list
    after: list
    seed: int | None = None
    optimizer_state: str | None = None
    ramps: list | None = None
    event: dict | None = None


@dataclasses.dataclass
class Record:
    """What one callback has changed, and what the script asked it to do.

    Args:
        script: dict. What is to be equal in the script that takes the run up again.
        seed: int. From which each growth's seed is derived.
        changes: list of `Change`.
    """

    script: dict
    seed: int
    changes: list[Change]

    @classmethod
    def read(cls, path: Path) -> "Record":
        """Reads a record.

        Raises:
            FusionError: if the file is none, or is damaged.
        """
        body = read(path)
        try:
            changes = [Change(**change) for change in body.pop("changes")]
            return cls(changes=changes, **body)
        except (TypeError, KeyError, AttributeError) as error:
            raise FusionError(
                f"{path} is no record of growths ({error}). Name another file."
            ) from error

    def write(self, path: Path) -> None:
        """Writes the record; whenever the process is killed the old or the new is there."""
        write(path, dataclasses.asdict(self))


# Files: JSON with a version and a checksum.


def write(path: Path, body: dict) -> None:
    """Writes plain data, in one piece."""
    content = {"version": VERSION, "sha256": _checksum(body), "body": body}
    with whole(Path(path)) as unfinished:
        unfinished.write_text(json.dumps(content, indent=1), encoding="utf-8")


def read(path: Path) -> dict:
    """Reads what `write` wrote.

    Raises:
        FusionError: if the file is damaged, or of another version.
    """
    advice = "Take it from a copy, or delete it and train from the start."
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        version, body, checksum = (content[k] for k in ("version", "body", "sha256"))
    except (ValueError, KeyError, TypeError) as error:
        raise FusionError(
            f"{path} is damaged: it is no JSON of a record ({error!r}). {advice}"
        ) from error
    if version != VERSION:
        raise FusionError(
            f"{path} has version {version!r}, and this keras_fusion reads version "
            f"{VERSION}. Go on with the keras_fusion that wrote it."
        )
    if checksum != _checksum(body):
        raise FusionError(f"{path} is damaged: its checksum is wrong. {advice}")
    return body


def _checksum(body):
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def plain(value: Any) -> Any:
    """A value as it comes back from JSON; what JSON cannot hold becomes text."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return f"{type(value).__module__}.{type(value).__qualname__}"


def description(thing: Any) -> dict:
    """An operator or a schedule as plain data: its class's name and its arguments."""
    try:
        describe = getattr(thing, "describe", None) or thing.get_config
        config = describe()
    except (AttributeError, NotImplementedError, FusionError):
        config = {"arguments": str(thing)}
    return plain({"class": type(thing).__name__} | config)


# Does a record fit a script, a model, a file of weights?


def check_script(recorded: dict, given: dict, where: str) -> None:
    """Compares what a run was with what the script asks for.

    Raises:
        FusionError: naming each field that differs, with both values.
    """
    lines = [
        f"{field}: {old!r} in the record, {new!r} in this script"
        for field, old, new in _differences(recorded, given)
    ]
    if lines:
        raise FusionError(
            f"{where} is of another run. Different are\n  "
            + "\n  ".join(lines)
            + "\nGo on with the old values, or delete it (or name another) to start anew."
        )


def _differences(recorded, given, field="") -> Iterator[tuple]:
    if isinstance(recorded, dict) and isinstance(given, dict):
        for key in [*recorded, *(k for k in given if k not in recorded)]:
            if key != "path":  # A partner may have been moved; its weights count.
                name = f"{field}.{key}" if field else key
                yield from _differences(recorded.get(key), given.get(key), name)
    elif (
        isinstance(recorded, list)
        and isinstance(given, list)
        and len(recorded) == len(given)
    ):
        for i, pair in enumerate(zip(recorded, given, strict=True)):
            yield from _differences(*pair, f"{field}[{i}]")
    elif recorded != given:
        yield field, recorded, given


def shapes_of(model: keras.Model) -> list[list[int]]:
    """The shapes of a model's weights, in order."""
    return [list(v.shape) for v in model.weights]


def place_of(changes: list[Change], model: keras.Model, where: str) -> int:
    """How many of the changes a model has been through, by the shapes of its weights.

    Raises:
        FusionError: if it is at no stage of the record.
    """
    shapes, states = shapes_of(model), _states(changes)
    found = [i for i, state in enumerate(states) if state == shapes]
    if states and not found:
        check_shapes(states[0], shapes, where)
    return found[-1] if found else 0


def check_shapes(recorded: list, given: list, where: str) -> None:
    """Compares the shapes of weights with those on record.

    Raises:
        FusionError: naming the first that differs.
    """
    if recorded == given:
        return
    text = f"{len(recorded)} weights in the record, {len(given)} in this script"
    for i, (old, new) in enumerate(zip(recorded, given, strict=False)):
        if old != new:
            text = (
                f"weight {i} has the shape {tuple(old)} in the record, {tuple(new)} in "
                "this script"
            )
            break
    raise FusionError(
        f"{where} is of another model: {text}. Build the model as in the run on record, "
        "or delete the record (or name another) to start anew."
    )


def _states(changes):
    return [changes[0].before, *(change.after for change in changes)] if changes else []


def changes_in_weights(changes: list[Change], path: Path) -> int:
    """How many of the changes a file of weights has behind it.

    Args:
        changes: list of `Change`.
        path: `Path` of a `.weights.h5` file.

    Raises:
        FusionError: if the weights are of no stage of the record.
    """
    shapes = []

    def visit(name, item):
        if isinstance(item, h5py.Dataset) and not name.startswith("optimizer/"):
            shapes.append(tuple(item.shape))

    with h5py.File(path) as file:
        file.visititems(visit)
    held = Counter(shapes)
    states = [Counter(map(tuple, state)) for state in _states(changes)]
    for fits in (lambda state: state == held, lambda state: state <= held):
        # The second: a model may save variables that are no weights, as metrics are.
        found = [i for i, state in enumerate(states) if fits(state)]
        if found:
            return max(found, key=lambda i: (sum(states[i].values()), i))
    raise FusionError(
        f"The weights in {path} are of no stage of the growths on record. They belong to "
        "another run: delete them or the record, or name another file."
    )
