"""A small batch that fits a model's inputs, and the change of its function on it."""

import dataclasses
import re
from collections.abc import Callable

import keras
import numpy as np

from keras_fusion.errors import FusionError
from keras_fusion.models import host

_LENGTHS = (8, 4, 2, 1)


def accepted(model: keras.Model, *, size: int = 2, seed: int = 0, ids: int = 2):
    """Makes a batch that a model can be called on: see `batch`.

    Unknown lengths are 8, or less where the model allows no more (a table of positions
    may be short).

    Raises:
        FusionError: if the model refuses all of them.
    """
    for length in _LENGTHS:
        inputs = batch(model, size=size, length=length, seed=seed, ids=ids)
        try:
            with host.unchanging():
                model(inputs, training=False)
        except Exception as error:
            refused = error
        else:
            return inputs
    raise FusionError(
        f"{type(model).__name__} {model.name!r} accepts no made-up batch ({refused}). "
        "Pass a batch of your data as `probe`."
    ) from refused


def batch(
    model: keras.Model, *, size: int = 2, length: int = 8, seed: int = 0, ids: int = 2
):
    """Makes inputs in the form of a model's, when no real ones are at hand.

    Features are standard normal. Ids and masks are 0 or 1, which every vocabulary and
    every mask allows. Unknown lengths are `length`.

    Args:
        model: a built model.
        size: int. Number of examples.
        length: int. Length of axes that the model leaves open.
        seed: int. Seed of the values.
        ids: int. How many different ids there are.

    Returns:
        Arrays in the structure of the model's inputs, of shape `(size, ...)`.

    Raises:
        FusionError: if the model does not know its input shape.
    """
    rng = np.random.default_rng(seed)
    if getattr(model, "inputs", None):
        # A Sequential model has no `input` of its own.
        single = isinstance(model, keras.Sequential)
        return keras.tree.map_structure(
            lambda t: _values(rng, t.shape, t.dtype, size, length, ids),
            model.inputs[0] if single else model.input,
        )
    config = model.get_build_config() or {}
    shapes = config.get("input_shape", config.get("shapes_dict"))
    if shapes is None:
        raise FusionError(
            f"{type(model).__name__} {model.name!r} does not know its input shape. Call "
            "it once on a batch, or pass that batch as `probe`."
        )
    # A subclassed model does not tell whether it takes ids or features: 0 and 1 in
    # floating point are both.
    return _from_shapes(
        shapes, lambda shape: _values(rng, shape, None, size, length, ids)
    )


def _from_shapes(shapes, make):
    if isinstance(shapes, dict):
        return {name: _from_shapes(shape, make) for name, shape in shapes.items()}
    if all(d is None or isinstance(d, int) for d in shapes):
        return make(tuple(shapes))
    return [_from_shapes(shape, make) for shape in shapes]


def _values(rng, shape, dtype, size, length, ids):
    shape = (size, *(length if d is None else d for d in shape[1:]))
    if dtype is not None and keras.backend.is_float_dtype(dtype):
        return rng.standard_normal(shape).astype("float32")
    return rng.integers(0, ids, shape).astype(dtype or keras.config.floatx())


def outputs(model: keras.Model, inputs) -> list[np.ndarray]:
    """The model's outputs in inference mode, as a flat list of arrays."""
    inputs = keras.tree.map_structure(keras.ops.convert_to_tensor, inputs)
    with host.unchanging():
        results = keras.tree.flatten(model(inputs, training=False))
    return [host.host(keras.ops.cast(y, "float32")) for y in results]


def is_random(model: keras.Model, inputs) -> bool:
    """Whether a model draws at random in inference mode, by what two calls give."""
    states = [v for v in model.variables if "int" in v.dtype]
    changed = [(v, host.read(v) + np.ones((), v.dtype)) for v in states]
    first = outputs(model, inputs)
    with host.assumed(changed):  # The seeds' states, which a call here does not change.
        again = outputs(model, inputs)
    return not change(first, again) <= tolerance(model)


def mean_outputs(models: list[keras.Model], inputs) -> list[np.ndarray]:
    """The mean of several models' outputs, output by output, `None` where widths differ."""
    results = [outputs(model, inputs) for model in models]
    return [
        sum(ys) / len(ys) if len({y.shape for y in ys}) == 1 else None
        for ys in zip(*results, strict=True)
    ]


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far outputs are apart.

    Args:
        largest: float. Largest difference, relative to the outputs' largest value.
        mean: float. Mean difference, relative to the mean absolute value.
        argmax_agreement: float. Share of the positions whose largest entry is the same.
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


def difference(before: list[np.ndarray], after: list[np.ndarray]) -> Difference:
    """Compares outputs, those left out whose shape grew.

    Returns:
        A `Difference`; NaN if there is none that can be compared.
    """
    pairs = [
        (b, a)
        for b, a in zip(before, after, strict=True)
        if b is not None and b.shape == a.shape
    ]
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
    """The largest change that a growth without influence on a model may show."""
    return 1e-3 if model.compute_dtype in ("float32", "float64") else 0.2


def change(before: list[np.ndarray], after: list[np.ndarray]) -> float:
    """Largest change of the outputs, relative to their largest absolute value.

    Args:
        before: flat list of outputs.
        after: outputs of the same model later. Those whose shape grew (hidden states
            that a backbone gives out) are left out.

    Returns:
        `max|after - before| / max|before|` over all outputs that can be compared; NaN
        if there is none.
    """
    changes = [
        np.max(np.abs(b - a)) / max(np.max(np.abs(b)), np.finfo("float32").tiny)
        for b, a in zip(before, after, strict=True)
        if b is not None and b.shape == a.shape
    ]
    return float(max(changes)) if changes else float("nan")


# Finding by trying which of a model's values its function does not depend on. Names of
# variables differ from family to family; what a change of them does to the outputs does
# not.


def keep_harmless(
    change: Callable[[], float], values: list[tuple], *, tolerance: float = 1e-6
) -> list:
    """Finds which variables can have new values without a change of the function.

    Nothing is written. What has passed is assumed in the trials that follow.

    Variables of one name but for its numbers (those of equal blocks) are tried together
    first, and one by one only if that fails.

    Args:
        change: function without arguments that measures by `outputs` how far they have
            changed, relative to their largest value.
        values: list of `(variable, array)`, tried in this order.
        tolerance: float. The largest change that passes.

    Returns:
        List of the pairs that can be.
    """
    kept = []

    def passes(some):
        with host.assumed([*kept, *some]):
            harmless = change() <= tolerance
        kept.extend(some if harmless else ())
        return harmless

    for group in _alike(values):
        if not passes(group) and len(group) > 1:
            for item in group:
                passes([item])
    return kept


def _alike(values):
    groups = {}
    for variable, value in values:
        name = re.sub(r"\d+", "#", variable.path)
        groups.setdefault(name, []).append((variable, value))
    return groups.values()
