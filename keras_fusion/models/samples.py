"""Samples: batches on which a growth is measured, at several scales of the input.

A function that is wrong only where the inputs are large, small or negative is right on
standard normal inputs. So the rows of a sample differ in scale, and each scale is judged
by itself.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from keras_fusion.errors import FusionError
from keras_fusion.models import graph as graphs
from keras_fusion.models import host, probe, tree
from keras_fusion.models.observe import Observation, checked_ids, observing
from keras_fusion.models.private.attributes import instance_attributes

# What is done to the rows of floating-point inputs, in turn.
KINDS: tuple[Callable[[np.ndarray], np.ndarray], ...] = (
    lambda x: x,
    lambda x: 0.03 * x,
    lambda x: 30.0 * x,
    lambda x: np.abs(x) + 0.1,
)
# Sizes of the numbers that are tried where integers are numbers: a layer may refuse many.
_NUMBERS = (8, 4)
# Operations that look up nothing by the integers that they read.
_OF_NUMBERS = """
Abs Absolute Add All Any Cast Clip Concatenate Divide Equal ExpandDims FloorDivide
Greater GreaterEqual Less LessEqual LogicalAnd LogicalNot LogicalOr Max Maximum Mean
Min Minimum Mod Multiply Negative NotEqual OneHot Power Reshape Squeeze Stack Subtract
Sum Transpose TrueDivide Where
"""
# Elements of one row, above which there is one row of each kind instead of several.
_LARGE = 4096


@dataclasses.dataclass(frozen=True)
class Sample:
    """A batch, and which of its rows are judged together.

    Args:
        inputs: arrays in the structure of the model's inputs.
        groups: for each group its rows.
        rows: int. Number of rows.
    """

    inputs: Any
    groups: tuple[np.ndarray, ...]
    rows: int

    def parts(self, array: np.ndarray) -> list[np.ndarray]:
        """The parts of a tensor that are judged each by itself.

        A tensor without one entry per row is one part.
        """
        if not array.ndim or array.shape[0] != self.rows:
            return [array]
        return [array[rows] for rows in self.groups]


def accepted(model: keras.Model, *, size: int = 2, seed: int = 0, ids: int = 2) -> Any:
    """Makes a small batch that a model accepts; or takes what is given.

    Axes of unknown length get 8 entries; fewer or more where the model refuses that.

    Raises:
        FusionError: if the model refuses all of them.
    """
    if probe.is_given():
        return _checked(model, probe.batch(model))
    return answered(model, size=size, seed=seed, ids=ids).inputs


@dataclasses.dataclass(frozen=True)
class Answer:
    """A batch that a model accepts, and what the one call of it gave.

    Args:
        inputs: arrays in the structure of the model's inputs.
        outputs: the model's outputs, see `probe.outputs`.
        seen: the calls of the layers that were observed.
    """

    inputs: Any
    outputs: list[np.ndarray]
    seen: Observation


def answered(
    model: keras.Model,
    *,
    size: int = 2,
    seed: int = 0,
    ids: int = 2,
    layers: Sequence[keras.Layer] = (),
) -> Answer:
    """Makes a batch like `accepted`, and keeps what the model's call of it gave.

    Args:
        model: a built model.
        size: int. Number of examples.
        seed: int. Seed of the values.
        ids: int. Number of different ids.
        layers: the layers to observe.

    Raises:
        FusionError: if the model refuses all of them.
    """
    if probe.is_given():
        inputs = _checked(model, probe.batch(model))
        with observing(layers) as seen:
            return Answer(inputs, probe.outputs(model, inputs), seen)
    refused = None
    for length in probe.lengths(model):
        inputs = probe.batch(model, size=size, length=length, seed=seed, ids=ids)
        try:
            with observing(layers) as seen:
                return Answer(inputs, _call(model, inputs), seen)
        except Exception as error:
            refused = error if length <= 8 else refused  # That of a likely length.
    raise _not_accepted(model, refused)


def sample(model: keras.Model) -> Sample:
    """Makes the batch on which a growth of a model is measured.

    Of what the model accepts, the first batch is taken that it answers by finite numbers.

    Raises:
        FusionError: if the model refuses all that is made, or the batch that is given.
    """
    if probe.is_given():
        inputs = _checked(model, probe.batch(model, size=None))
        rows = len(keras.tree.flatten(inputs)[0])
        return Sample(inputs, (np.arange(rows),), rows)
    refused, fallback = None, None
    for inputs in _candidates(model):
        try:
            results = _call(model, inputs)
        except Exception as error:
            refused = refused or error
            continue
        found = _grouped(inputs)
        if all(any(np.isfinite(y).all() for y in found.parts(y)) for y in results):
            return found
        fallback = fallback or found
    if fallback is None:
        raise _not_accepted(model, refused)
    return fallback


def _candidates(model: keras.Model) -> Iterator[Any]:
    """Batches that the model may accept, the most telling ones first."""
    for length in probe.lengths(model):
        few = probe.batch(model, size=1, length=length)
        elements = sum(np.size(x) for x in keras.tree.flatten(few))
        size = len(KINDS) * max(
            1 if elements > _LARGE else 2, min(8, 256 // max(1, elements))
        )
        numbers = _NUMBERS if _counts(model) else ()
        for ids in dict.fromkeys((*_table_sizes(model), *numbers, 2)):
            inputs = probe.batch(model, size=size, length=length, ids=ids)
            if probe.knows_dtypes(model):
                kinds = "fiu" if ids in numbers else "f"
                yield keras.tree.map_structure(
                    lambda x, kinds=kinds: _scaled(x, kinds), inputs
                )
            elif not _table_sizes(model):
                rng = np.random.default_rng(0)
                yield keras.tree.map_structure(
                    lambda x, rng=rng: _perhaps_features(x, rng), inputs
                )
            yield inputs


def _table_sizes(model: keras.Model) -> tuple[int, ...]:
    """The sizes of the largest and the smallest table of embeddings."""
    layers = (layer for _, layer in tree.walk(model))
    sizes = [x.input_dim for x in layers if isinstance(x, keras.layers.Embedding)]
    return (max(sizes), min(sizes)) if sizes else ()


def _counts(model: keras.Model) -> bool:
    """Whether integers among a model's inputs are numbers, which nothing looks up.

    What looks them up may be aborted by those that it does not have (on a GPU).
    """
    if not probe.knows_dtypes(model) or not graphs.is_plain(model):
        return False
    if not any(keras.backend.is_int_dtype(t.dtype) for t in model.inputs):
        return False
    below = [layer for _, layer in tree.walk(model)]
    calls = (
        call
        for layer in below
        if graphs.is_plain(layer)
        for call in graphs.read(layer).calls
        if not all(tensor.is_float for tensor in call.inputs)
    )
    return all(map(_reads_numbers, calls))


def _reads_numbers(call: graphs.Call) -> bool:
    operation = call.operation
    if isinstance(operation, str):
        one = len(call.inputs) == 1  # Others are indices.
        return operation in _OF_NUMBERS.split() or (operation == "GetItem" and one)
    return graphs.is_plain(operation) or (
        type(operation).__module__.startswith("keras.")
        and not isinstance(operation, (keras.layers.Embedding, keras.layers.Lambda))
    )


def _scaled(values: np.ndarray, kinds: str) -> np.ndarray:
    """The rows at several scales, in arrays of these kinds; integers stay such."""
    if values.dtype.kind not in kinds:
        return values
    if values.dtype.kind != "f":
        rows = (
            30 * row if i % len(KINDS) == 2 else row for i, row in enumerate(values)
        )
    else:
        rows = (KINDS[i % len(KINDS)](row) for i, row in enumerate(values))
    return np.stack(list(rows)).astype(values.dtype)


def _perhaps_features(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Ids or masks of 0 and 1 in some rows, features at several scales in the others.

    A class does not tell which of them it takes.
    """
    features = _scaled(rng.standard_normal(values.shape).astype(values.dtype), "f")
    features[:: len(KINDS)] = values[:: len(KINDS)]
    return features


