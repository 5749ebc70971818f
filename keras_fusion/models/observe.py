"""Records the inputs and outputs of a model's layers during a call."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np

from keras_fusion.models import host, private, tree
from keras_fusion.models.private.attributes import instance_attributes

# The first input and the output of a layer's call; what is no single tensor is `None`.
Pair = tuple[np.ndarray | None, np.ndarray | None]


class Observation(dict[int, list[Pair]]):
    """Calls by layer id; `order` lists the ids in the order in which layers finished."""

    def __init__(self):
        super().__init__()
        self.order: list[int] = []


def observe(
    model: keras.Model, inputs: Any, layers: Iterable[keras.Layer]
) -> Observation:
    """Calls a model in inference mode and records its layers' inputs and outputs.

    Args:
        model: a built model.
        inputs: a batch in the structure of the model's inputs.
        layers: the layers to record.

    Returns:
        `Observation`, a dict from a layer's id to a list of `(input, output)`, one pair
        of arrays (in float32 or wider) per call of the layer. What is no single tensor
        is `None`.
    """
    with observing(layers) as seen, host.unchanging():
        model(keras.tree.map_structure(keras.ops.convert_to_tensor, inputs))
    return seen


@contextlib.contextmanager
def observing(layers: Iterable[keras.Layer]) -> Iterator[Observation]:
    """Opens a scope in which layers' inputs and outputs are recorded, see `observe`.

    Args:
        layers: the layers to record.

    Yields:
        The `Observation`, which calls in the scope fill.
    """
    seen = Observation()
    recorders = {id(layer): (layer, _Recorder(layer, seen)) for layer in layers}
    with _calling(recorders.values()):
        yield seen


# What `watch` keeps of one tensor; of larger ones it keeps each so many-th position.
_LARGE = 2**18


@dataclasses.dataclass(frozen=True)
class Seen:
    """One call of a layer: its first input, its activation's input, and its output.

    What is no single tensor of floating point is `None`.
    """

    input: np.ndarray | None
    inner: np.ndarray | None
    output: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Watched:
    """A call of a model.

    Args:
        outputs: the model's outputs, a flat list.
        floats: for each output whether it is of floating point.
        calls: by a layer's id its calls; in the order in which layers first finished.
    """

    outputs: list[np.ndarray]
    floats: list[bool]
    calls: dict[int, list[Seen]]


def watch(
    model: keras.Model,
    inputs: Any,
    layers: Iterable[keras.Layer],
    *,
    training: bool = False,
) -> Watched:
    """Calls a model, and records its outputs and those of its layers.

    Args:
        model: a built model.
        inputs: a batch in the structure of the model's inputs.
        layers: the layers to record.
        training: bool. Whether the call is one of training.

    Returns:
        A `Watched`, computed in float32 as `probe.outputs` does. Of large tensors it has
        some positions of axis 1, always the same.
    """
    calls: dict[int, list[Seen]] = {}
    watchers = {id(layer): (layer, _Watcher(layer, calls)) for layer in layers}
    inputs = keras.tree.map_structure(keras.ops.convert_to_tensor, inputs)
    calling = _calling(watchers.values())
    with private.in_float32(model), calling, host.unchanging():
        results: Any = keras.tree.flatten(model(inputs, training=training))
    outputs = [host.host(keras.ops.cast(y, _wide(y))) for y in results]
    return Watched(outputs, [_is_float(y) for y in results], calls)


class _Watcher:
    """Replacement for a layer's `call`, which looks behind its activation as well."""

    def __init__(self, layer: keras.Layer, calls: dict[int, list[Seen]]):
        self._call, self._layer, self._calls = layer.call, layer, calls
        self.__wrapped__ = layer.call  # Keras reads the signature.

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        inner: list[Any] = []
        with _behind_activation(self._layer, inner):
            result = self._call(*args, **kwargs)
        first = args[0] if args else next(iter(kwargs.values()), None)
        before = inner[0] if len(inner) == 1 else None
        seen = Seen(_features(first), _features(before), _features(result))
        self._calls.setdefault(id(self._layer), []).append(seen)
        return result


