"""Probes: small batches on which functions of models are compared."""

import contextlib
import contextvars
import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from keras_fusion.errors import FusionError
from keras_fusion.models import host, private, tree

# 8 is cheap and fits most models.
_LENGTHS = (8, 4, 2, 1, 16, 32, 64, 128, 256)


# A variable, and an array of its shape.
Value = tuple[keras.Variable, np.ndarray]


_GIVEN: contextvars.ContextVar[Any] = contextvars.ContextVar("given", default=None)


@contextlib.contextmanager
def given(inputs: Any) -> Iterator[None]:
    """Opens a scope in which a user's batch takes the place of made-up ones.

    Args:
        inputs: a batch in the structure of the model's inputs; `None` for no change.
    """
    token = _GIVEN.set(_GIVEN.get() if inputs is None else inputs)
    try:
        yield
    finally:
        _GIVEN.reset(token)


def is_given() -> bool:
    """Whether there is a user's batch, which `batch` returns."""
    return _GIVEN.get() is not None


def lengths(model: keras.Model) -> tuple[int, ...]:
    """The lengths to try for the axes that a model leaves open, likely ones first.

    A table of positions may be short; what makes images smaller needs large ones.
    """
    return _LENGTHS if _has_open_axes(model) else _LENGTHS[:1]


def _has_open_axes(model: keras.Model) -> bool:
    if getattr(model, "inputs", None):
        return any(None in t.shape[1:] for t in model.inputs)
    return True


def knows_dtypes(model: keras.Model) -> bool:
    """Whether a model says which of its inputs are features, and which ids or masks."""
    return bool(getattr(model, "inputs", None))


def batch(
    model: keras.Model,
    *,
    size: int | None = 2,
    length: int = 8,
    seed: int = 0,
    ids: int = 2,
) -> Any:
    """Makes random inputs for a model, for use without real data.

    Features are standard normal. Ids and masks are 0 or 1, which every vocabulary and
    every mask allows. Words are some that the model knows. Axes of unknown length get
    `length`. In a scope of `given` these are the first 8 rows of the given batch.

    Args:
        model: a built model.
        size: int. Number of examples; `None` for all that are given.
        length: int. Length of the axes that the model leaves open.
        seed: int. Seed of the values.
        ids: int. Number of different ids.

    Returns:
        Arrays in the structure of the model's inputs, of shape `(size, ...)`.

    Raises:
        FusionError: if the model does not know its input shape.
    """
    if is_given():
        rows = None if size is None else max(size, 8)
        return keras.tree.map_structure(lambda x: x[:rows], _GIVEN.get())
    rng, size = np.random.default_rng(seed), size or 2
    if knows_dtypes(model):
        is_text = any(t.dtype == "string" for t in model.inputs)
        words = _words(model) if is_text else ()
        # A Sequential model has no `input` of its own.
        single = isinstance(model, keras.Sequential)
        return keras.tree.map_structure(
            lambda t: _values(rng, t.shape, t.dtype, size, length, ids, words),
            model.inputs[0] if single else model.input,
        )
    config = model.get_build_config() or {}
    shapes = config.get("input_shape", config.get("shapes_dict"))
    if shapes is None:
        raise FusionError(
            f"{type(model).__name__} {model.name!r} does not know its input shape. Call "
            "it once on a batch of your data, or pass such a batch as `probe`."
        )
    # Whether a subclassed model takes ids or features is unknown: 0 and 1 in floating
    # point are both.
    return _from_shapes(
        shapes, lambda shape: _values(rng, shape, None, size, length, ids)
    )


def _from_shapes(shapes: Any, make: Callable[[tuple], np.ndarray]) -> Any:
    if isinstance(shapes, dict):
        return {name: _from_shapes(shape, make) for name, shape in shapes.items()}
    if all(d is None or isinstance(d, int) for d in shapes):
        return make(tuple(shapes))
    return [_from_shapes(shape, make) for shape in shapes]


