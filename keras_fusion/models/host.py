"""Reads and writes values variable by variable, over devices and processes.

Under a `keras.distribution` (JAX) a variable may be sharded: each device holds a part. No
device must ever hold the whole of it during a growth. What devices do not make themselves
(`shards`) is read into the host's memory and written from there, shard by shard.
"""

import contextlib
import contextvars
import functools
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np

from keras_fusion.errors import FusionError

# Bytes. The backends use the memory of an array at such an address without a copy.
ALIGNMENT = 64
# Bytes. The most that a device receives at once of a variable held by several processes.
PIECE_BYTES = 2**26
_LENDABLE = ("float16", "float32", "float64")


def is_distributed() -> bool:
    """Whether a `keras.distribution` shards variables over devices."""
    return (
        keras.config.backend() == "jax"
        and keras.distribution.distribution() is not None
    )


def read(variable: keras.Variable) -> np.ndarray:
    """A variable's value in the host's memory, possibly the variable's own: read only.

    Where several processes hold parts of it, all of them must call this in the same order.
    """
    tensor = _assumptions().get(id(variable), (None, None))[1]
    return host(variable.value if tensor is None else tensor)


def to_numpy(value: Any) -> np.ndarray:
    """A tensor as an array: `keras.ops.convert_to_numpy` with its return type."""
    return np.asarray(keras.ops.convert_to_numpy(value))


def is_traced(value: Any) -> bool:
    """Whether a tensor has no value yet, as in a function that is being compiled."""
    if keras.config.backend() == "jax":
        import jax.core

        return isinstance(value, jax.core.Tracer)
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        return tf.is_symbolic_tensor(value)
    return False


def host(value: Any) -> np.ndarray:
    """A tensor's value in the host's memory, see `read`."""
    if keras.config.backend() == "jax":
        import jax

        if isinstance(value, jax.Array) and not value.is_fully_replicated:
            return _gathered(value)
        return np.asarray(value)  # Without a copy, where the host holds it.
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        if not isinstance(value, (tf.SparseTensor, tf.IndexedSlices, tf.RaggedTensor)):
            # A scalar in half precision is no array yet.
            return np.asarray(tf.convert_to_tensor(value).__array__())
    return to_numpy(value)


def _gathered(value: Any) -> np.ndarray:
    result = np.empty(value.shape, value.dtype)
    if value.is_fully_addressable:
        for shard in value.addressable_shards:
            result[shard.index] = np.asarray(shard.data)
        return result
    for index, piece in _pieces(value):
        result[index] = np.asarray(piece)
    return result