@contextlib.contextmanager
def _behind_activation(layer: keras.Layer, inner: list[Any]) -> Iterator[None]:
    """A scope in which what a layer's activation gets is recorded."""
    function = instance_attributes(layer).get("activation")
    if not callable(function) or isinstance(function, keras.Layer):
        yield
        return

    def recorded(x, *args, **kwargs):
        inner.append(x)
        return function(x, *args, **kwargs)

    layer.activation = recorded
    try:
        yield
    finally:
        layer.activation = function


def _features(value: Any) -> np.ndarray | None:
    """A tensor of features in the host's memory, or some of its positions."""
    if not keras.ops.is_tensor(value) or host.is_traced(value) or not _is_float(value):
        return None
    rank, size = len(value.shape), int(np.prod(value.shape))
    if rank > 2 and size > _LARGE:
        value = value[:, :: -(-size // _LARGE)]
    return _array(value)


def _is_float(value: Any) -> bool:
    return keras.backend.is_float_dtype(keras.backend.standardize_dtype(value.dtype))


def _wide(value: Any) -> str:
    """Floating point of 32 bits, or of more where the value has them."""
    if not _is_float(value):
        return "float32"
    return keras.backend.result_type(value.dtype, "float32")


@contextlib.contextmanager
def _calling(
    replacements: Iterable[tuple[keras.Layer, Callable[..., Any]]],
) -> Iterator[None]:
    """A scope in which layers call replacements of their `call`."""
    with contextlib.ExitStack() as restored:
        for layer, replacement in replacements:
            if "call" in instance_attributes(layer):  # A scope within another one.
                restored.callback(setattr, layer, "call", layer.call)
            else:
                restored.callback(delattr, layer, "call")
            layer.call = replacement
        yield


class _Recorder:
    """Replacement for a layer's `call`, as a temporary attribute of the instance."""

    def __init__(self, layer: keras.Layer, seen: Observation):
        self._call, self._id, self._seen = layer.call, id(layer), seen
        seen[self._id] = []
        self.__wrapped__ = layer.call  # Keras reads the signature.

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = self._call(*args, **kwargs)
        first = args[0] if args else next(iter(kwargs.values()), None)
        if not self._seen[self._id]:
            self._seen.order.append(self._id)
        self._seen[self._id].append((_array(first), _array(result)))
        return result


def checked_ids(model: keras.Model) -> contextlib.AbstractContextManager[None]:
    """A scope in which embeddings refuse ids that their tables do not have.

    Backends need not: a GPU returns zeros or NaN for them, or aborts the process.
    """
    layers = {id(layer): layer for _, layer in tree.walk(model)}.values()
    tables = [x for x in layers if isinstance(x, keras.layers.Embedding)]
    return _calling((table, _IdCheck(table)) for table in tables)


class _IdCheck:
    """Replacement for an embedding's `call`, as a temporary attribute of the instance."""

    def __init__(self, layer: keras.layers.Embedding):
        self._call, self._name, self._size = layer.call, layer.name, layer.input_dim
        self.__wrapped__ = layer.call  # Keras reads the signature.

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        is_reverse = kwargs.get("reverse") or any(x is True for x in args)
        if keras.ops.is_tensor(inputs) and not is_reverse:
            largest = _largest(inputs)
            if largest >= self._size:
                raise ValueError(
                    f"Embedding {self._name!r} has {self._size} rows. Received: the id "
                    f"{largest}."
                )
        return self._call(inputs, *args, **kwargs)


def _largest(ids: Any) -> int:
    """The largest id; 0 in a call that is traced, where ids have no values yet."""
    try:
        return int(np.max(host.host(ids), initial=0))
    except (NotImplementedError, RuntimeError, TypeError):
        return 0


def _array(value: Any) -> np.ndarray | None:
    if not keras.ops.is_tensor(value) or host.is_traced(value):
        return None
    return host.host(keras.ops.cast(value, _wide(value)) if _is_float(value) else value)
