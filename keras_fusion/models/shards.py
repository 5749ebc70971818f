"""How arrays lie over devices under JAX, and how a device gets what others hold.

Everything that takes local parts runs inside `jax.shard_map`.
"""

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
    def devices(self) -> int:
        """Over how many devices the array is split."""
        return math.prod(map(self.parts, range(len(self.shape))))

    @property
    def entries(self) -> int:
        """The number of entries on one device."""
        return math.prod(map(self.local, range(len(self.shape))))

    def longest_axis(self, enough: int, before: int | None = None) -> int:
        """The first axis that is long enough on a device, else the longest."""
        axes = range(len(self.shape) if before is None else before)
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
        number: Any = 0
        for name in names:
            number = number * split.mesh.shape[name] + jax.lax.axis_index(name)
        local = split.local(axis)
        found.append(number * local + jnp.arange(local, dtype="int32"))
    return found


def along(vector: Any, axis: int, rank: int) -> Any:
    """A vector reshaped to broadcast along one axis."""
    return vector.reshape([-1 if i == axis else 1 for i in range(rank)])


@dataclasses.dataclass(frozen=True)
class Pieces:
    """Pieces of a split array, which go to all devices one after the other.

    Args:
        split: the array's `Split`.
        axis: int. The axis that is cut.
        size: int. The length of a piece on the device that holds it.
    """

    split: Split
    axis: int
    size: int

    @classmethod
    def of(cls, split: Split, axis: int, entries: int) -> "Pieces":
        """Pieces of so many entries, of all devices together, or a little more."""
        local, whole = split.local(axis), math.prod(split.shape)
        count = min(local, -(-whole // max(1, entries)))
        return cls(split, axis, -(-local // max(1, count)))

    @property
    def count(self) -> int:
        """The number of pieces. The last one overlaps with the one before."""
        return -(-self.split.local(self.axis) // self.size)

    def start(self, number: Any) -> Any:
        """Where a piece begins in the part of the device that holds it."""
        import jax.numpy as jnp

        last = self.split.local(self.axis) - self.size
        return jnp.minimum(number * self.size, last)

    def piece(self, part: Any, number: Any) -> Any:
        """A piece of all devices' parts, which has the whole of all other axes."""
        import jax

        start = self.start(number)
        piece = jax.lax.dynamic_slice_in_dim(part, start, self.size, self.axis)
        for axis, names in enumerate(self.split.names):
            if names:
                piece = jax.lax.all_gather(piece, names, axis=axis, tiled=True)
        return piece

    def indices(self, number: Any) -> Any:
        """The indices of a piece along the axis in the whole array."""
        import jax.numpy as jnp

        own = self.start(number) + jnp.arange(self.size, dtype="int32")
        local = self.split.local(self.axis)
        starts = local * jnp.arange(self.split.parts(self.axis), dtype="int32")
        return (starts[:, None] + own).reshape(-1)

    def places(self, indices: Any) -> tuple[Any, Any]:
        """The piece that holds each index of the whole array, and its place in it."""
        local = self.split.local(self.axis)
        holder, own = indices // local, indices % local
        number = own // self.size
        return number, holder * self.size + own - self.start(number)


def taken(split: Split, part: Any, indices: Sequence[Any], entries: int) -> Any:
    """Entries of an array from wherever they lie.

    Args:
        split: the array's `Split`.
        part: this device's part of it.
        indices: for each axis a vector of indices of the whole array.
        entries: int. The most entries that a device holds of it at a time.

    Returns:
        Array of shape `tuple(map(len, indices))`.
    """
    import jax
    import jax.numpy as jnp

    if not any(split.names):
        return _taken(part, indices)
    axis = max(range(len(split.shape)), key=split.local)
    pieces = Pieces.of(split, axis, entries)
    owner, place = pieces.places(indices[axis])
    own = [place if i == axis else vector for i, vector in enumerate(indices)]

    def add_piece(number, found):
        piece = _taken(pieces.piece(part, number), own)
        return jnp.where(along(owner == number, axis, len(indices)), piece, found)

    empty = jnp.zeros([len(vector) for vector in indices], part.dtype)
    return jax.lax.fori_loop(0, pieces.count, add_piece, empty)


def _taken(array: Any, indices: Sequence[Any]) -> Any:
    """Entries of an array that the device has; what makes it smaller is taken first."""
    import jax.numpy as jnp

    sizes = [len(vector) / n for vector, n in zip(indices, array.shape, strict=True)]
    for axis in sorted(range(len(sizes)), key=sizes.__getitem__):
        array = jnp.take(array, indices[axis], axis=axis, mode="clip")
    return array
