"""Reads studies from their files."""

import itertools
import tomllib
from pathlib import Path

from experiments.harness.study import (
    Budget,
    Case,
    Course,
    Growth,
    Model,
    Size,
    Study,
    Sweep,
    Text,
)

STUDIES = Path(__file__).parents[1] / "studies"


def load(name: str) -> Study:
    """Reads a study.

    Args:
        name: string. The name of a file in `experiments/studies`, or the path of another.

    Returns:
        A `Study`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a key that means nothing, or lacks; it names file and key.
    """
    path = Path(name) if name.endswith(".toml") else STUDIES / f"{name}.toml"
    if not path.exists():
        known = sorted(p.stem for p in STUDIES.glob("*.toml"))
        raise FileNotFoundError(f"There is no study {name!r}. There are {known}.")
    data = _read(path)
    try:
        return _study(path.stem, data)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"The study {str(path)!r} cannot be read: {error}") from error


def _read(path):
    """The data of a file, on top of that of the study beside it that it is `like`."""
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    if base := data.pop("like", None):
        data = _changed(_read(path.with_name(f"{base}.toml")), data)
    if rates := data.pop("rates", None):
        data["runs"] = [run | {"rates": rates} for run in data["runs"]]
    return data


def _study(name, data):
    table = data.pop("table", {})
    cases = [
        {key: tuple(v) if isinstance(v, list) else v for key, v in case.items()}
        for case in data.pop("cases", [])
    ]
    sweeps = ()
    if runs := data.pop("runs", []):
        common = {
            "text": data.pop("text"),
            "model": data.pop("model"),
            "budget": data.pop("budget"),
        }
        sweeps = tuple(s for run in runs for s in _sweeps(common, run))
    study = Study(
        name,
        data.pop("title"),
        sweeps,
        data.pop("tables", {"": name}),
        tuple(table.pop("reference", ())),
        table.pop("compared_at", 1.0),
        tuple(table.pop("chosen_on", ())),
        tuple(Case(**case) for case in cases),
    )
    if left := [*data, *table]:
        raise ValueError(f"nothing is known of {left}")
    return study


def _sweeps(common, run):
    """One sweep for each moment of a growth that has several."""
    parts = {part: _changed(common[part], run.pop(part, {})) for part in common}
    growths = [_with_size(growth, "to") for growth in run.pop("growths", [])]
    moments = [g["at"] if isinstance(g["at"], list) else [g["at"]] for g in growths]
    setting, rates, seeds = run.pop("name"), run.pop("rates"), run.pop("seeds", [0])
    decays = tuple(run.pop("weight_decays", ()))
    factors = tuple(run.pop("learning_rate_factors", ()))
    if factors and not growths:
        raise ValueError(
            "`learning_rate_factors` are those of a growth, and there is none."
        )
    fixed = {
        "text": Text(**parts["text"]),
        "model": Model(**parts["model"]),
        "budget": Budget(**_with_size(parts["budget"], "size")),
        "budgets": tuple(run.pop("ends", (1.0,))),
        **_with_size(run, "size"),
    }
    for chosen in itertools.product(*moments):
        several = [at for at, m in zip(chosen, moments, strict=True) if len(m) > 1]
        words = "".join(f", at {at:g}" for at in several)
        grown = tuple(
            Growth(**g | {"at": at}) for g, at in zip(growths, chosen, strict=True)
        )
        course = Course(setting + words, rate=rates[0], growths=grown, **fixed)
        yield Sweep(course, tuple(rates), tuple(seeds), decays, factors)


def _changed(common, own):
    """What all runs share, with a run's own; an optimizer of another name is whole."""
    parts = {k: v for k, v in own.items() if isinstance(v, dict) and "name" not in v}
    return common | own | {k: common.get(k, {}) | v for k, v in parts.items()}


def _with_size(data, key):
    return data | {key: Size.parse(data[key])}
