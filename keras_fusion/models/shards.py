"""How arrays lie over devices under JAX."""

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from keras_fusion.models import host
from keras_fusion.models.private import deferral

# Bytes. Smaller variables are grown in the host's memory: compiling would take longer.
_LEAST_BYTES = 2**16
_USED: contextvars.ContextVar[bool | None] = contextvars.ContextVar(
    "used", default=None
)


def are_used() -> bool:
    """Whether values should be made on the devices: where the host is another place."""
    if keras.config.backend() != "jax" or not _can_map():
        return False
    if (chosen := _USED.get()) is not None:
        return chosen
    if host.is_distributed():
        return True
    import jax

    # Where there are several, their arrays may lie as the user wishes.
    return jax.default_backend() != "cpu" and jax.device_count() == 1


def _can_map() -> bool:
    """Whether JAX maps functions over devices here: not in a mesh of another kind."""
    import jax

    mesh = getattr(jax.sharding, "get_abstract_mesh", None)
    return hasattr(jax, "shard_map") and mesh is not None and mesh().empty


@contextlib.contextmanager
def used(chosen: bool) -> Iterator[None]:
    """Opens a scope in which devices are used always, for any size, or never."""
    token = _USED.set(chosen)
    try:
        yield
    finally:
        _USED.reset(token)


def is_small(variable: keras.Variable) -> bool:
    """Whether a variable is not worth a compiled program."""
    size = math.prod(variable.shape) * np.dtype("float32").itemsize
    return len(variable.shape) < 2 or (size < _LEAST_BYTES and not _USED.get())


@dataclasses.dataclass(frozen=True)
class Split:
    """How an array is split over the devices of a mesh.

    Args:
        mesh: `jax.sharding.Mesh`.
        shape: tuple of ints. The whole array's shape.
        names: for each axis the tuple of the mesh's axes over which it is split.
    """

    mesh: Any
    shape: tuple[int, ...]
    names: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, sharding: Any, shape: Sequence[int]) -> "Split | None":
        """The split of a `jax.sharding`; `None` for one that no mesh describes."""
        import jax

        if isinstance(sharding, jax.sharding.SingleDeviceSharding):
            (device,) = sharding.device_set
            mesh = jax.sharding.Mesh(np.array([device]), ("device",))
            return cls(mesh, tuple(shape), ((),) * len(shape))
        if not isinstance(sharding, jax.sharding.NamedSharding):
            return None
        spec = (*sharding.spec, *[None] * len(shape))[: len(shape)]
        names = tuple(_names(entry) for entry in spec)
        split = cls(sharding.mesh, tuple(shape), names)
        return split if split.is_even else None

    @property
    def is_even(self) -> bool:
        """Whether all devices hold equally many entries."""
        sizes = enumerate(self.shape)
        return all(size % self.parts(axis) == 0 for axis, size in sizes)

    @property
    def spec(self) -> Any:
        """The `jax.sharding.PartitionSpec`."""
        import jax

        return jax.sharding.PartitionSpec(*[names or None for names in self.names])

    @property
    def sharding(self) -> Any:
        """The `jax.sharding.NamedSharding`."""
        import jax

        return jax.sharding.NamedSharding(self.mesh, self.spec)

    def parts(self, axis: int) -> int:
        """Over how many devices an axis is split."""
        return math.prod(self.mesh.shape[name] for name in self.names[axis])

    def local(self, axis: int) -> int:
        """The length of an axis on one device."""
        return self.shape[axis] // self.parts(axis)

    @property
    def entries(self) -> int:
        """The number of entries on one device."""
        return math.prod(map(self.local, range(len(self.shape))))

    def long_axis(self, enough: int, axes: Sequence[int]) -> int:
        """The first of some axes that is long enough on a device, else the longest."""
        long = (axis for axis in axes if self.local(axis) >= enough)
        return next(long, max(axes, key=self.local))


def _names(entry: Any) -> tuple[str, ...]:
    if entry is None:
        return ()
    return entry if isinstance(entry, tuple) else (entry,)


def split_of(variable: keras.Variable) -> Split | None:
    """The split that a variable's value has, or will have."""
    if not deferral.has_value(variable):
        return _split_by_name(variable) if host.is_distributed() else None
    return Split.of(variable.value.sharding, variable.shape)


def split_to_be(variable: keras.Variable, like: Split) -> Split | None:
    """The split that a variable will have, whose value is not made yet.

    Args:
        variable: the variable.
        like: the split of the variable that it grows from.
    """
    if not host.is_distributed():
        return dataclasses.replace(
            like, shape=tuple(variable.shape), names=((),) * len(variable.shape)
        )
    return _split_by_name(variable)


def _split_by_name(variable: keras.Variable) -> Split | None:
    """The split that the distribution gives a variable of this name."""
    sharding = host.sharding_of(variable)
    sharding = getattr(sharding, "backend_layout", sharding)
    return Split.of(sharding, variable.shape)


def region(split: Split) -> list[Any]:
    """The indices that this device's part has along each axis of the whole array."""
    import jax
    import jax.numpy as jnp

    found = []
    for axis, names in enumerate(split.names):
        number = jax.lax.axis_index(names) if names else 0
        local = split.local(axis)
        found.append(number * local + jnp.arange(local, dtype="int32"))
    return found


def along(vector: Any, axis: int, rank: int) -> Any:
    """A vector reshaped to broadcast along one axis."""
    return vector.reshape([-1 if i == axis else 1 for i in range(rank)])


@dataclasses.dataclass(frozen=True)
class Chunks:
    """Chunks of equal size of an axis, of which the last overlaps with the one before.

    Args:
        length: int. The length of the axis.
        size: int. The length of a chunk.
    """

    length: int
    size: int

    @classmethod
    def of(cls, split: Split, axis: int, entries: int) -> "Chunks":
        """Chunks of a device's part along an axis, of about so many entries."""
        length = split.local(axis)
        count = min(length, -(-split.entries // max(1, entries)))
        return cls(length, -(-length // max(1, count)))

    @property
    def count(self) -> int:
        """The number of chunks."""
        return -(-self.length // self.size)

    def start(self, number: Any) -> Any:
        """Where a chunk begins."""
        import jax.numpy as jnp

        return jnp.minimum(number * self.size, self.length - self.size)
