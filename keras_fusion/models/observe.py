"""Records the inputs and outputs of a model's layers during a call."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np

from keras_fusion.models import host, tree

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
    seen = Observation()
    recorders = {id(layer): (layer, _Recorder(layer, seen)) for layer in layers}
    with _calling(recorders.values()), host.unchanging():
        model(keras.tree.map_structure(keras.ops.convert_to_tensor, inputs))
    return seen


@contextlib.contextmanager
def _calling(
    replacements: Iterable[tuple[keras.Layer, Callable[..., Any]]],
) -> Iterator[None]:
    """A scope in which layers call replacements of their `call`."""
    with contextlib.ExitStack() as restored:
        for layer, replacement in replacements:
            layer.call = replacement
            restored.callback(delattr, layer, "call")
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
    if not keras.ops.is_tensor(value):
        return None
    if keras.backend.is_float_dtype(keras.backend.standardize_dtype(value.dtype)):
        wide = keras.backend.result_type(value.dtype, "float32")
        value = keras.ops.cast(value, wide)
    return host.host(value)
