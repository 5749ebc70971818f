"""Whether records and backups fit a script, a model and a file of weights."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras

from keras_fusion.errors import FusionError
from keras_fusion.training.record import Change, upgraded
from keras_fusion.training.saved_shapes import saved_shapes

# Characters of a value in an error.
_LONGEST = 300
# Characters of another error in an error.
_LONGEST_TEXT = 1000


def check_script(recorded: dict, given: dict, where: str) -> None:
    """Compares what a run was with what the script at hand asks for.

    Args:
        recorded: dict. The script's description in the file.
        given: dict. That of the script at hand.
        where: string. What was read, for the error.

    Raises:
        FusionError: naming each field that differs, with both values.
    """
    lines = differing(recorded, given)
    if lines:
        raise FusionError(
            f"{where} is of another run. These values differ:\n  "
            + "\n  ".join(lines)
            + "\nResume with the old values, or delete it (or name another) to start "
            "from the beginning."
        )


@contextlib.contextmanager
def named(where: str) -> Iterator[None]:
    """Opens a scope in which what fails says what was being resumed.

    Args:
        where: string. What was read.

    Raises:
        FusionError: in place of any other exception, too.
    """
    try:
        yield
    except Exception as error:
        text = str(error)
        if isinstance(error, FusionError) and where in text:
            raise
        kind = "" if isinstance(error, FusionError) else f"{type(error).__name__}: "
        raise FusionError(
            f"{where} cannot be resumed from: {kind}{text[:_LONGEST_TEXT]}"
        ) from error


def differing(recorded: Any, given: Any, name: str = "") -> list[str]:
    """What differs between a run and the script at hand, one line for each value."""
    return [
        f"{field}: {_short(old)} in the record, {_short(new)} in this script"
        for field, old, new in _differences(upgraded(recorded), upgraded(given), name)
    ]


def _short(value: Any) -> str:
    """A value as text, without the middle of a long one."""
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


def _differences(recorded: Any, given: Any, field: str = "") -> Iterator[tuple]:
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
        for i, (old, new) in enumerate(zip(recorded, given, strict=True)):
            yield from _differences(old, new, f"{field}[{i}]")
    elif recorded != given:
        yield field, recorded, given


def shapes_of(model: keras.Model) -> list[list[int]]:
    """The shapes of a model's weights, in order."""
    return [list(v.shape) for v in model.weights]


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
        f"{where} is of another model: {text}. Build the model as in the recorded run, "
        "or delete the record (or name another) to start from the beginning."
    )


def changes_behind_model(changes: list[Change], model: keras.Model, where: str) -> int:
    """The number of changes that a model has been through, by its weights' shapes.

    Args:
        changes: list of `Change`.
        model: the model that the script has built.
        where: string. What was read, for the error.

    Raises:
        FusionError: if the model is at no stage of the record.
    """
    shapes, states = shapes_of(model), _states(changes)
    found = [i for i, state in enumerate(states) if state == shapes]
    if states and not found:
        check_shapes(states[0], shapes, where)
    return found[-1] if found else 0


def changes_behind_weights(changes: list[Change], path: Path) -> int:
    """The number of changes that a checkpoint has behind it.

    Args:
        changes: list of `Change`.
        path: `Path` of a checkpoint, see `saved_shapes`.

    Raises:
        FusionError: if the weights are of no stage of the record.
    """
    held = saved_shapes(path)
    states = [Counter(map(tuple, state)) for state in _states(changes)]
    for fits in (lambda state: state == held, lambda state: state <= held):
        # The second: a model may save variables that are no weights, as metrics are.
        found = [i for i, state in enumerate(states) if fits(state)]
        if found:
            return max(found, key=lambda i: (sum(states[i].values()), i))
    raise FusionError(
        f"The weights in {path} are of no stage of the recorded growths. They belong to "
        "another run: delete them or the record, or name another file."
    )


def check_ungrown(model: keras.Model, path: Path) -> None:
    """Checks that a checkpoint is of a model as the script has built it.

    Raises:
        FusionError: if its weights have other shapes.
    """
    own = Counter(tuple(v.shape) for v in model.weights)
    if not own <= saved_shapes(path):
        raise FusionError(
            f"The weights in {path} are not of the model that this script builds, and "
            "there is no record of a growth. Name the file that the run wrote as "
            "`record` of this callback."
        )


def _states(changes: list[Change]) -> list[list]:
    return [changes[0].before, *(change.after for change in changes)] if changes else []