def _values(
    rng: np.random.Generator,
    shape: Sequence[int | None],
    dtype: str | None,
    size: int,
    length: int,
    ids: int,
    words: Sequence[str] = (),
) -> np.ndarray:
    # What a functional model says of its batch holds; a class tells its first one's.
    size = shape[0] if shape[0] and dtype is not None else size
    shape = (size, *(length if d is None else d for d in shape[1:]))
    if dtype == "string":
        return rng.choice(np.array(words, object), shape)
    if dtype is not None and keras.backend.is_float_dtype(dtype):
        return rng.standard_normal(shape).astype("float32")
    return rng.integers(0, ids, shape).astype(dtype or keras.config.floatx())


def _words(model: keras.Model) -> list[str]:
    """Some words that a model knows."""
    found = ["a", "b"]
    for _, layer in tree.walk(model):
        vocabulary: Any = getattr(layer, "get_vocabulary", None)
        if vocabulary is not None:
            found += [str(word) for word in vocabulary()][:100]
    return found


def outputs(model: keras.Model, inputs: Any) -> list[np.ndarray]:
    """The model's outputs in inference mode, as a flat list of arrays.

    They are computed in float32 where the weights are in float32, also under a mixed
    policy, whose rounding would hide how exact a growth is.
    """
    inputs = keras.tree.map_structure(keras.ops.convert_to_tensor, inputs)
    with private.in_float32(model), host.unchanging():
        results: Any = keras.tree.flatten(model(inputs, training=False))
    return [host.host(keras.ops.cast(y, "float32")) for y in results]


def random_value(variable: keras.Variable, rng: np.random.Generator) -> np.ndarray:
    """A random value for a weight, with which nothing is too small to count."""
    scale = 2.0 / np.sqrt(variable.shape[-2]) if len(variable.shape) > 1 else 0.5
    return (scale * rng.standard_normal(variable.shape)).astype(variable.dtype)


def other_seeds(layer: Any) -> list[Value]:
    """The states of a layer's or model's generators with other values, to be assumed."""
    states = private.seed_states(layer)
    return [(v, host.read(v) + np.ones((), v.dtype)) for v in states]


def is_random(model: keras.Model, inputs: Any) -> bool:
    """Whether a model is random in inference mode, judged by two calls."""
    first = outputs(model, inputs)
    # A call does not change the states of the seeds itself here.
    with host.assumed(other_seeds(model)):
        again = outputs(model, inputs)
    return not change(first, again) <= tolerance(model)


def mean_outputs(models: Sequence[keras.Model], inputs: Any) -> list[np.ndarray | None]:
    """The mean of several models' outputs, output by output; `None` where shapes differ."""
    results = [outputs(model, inputs) for model in models]
    return [
        functools.reduce(np.add, ys) / len(ys)
        if len({y.shape for y in ys}) == 1
        else None
        for ys in zip(*results, strict=True)
    ]


@dataclasses.dataclass(frozen=True)
class Difference:
    """The difference of two models' outputs.

    Args:
        largest: float. Largest difference, relative to the outputs' largest value.
        mean: float. Mean difference, relative to the mean absolute value.
        argmax_agreement: float. Fraction of positions with the same largest entry.
    """

    largest: float
    mean: float
    argmax_agreement: float

    def __str__(self) -> str:
        """The difference as one line."""
        return (
            f"largest difference {self.largest:.1e}, mean {self.mean:.1e}, same argmax "
            f"{self.argmax_agreement:.1%}"
        )


def difference(
    before: Sequence[np.ndarray | None], after: Sequence[np.ndarray]
) -> Difference:
    """Compares outputs, except those whose shape grew.

    Returns:
        A `Difference`; of NaN if no outputs can be compared.
    """
    pairs = _comparable(before, after)
    if not pairs:
        return Difference(float("nan"), float("nan"), float("nan"))
    tiny = np.finfo("float32").tiny
    return Difference(
        largest=change(before, after),
        mean=float(
            max(
                np.mean(np.abs(a - b)) / max(np.mean(np.abs(b)), tiny) for b, a in pairs
            )
        ),
        argmax_agreement=float(
            min(np.mean(np.argmax(b, -1) == np.argmax(a, -1)) for b, a in pairs)
        ),
    )


def tolerance(model: keras.Model) -> float:
    """The largest change of the outputs by a growth that should not change them."""
    if private.coarse_dtype(model) is not None:
        return 0.2
    return 1e-6 if _is_double(model) else 1e-4