def _pieces(value: Any) -> Iterator[tuple[tuple[slice, ...], Any]]:
    """Yields a value of several processes piece by piece, each on all devices."""
    spec = (*value.sharding.spec, *[None] * value.ndim)[: value.ndim]
    # Along a sharded axis XLA would gather everything before it slices.
    axis = spec.index(None) if None in spec else 0
    size = value.shape[axis]
    rows = max(1, min(size, PIECE_BYTES * size // max(1, value.nbytes)))
    cut = _cut(value.sharding.mesh, axis, rows)
    for start in range(0, size, rows):
        start = min(start, size - rows)
        index = [slice(None)] * value.ndim
        index[axis] = slice(start, start + rows)
        yield tuple(index), cut(value, start)


@functools.lru_cache(maxsize=64)
def _cut(mesh: Any, axis: int, rows: int) -> Callable[[Any, int], Any]:
    """A compiled function that brings so many rows of a value to all devices."""
    import jax

    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.jit(
        lambda x, start: jax.lax.dynamic_slice_in_dim(x, start, rows, axis),
        out_shardings=everywhere,
    )


def write(variable: keras.Variable, value: np.ndarray) -> None:
    """Gives a variable a value, of which each device receives only its own part.

    Args:
        variable: the `keras.Variable`.
        value: array of its shape, which must not be changed afterwards.
    """
    variable.assign(_tensor(variable, value))


def _tensor(variable: keras.Variable, value: np.ndarray) -> Any:
    """A value as the backend takes it, of which each device has its part."""
    if is_distributed():
        import jax

        # As in `assign`: float64 becomes float32 unless JAX is configured otherwise.
        dtype = jax.dtypes.canonicalize_dtype(variable.dtype)
        value = np.asarray(value, dtype)
        sharding = sharding_of(variable)
        sharding = getattr(sharding, "backend_layout", sharding)
        return jax.make_array_from_callback(
            value.shape, sharding, lambda index: value[index]
        )
    if keras.config.backend() == "tensorflow":
        return _lent(np.asarray(value))  # arithmetic on 0-d arrays gives scalars
    return value


# Calls of a model with other values than its variables have.

# By the id of a variable: the variable and the tensor that it reads as.
Assumptions = dict[int, tuple[keras.Variable, Any]]
_ASSUMED: contextvars.ContextVar[Assumptions | None] = contextvars.ContextVar(
    "assumed", default=None
)


@contextlib.contextmanager
def assumed(values: Iterable[tuple[keras.Variable, np.ndarray]]) -> Iterator[None]:
    """Opens a scope in which variables read as other values; none is written.

    `read` and `probe.outputs` see these values. Scopes nest: an inner one adds to the
    outer one.

    Args:
        values: pairs `(keras.Variable, array of its shape)`.
    """
    tensors = {
        id(variable): (
            variable,
            keras.ops.convert_to_tensor(_tensor(variable, value), variable.dtype),
        )
        for variable, value in values
    }
    token = _ASSUMED.set(_assumptions() | tensors)
    try:
        yield
    finally:
        _ASSUMED.reset(token)


def unchanging() -> keras.StatelessScope:
    """A scope in which calls of models see the assumed values and change nothing.

    Updates of a model's state (moving statistics, seeds) are dropped.
    """
    return keras.StatelessScope(state_mapping=list(_assumptions().values()))


def is_assumed(variable: keras.Variable) -> bool:
    """Whether a variable reads as another value than it has."""
    return id(variable) in _assumptions()


def _assumptions() -> Assumptions:
    return _ASSUMED.get() or {}


def _lent(value: np.ndarray) -> Any:
    """A tensor that shares the array's memory, if TensorFlow accepts its alignment."""
    fits = value.flags.c_contiguous and value.ctypes.data % ALIGNMENT == 0
    if not (fits and value.size and value.flags.writeable and value.dtype in _LENDABLE):
        return value
    import tensorflow as tf

    return tf.experimental.dlpack.from_dlpack(value.__dlpack__())


def sharding_of(variable: keras.Variable) -> Any:
    """The sharding of a variable under the current distribution: its `TensorLayout`."""
    distribution: Any = keras.distribution.distribution()
    return distribution.get_variable_layout(variable)


def parts_of(variable: keras.Variable) -> int:
    """Over how many devices a variable is split; 1 where each of them holds all of it."""
    if not is_distributed():
        return 1
    sharding = sharding_of(variable)
    if not isinstance(sharding, keras.distribution.TensorLayout):
        return 1
    sizes = _mesh_sizes(sharding)
    return math.prod(sizes[name] for name in sharding.axes if name is not None)


def _mesh_sizes(sharding: Any) -> dict[str, int]:
    mesh = sharding.device_mesh
    return dict(zip(mesh.axis_names, mesh.shape, strict=True))


def check_sharding(
    source: keras.Variable, target: keras.Variable, address: str
) -> None:
    """Checks that a grown variable can be sharded like the small one.

    Args:
        source: the small model's variable.
        target: the grown model's variable.
        address: string. The grown variable's address.

    Raises:
        FusionError: naming the variable, its shape, and the axis of the mesh.
    """
    if not is_distributed():
        return
    sharding = sharding_of(source)
    if not isinstance(sharding, keras.distribution.TensorLayout):
        return
    shape, sizes = tuple(target.shape), _mesh_sizes(sharding)
    for i, name in enumerate(sharding.axes):
        if name is not None and shape[i] % sizes[name]:
            raise FusionError(
                f"The grown {address!r} (path {source.path!r}) has shape {shape}, and "
                f"its sharding {sharding.axes} splits axis {i} over the mesh's axis "
                f"{name!r} of {sizes[name]} devices, which does not divide {shape[i]}. "
                "Choose a factor, partners or `into` for which it does, or another "
                "LayoutMap."
            )


def constrained(variable: keras.Variable, value: np.ndarray) -> np.ndarray:
    """What an update of a variable makes of a value: its constraint is applied."""
    tensor = keras.ops.convert_to_tensor(value, variable.dtype)
    return host(variable.constraint(tensor))


def obeys(variable: keras.Variable, value: np.ndarray) -> bool:
    """Whether a value is what the variable's constraint leaves as it is."""
    if variable.constraint is None:
        return True
    size = np.max(np.abs(value), initial=0.0)
    left = constrained(variable, value)
    return bool(np.allclose(left, value, rtol=1e-5, atol=1e-6 * size))


def weights_digest(model: keras.Model) -> str:
    """The SHA-256 digest of a model's weights, in order."""
    digest = hashlib.sha256()
    for variable in model.weights:
        array = np.ascontiguousarray(read(variable))
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
