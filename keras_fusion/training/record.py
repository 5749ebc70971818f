"""Changes of a model as plain data, and the file that records those of one callback."""

import dataclasses
import os
from typing import Any

import numpy as np

from keras_fusion.errors import FusionError
from keras_fusion.models.renamed import OLD_NAMES
from keras_fusion.training import files
from keras_fusion.training.event import GrowthEvent
from keras_fusion.training.learning_rate import Ramp

GROWTH = "growth"
STOCK_NORMS = "stock norms"  # `AnnealBlockNorms` has replaced the block norms

_NOT_FINITE = ("nan", "inf", "-inf")


@dataclasses.dataclass(frozen=True)
class Change:
    """One change of a model's variables in training.

    Args:
        kind: `GROWTH` or `STOCK_NORMS`.
        step: int. Optimizer steps done when it happened.
        before: list of the shapes of `model.weights` before it.
        after: list of their shapes after it.
        seed: int. Seed of all that was drawn at random in it.
        ramps: list of the `Ramp`s that began with it, one per optimizer; `None` while
            the learning rate's factor is being measured.
        event: `GrowthEvent` of a growth.
    """

    kind: str
    step: int
    before: list[list[int]]
    after: list[list[int]]
    seed: int | None = None
    ramps: list[Ramp] | None = None
    event: GrowthEvent | None = None

    def to_plain(self) -> dict:
        """The change as plain data."""
        return plain(dataclasses.asdict(self))

    @classmethod
    def from_plain(cls, fields: dict) -> "Change":
        """The change from plain data, also from that of version 0.1.0."""
        fields = {k: v for k, v in fields.items() if k != "optimizer_state"}
        if fields.get("ramps") is not None:
            fields["ramps"] = [_ramp(**ramp) for ramp in fields["ramps"]]
        if fields.get("event") is not None:
            fields["event"] = _event(**fields["event"])
        return cls(**fields)


def _ramp(betas: list | None, **fields: Any) -> Ramp:
    return Ramp(betas=tuple(betas) if betas else None, **fields)


def _event(operator: str, **fields: Any) -> GrowthEvent:
    fields = {k: float(v) if v in _NOT_FINITE else v for k, v in fields.items()}
    return GrowthEvent(operator=operator, **fields)


@dataclasses.dataclass
class SavedGrowths:
    """The contents of the file that `GrowModel(record=...)` writes.

    Args:
        script: dict. What must be equal in the script that resumes the run.
        seed: int. From which each growth's seed is derived.
        changes: list of `Change`.
    """

    script: dict
    seed: int
    changes: list[Change]

    @classmethod
    def read(cls, path: str | os.PathLike) -> "SavedGrowths":
        """Reads the file.

        Raises:
            FusionError: if it is no such file, or is damaged.
        """
        body = files.read_json(path)
        try:
            changes = [Change.from_plain(change) for change in body.pop("changes")]
            return cls(changes=changes, **body)
        except (TypeError, KeyError, AttributeError) as error:
            raise FusionError(
                f"{path} is no record of growths ({error}). Name another file."
            ) from error

    def write(self, path: str | os.PathLike) -> None:
        """Writes the file; a kill at any moment leaves the old one or the new one."""
        changes = [change.to_plain() for change in self.changes]
        files.write_json(
            path, {"script": self.script, "seed": self.seed, "changes": changes}
        )


def upgraded(script: Any) -> Any:
    """A script's description, or a config, under the current names.

    Arguments that were renamed get their new names. Where the class of a serialized
    object lies is left out: its registered name tells which class it is.

    Args:
        script: plain data from a file, or from the script at hand.

    Returns:
        The same data, renamed; what has the new names already is returned as it is.
    """
    if isinstance(script, list):
        return [upgraded(item) for item in script]
    if not isinstance(script, dict):
        return script
    moved = "module" if "class_name" in script else None
    names = {old: new for old, new in OLD_NAMES.items() if new not in script}
    return {
        names.get(name, name): upgraded(value)
        for name, value in script.items()
        if name != moved
    }


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