def _grouped(inputs: Any) -> Sample:
    rows = len(keras.tree.flatten(inputs)[0])
    every = np.arange(rows)
    kinds = (every[every % len(KINDS) == kind] for kind in range(len(KINDS)))
    return Sample(inputs, tuple(group for group in kinds if len(group)), rows)


def _call(model: keras.Model, inputs: Any) -> list[np.ndarray]:
    """The outputs, in a call that refuses what a backend would let pass."""
    if len(probe.lengths(model)) > 1 and probe.knows_dtypes(model) and _shrinks(model):
        # Keras checks that something is left of small images; a backend need not.
        model.compute_output_spec(
            keras.tree.map_structure(
                lambda x: keras.KerasTensor(x.shape, str(x.dtype)), inputs
            )
        )
    with checked_ids(model):
        results = probe.outputs(model, inputs)
    if not all(y.size for y in results):
        raise ValueError(f"Its outputs are empty: {[y.shape for y in results]}.")
    return results


def _shrinks(model: keras.Model) -> bool:
    """Whether layers of a model make images smaller."""
    return any(
        instance_attributes(layer).keys() & {"kernel_size", "pool_size", "cropping"}
        for _, layer in tree.walk(model)
    )


def _checked(model: keras.Model, inputs: Any) -> Any:
    try:
        with checked_ids(model), host.unchanging():
            model(inputs, training=False)
    except Exception as error:
        raise FusionError(
            f"{type(model).__name__} {model.name!r} does not accept the `probe` "
            f"({_short(error)}). Pass a batch in the structure of the model's inputs."
        ) from error
    return inputs


def _not_accepted(model: keras.Model, error: Exception | None) -> FusionError:
    failure = FusionError(
        f"{type(model).__name__} {model.name!r} accepts no generated inputs "
        f"({_short(error)}). Pass a batch of your data as `probe`."
    )
    failure.__cause__ = error
    return failure


def _short(error: Exception | None) -> str:
    return " ".join(str(error).split())[:600]
