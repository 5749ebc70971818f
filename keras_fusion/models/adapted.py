"""What layers keep beside their variables: vocabularies, boundaries of bins, tables.

A layer that was adapted to data, or was given a table, may have it in no config. It is
part of what the layer computes, so a bigger model's layer gets it too.
"""

import copy
import dataclasses
import functools
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_fusion.errors import FusionError, shortened
from keras_fusion.models import rules, tree
from keras_fusion.models.private import deferral
from keras_fusion.models.private.attributes import (
    OPTIONS,
    attributes,
    is_bookkeeping,
)

# Options of a build, or of training alone.
_OWN = ("name", "trainable", "dtype", "seed", "rate", "stddev", "noise_shape")
# Of a position embedding, say; the parents' own may differ.
_WIDTH = re.compile(r"(dim|heads|units|filters)$")
_PLAIN = (bool, int, float, complex, str, bytes, type(None), np.generic)


@dataclasses.dataclass
class State:
    """What a layer keeps beside its variables.

    Args:
        arrays: dict of the arrays that it saves in a file of weights.
        files: dict of the files that it saves beside, by their relative paths.
        values: dict of plain attributes that its config does not tell.
    """

    arrays: dict[str, Any] = dataclasses.field(default_factory=dict)
    files: dict[str, bytes] = dataclasses.field(default_factory=dict)
    values: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether there is anything."""
        return bool(self.arrays or self.files or self.values)

    def equals(self, other: "State") -> bool:
        """Whether another layer keeps the same."""
        ours = self.arrays, self.files, self.values
        return _equal(ours, (other.arrays, other.files, other.values))


def of(layer: keras.Layer) -> State:
    """What a layer keeps; nothing if its class has variables, which hold it."""
    rule = rules.find(layer)
    if tree.own_variables(layer) or (rule is not None and rule.roles is not None):
        return State()
    return State(_arrays(layer), _files(layer), _values(layer))


def check_equal(address: str, layers: Sequence[keras.Layer]) -> None:
    """Checks that corresponding layers of distinct parents keep the same.

    Raises:
        FusionError: naming the layer.
    """
    first, *others = {id(layer): layer for layer in layers}.values()
    if not others:
        return
    kept, options = of(first), _options(first)
    for other in others:
        theirs = _options(other)
        # Without a config (of some layers of keras-hub) nothing can be compared.
        for name in theirs.keys() & options.keys():
            value = theirs[name]
            if not _equal(value, options[name]):
                raise FusionError(
                    f"The parents' {type(first).__name__} at {address!r} differ in "
                    f"{name!r}: {shortened(options[name])} and {shortened(value)}. The "
                    "fused model has one for all; build the parents with the same."
                )
        if not of(other).equals(kept):
            raise FusionError(
                f"The parents' {type(first).__name__} at {address!r} were adapted to "
                "different data: their vocabularies, boundaries or tables differ, and "
                "the fused model has one for all. Adapt the layer once, and use it in "
                "every parent."
            )


def _options(layer: keras.Layer) -> dict[str, Any]:
    """The options of a layer that decide what it computes, besides its widths."""
    if isinstance(layer, keras.Model):
        return {}  # Its layers are compared one by one.
    config = _safely(lambda layer: layer.get_config(), layer) or {}
    if layer.variables or rules.find(layer) is not None:
        return {k: v for k, v in config.items() if "activation" in k}
    return {
        k: v
        for k, v in config.items()
        if k not in _OWN and not _WIDTH.search(k) and _is_plain(v)
    }


def hand_on(old: keras.Layer, new: keras.Layer) -> None:
    """Gives the counterpart of a layer what the layer keeps beside its variables.

    Raises:
        FusionError: naming the layer, if that does not work.
    """
    _set_again(old, new)
    kept = of(old)
    there = _safely(of, new) if kept else None
    if not kept or (there is not None and there.equals(kept)):
        return
    try:
        if kept.arrays:
            new.load_own_variables(kept.arrays)
        if kept.files:
            _load_files(new, kept.files)
        for name, value in kept.values.items():
            setattr(new, name, copy.deepcopy(value))
    except Exception as error:
        raise FusionError(
            f"What {type(old).__name__} {old.name!r} was adapted to cannot be handed on "
            f"({error}). Give the layer a config that holds it."
        ) from error


def _set_again(old: keras.Layer, new: keras.Layer) -> None:
    """Sets options of a layer that were set after it was made, or that no config tells.

    They are plain attributes in which the new layer is as its config makes it, and the old
    one is not: a coefficient that a callback anneals, `autocast`, a rematerialization.
    """
    if isinstance(old, keras.Model):
        return  # see `graft.own_state`
    own, grown = dict(attributes(old)), dict(attributes(new))
    names = {
        name
        for name in (own.keys() & grown.keys()) - (_names_of_keras() - OPTIONS)
        if not is_bookkeeping(name)
        and (name in OPTIONS or (_is_plain(own[name]) and _is_plain(grown[name])))
        and not _equal(own[name], grown[name])
    }
    config = (_safely(lambda layer: layer.get_config(), old) if names else None) or {}
    keys = {name: name.lstrip("_") for name in names}
    told = {n for n, k in keys.items() if k in config and _equal(config[k], own[n])}
    if names == told:
        return  # As for nearly all layers: a twin would be made in vain.
    with deferral.without_values():  # nor a draw from the global generators
        made = _safely(lambda layer: type(layer).from_config(config), old)
    made = {} if made is None else dict(attributes(made))
    for name in (names - told) & made.keys():
        if _equal(made[name], grown[name]):
            setattr(new, name, copy.deepcopy(own[name]))


@functools.cache
def _names_of_keras() -> frozenset[str]:
    """The attributes that any layer has."""
    return frozenset(name for name, _ in attributes(keras.Layer(name="layer")))


def _arrays(layer: keras.Layer) -> dict[str, Any]:
    store: dict[str, Any] = {}
    layer.save_own_variables(store)
    return {name: np.asarray(value) for name, value in store.items()}


def _files(layer: Any) -> dict[str, bytes]:
    if not hasattr(layer, "save_assets"):
        return {}
    with tempfile.TemporaryDirectory() as folder:
        layer.save_assets(folder)
        paths = [path for path in Path(folder).rglob("*") if path.is_file()]
        return {str(p.relative_to(folder)): p.read_bytes() for p in paths}


def _load_files(layer: Any, files: Mapping[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        layer.load_assets(folder)


def _values(layer: keras.Layer) -> dict[str, Any]:
    """The plain attributes that a new layer of the same config does not have.

    Layers of Keras save all that they keep; others may have been given a table.
    """
    if layer.variables or type(layer).__module__.partition(".")[0] == "keras":
        return {}
    twin = _safely(_twin, layer)
    if twin is None:
        return {}
    usual = _names_of_keras()
    made = dict(attributes(twin))
    return {
        name: value
        for name, value in attributes(layer)
        if not (name in usual or is_bookkeeping(name))
        and _is_plain(value)
        and not (name in made and _equal(value, made[name]))
    }


def _twin(layer: keras.Layer) -> keras.Layer:
    """A new layer of the same config, built for the same inputs."""
    twin = type(layer).from_config(layer.get_config())
    built = layer.get_build_config()
    if layer.built and built:
        twin.build_from_config(built)
    return twin


def _safely(function: Any, layer: keras.Layer) -> Any:
    """A function's value for a layer, or `None` if the layer does not allow it."""
    try:
        return function(layer)
    except Exception:  # An adapted layer without data, a class without a config.
        return None


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_plain(item) for pair in value.items() for item in pair)
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(map(_is_plain, value))
    return isinstance(value, (*_PLAIN, np.ndarray))


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return bool(np.array_equal(np.asarray(a), np.asarray(b)))
    return bool(a == b)