def rounding(model: keras.Model) -> float:
    """Changes of the weights, relative to their size, that are no more than rounding."""
    return 1e-13 if _is_double(model) else 1e-6


def _is_double(model):
    dtypes = {v.dtype for v in model.variables if keras.backend.is_float_dtype(v.dtype)}
    return dtypes == {"float64"}


def change(before: Sequence[np.ndarray | None], after: Sequence[np.ndarray]) -> float:
    """Largest change of the outputs, relative to their largest absolute value.

    Args:
        before: flat list of outputs; `None` for one that cannot be compared.
        after: outputs of the same model later. Those whose shape grew (hidden states
            that a backbone returns) are left out.

    Returns:
        `max|after - before| / max|before|` over all outputs that can be compared; NaN
        if there are none.
    """
    changes = [
        np.max(np.abs(b - a)) / max(np.max(np.abs(b)), np.finfo("float32").tiny)
        for b, a in _comparable(before, after)
    ]
    return float(max(changes)) if changes else float("nan")


def _comparable(
    before: Sequence[np.ndarray | None], after: Sequence[np.ndarray]
) -> list[tuple[np.ndarray, np.ndarray]]:
    return [
        (b, a)
        for b, a in zip(before, after, strict=True)
        if b is not None and b.shape == a.shape
    ]


# Trials that find which of a model's values its function does not depend on. The names of
# variables differ from family to family; the effect of a variable on the outputs can be
# measured in all of them.


HARMLESS = 1e-6  # The largest change that rounding makes in a trial.


def harmless(model: keras.Model, layers: int) -> float:
    """The largest change that rounding makes in a trial of a model of many layers.

    Each layer rounds anew, and the roundings add up as in a random walk. A change that is
    more than rounding at the inputs tried may be much more at others.

    Args:
        model: the model, whose dtype counts.
        layers: int. How many layers it has.
    """
    least, dtype = (1e-12, "float64") if _is_double(model) else (HARMLESS, "float32")
    return max(least, 2 * float(np.finfo(dtype).eps) * layers**0.5)


def keep_harmless(
    change: Callable[[], float],
    values: Sequence[Value],
    *,
    tolerance: float = HARMLESS,
) -> list[Value]:
    """Finds which variables can take new values without a change of the function.

    Nothing is written. A value that has passed is assumed in the trials that follow.

    Variables whose names differ only in numbers are tried together first; if that fails,
    those that also have like neighbours, which have one place in repeated blocks. If that
    fails, and with the first and the last of them alone as well, all keep their values:
    so the number of trials does not grow with the number of blocks.

    Args:
        change: function without arguments that measures, with `outputs`, how far the
            outputs have changed, relative to their largest value.
        values: list of `(variable, array)`, tried in this order.
        tolerance: float. The largest change that passes.

    Returns:
        List of the pairs that passed.
    """
    kept: list[Value] = []

    def passes(some: Sequence[Value]) -> bool:
        with host.assumed([*kept, *some]):
            harmless = change() <= tolerance
        kept.extend(some if harmless else ())
        return harmless

    def settle(group: list[Value]) -> None:
        if passes(group) or len(group) == 1:
            return
        ends = [passes([item]) for item in (group[0], group[-1])]
        rest = group[1:-1]
        if rest and any(ends):
            for half in (rest[: len(rest) // 2], rest[len(rest) // 2 :]):
                if half:
                    settle(half)

    for places in _alike(values):
        whole = [item for group in places for item in group]
        if len(places) == 1 or not passes(whole):
            for group in places:
                settle(group)
    return kept


def _alike(values: Sequence[Value]) -> list[list[list[Value]]]:
    """By name and shape, the groups of variables of one place in repeated blocks."""
    kinds = [(re.sub(r"\d+", "#", v.path), x.shape) for v, x in values]
    found: dict[tuple, dict[tuple, list[Value]]] = {}
    for i, value in enumerate(values):
        place = *kinds[max(0, i - 2) : i], None, *kinds[i + 1 : i + 3]
        found.setdefault(kinds[i], {}).setdefault(place, []).append(value)
    return [list(groups.values()) for groups in found.values()]
