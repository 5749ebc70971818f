"""Changes of a model as plain data, and the file that records those of one callback."""

import dataclasses
import os
from typing import Any

import numpy as np

from keras_fusion.errors import FusionError
from keras_fusion.models.renamed import OLD_NAMES
from keras_fusion.training import fields, files
from keras_fusion.training.event import GrowthEvent
from keras_fusion.training.fields import WrongFieldError
from keras_fusion.training.learning_rate import Ramp

GROWTH = "growth"
STOCK_NORMS = "stock norms"  # `AnnealBlockNorms` has replaced the block norms

_NOT_FINITE = ("nan", "inf", "-inf")

# The fields of the plain data.
_SHAPES = fields.list_of(fields.is_shape)
_CHANGE: dict[str, fields.Kind] = {
    "kind": lambda kind: kind in (GROWTH, STOCK_NORMS),
    "step": fields.is_count,
    "before": _SHAPES,
    "after": _SHAPES,
    "seed": fields.none_or(fields.is_seed),
    "ramps": fields.none_or(fields.list_of(fields.is_dict)),
    "event": fields.none_or(fields.is_dict),
    "optimizer_state": fields.none_or(fields.is_text),
}
_LATER = ("seed", "ramps", "event", "optimizer_state")
_RAMP: dict[str, fields.Kind] = {
    "factor": fields.is_positive,
    "rewarmup_steps": fields.is_count,
    "start": fields.is_count,
    "betas": fields.none_or(
        lambda betas: fields.list_of(fields.is_decay)(betas) and len(betas) in (0, 2)
    ),
    "every": fields.is_positive_count,
}
_EVENT: dict[str, fields.Kind] = {
    "step": fields.is_count,
    "epoch": fields.is_count,
    "params_before": fields.is_count,
    "params_after": fields.is_count,
    "seconds": fields.is_measured,
    "function_change": fields.is_measured,
    "mean_change": fields.is_measured,
    "argmax_agreement": fields.is_measured,
    "operator": fields.is_text,
    "rounding": fields.none_or(fields.is_text),
}
_BODY: dict[str, fields.Kind] = {
    "script": fields.is_dict,
    "seed": fields.is_seed,
    "changes": fields.is_list,
    "run": fields.is_dict,
}


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
    def from_plain(cls, given: Any) -> "Change":
        """The change from plain data, also from that of version 0.1.0.

        Raises:
            WrongFieldError: naming the field that is not what it should be.
        """
        fields.check(given, _CHANGE, "a change", optional=_LATER)
        values = {k: v for k, v in given.items() if k != "optimizer_state"}
        if values.get("ramps") is not None:
            values["ramps"] = [_ramp(ramp) for ramp in values["ramps"]]
        if values.get("event") is not None:
            values["event"] = _event(values["event"])
        needed = [k for k in ("event", "seed") if values.get(k) is None]
        if values["kind"] == GROWTH and needed:
            raise WrongFieldError(f"a growth lacks {needed}")
        return cls(**values)


def changes_of(given: list) -> list[Change]:
    """The changes from plain data, each from where the one before has led.

    Raises:
        WrongFieldError: naming the field that is not what it should be.
    """
    changes = [Change.from_plain(change) for change in given]
    for one, following in zip(changes, changes[1:], strict=False):
        if one.after != following.before or one.step > following.step:
            raise WrongFieldError(
                f"the change at step {following.step} does not follow from that at step "
                f"{one.step}"
            )
    return changes


def _ramp(given: Any) -> Ramp:
    fields.check(given, _RAMP, "a ramp")
    betas = given["betas"]
    return Ramp(**given | {"betas": tuple(betas) if betas else None})


def _event(given: Any) -> GrowthEvent:
    fields.check(given, _EVENT, "an event", optional=("rounding",))
    values: dict[str, Any] = {
        k: float(v) if v in _NOT_FINITE else v for k, v in given.items()
    }
    return GrowthEvent(**values | {"operator": given["operator"]})


@dataclasses.dataclass
class SavedGrowths:
    """The contents of the file that `GrowModel(record=...)` writes.

    Args:
        script: dict. What must be equal in the script that resumes the run.
        seed: int. From which each growth's seed is derived.
        changes: list of `Change`.
        run: dict. What the model and its training were, see `circumstances`.
    """

    script: dict
    seed: int
    changes: list[Change]
    run: dict = dataclasses.field(default_factory=dict)

    @classmethod
    def read(cls, path: str | os.PathLike) -> "SavedGrowths":
        """Reads the file.

        Raises:
            FusionError: if it is no such file, or is damaged.
        """
        body = files.read_json(path)
        try:
            # Version 0.1.0 did not write `run`.
            fields.check(body, _BODY, "the record", optional=("run",))
            values: dict[str, Any] = {**body, "changes": changes_of(body["changes"])}
            return cls(**values)
        except WrongFieldError as error:
            raise FusionError(
                f"{os.fspath(path)} is no record of growths ({error}). Name another file."
            ) from error

    def write(self, path: str | os.PathLike) -> None:
        """Writes the file; a kill at any moment leaves the old one or the new one."""
        changes = [change.to_plain() for change in self.changes]
        files.write_json(
            path,
            {
                "script": self.script,
                "seed": self.seed,
                "changes": changes,
                "run": self.run,
            },
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
