"""Variables of the bigger model, which get no values before it is filled.

All of them will be overwritten, so drawing and holding initial values would cost more
than the fusion itself: time, and a second copy. Under a `keras.distribution` Keras would
also make each initial value whole on one device, and shard it by a path in which unnamed
layers are numbered anew. So a bigger model is built without values here; its variables
get the shardings of those that they grow from, and their values one by one.
"""

import contextlib
import contextvars
import dataclasses
import functools
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np

from keras_fusion.models import host
from keras_fusion.models.private.patches import Patch, Replacements

Initializer = Callable[..., Any]

# The initializers of the variables that were created in the scope of this context, by id.
_INITIALIZERS: contextvars.ContextVar[dict[int, Initializer] | None] = (
    contextvars.ContextVar("initializers", default=None)
)


@contextlib.contextmanager
def without_values() -> Iterator[dict[int, Initializer]]:
    """Opens a scope in which floating-point variables are created without values.

    Shapes and dtypes are known. Reading such a variable gives its initial value, made
    anew each time; the first assignment creates its storage, and so does `give_values`.
    On the PyTorch backend, where layers keep the tensors of their variables, they get
    values at once. The states of the global random generators are restored at the end.
    Other threads create their variables as usual.

    Yields:
        Dict from the id of each variable created here to its initializer, for
        `Initial`.
    """
    initializers: dict[int, Initializer] = {}
    states = random.getstate(), np.random.get_state()
    with _PATCH.applied():
        token = _INITIALIZERS.set(initializers)
        try:
            yield initializers
        finally:
            _INITIALIZERS.reset(token)
            random.setstate(states[0])
            np.random.set_state(states[1])


@dataclasses.dataclass(frozen=True)
class Initial:
    """The initial value of a variable, drawn from a given seed: the same each time.

    Args:
        initializer: the variable's initializer, whose own seed is not used.
        shape: tuple of ints. The variable's shape.
        dtype: string. Its dtype.
        seed: tuple of ints.
    """

    initializer: Initializer
    shape: tuple[int, ...]
    dtype: str
    seed: tuple[int, ...]

    def __call__(self) -> np.ndarray:
        """Draws it in the host's memory."""
        if self.is_known:
            return host.host(self.on(None))
        return host.host(self._seeded(self._number)(self.shape, dtype=self.dtype))

    @property
    def is_known(self) -> bool:
        """Whether devices can draw it: an initializer of Keras's own, on JAX."""
        own = type(self.initializer).__module__.startswith("keras.src.initializers.")
        return own and keras.config.backend() == "jax" and self._is_plain

    @property
    def _number(self) -> int:
        (number,) = np.random.SeedSequence(self.seed).generate_state(1)
        return int(number >> 1)

    @property
    def _is_plain(self) -> bool:
        config, kind = self._config(), type(self.initializer)
        # Devices would each hold the whole of an orthogonal matrix.
        known = "seed" in config or "constant" in kind.__module__
        if not known or "Orthogonal" in kind.__name__:
            return False
        return all(n == "seed" or _is_plain(v) for n, v in config.items())

    def _config(self) -> dict[str, Any]:
        if not isinstance(self.initializer, keras.initializers.Initializer):
            return {}
        try:
            return self.initializer.get_config()
        except NotImplementedError:
            return {}

    def _seeded(self, seed: Any) -> Initializer:
        config = self._config()
        if "seed" not in config:
            return self.initializer
        return type(self.initializer).from_config(config | {"seed": seed})

    def on(self, sharding: Any) -> Any:
        """Draws it on devices, each its own part; to the same bit wherever that is.

        Args:
            sharding: `jax.sharding.Sharding`, or `None` for the default device.
        """
        config = sorted(
            (name, tuple(value) if isinstance(value, list) else value)
            for name, value in self._config().items()
            if name != "seed"
        )
        kind, draws = type(self.initializer), "seed" in self._config()
        draw = _drawing(kind, tuple(config), draws, self.shape, self.dtype, sharding)
        return draw(np.array([self._number, 0], "uint32"))


def _is_plain(value: Any) -> bool:
    """Whether an option is a scalar, or a list of scalars."""
    scalars = (int, float, str, type(None))
    values = value if isinstance(value, (list, tuple)) else [value]
    return all(isinstance(item, scalars) for item in values)


@functools.lru_cache(maxsize=64)
def _drawing(
    kind: type,
    config: tuple,
    draws: bool,
    shape: tuple[int, ...],
    dtype: str,
    sharding: Any,
) -> Callable[[Any], Any]:
    """The compiled program that draws the values of an initializer."""
    import jax

    def draw(state: Any) -> Any:
        seed = {"seed": _Given(state)} if draws else {}
        initializer = kind(**dict(config), **seed)
        return initializer(shape, dtype=dtype)

    return jax.jit(draw, out_shardings=sharding)


class _Given(keras.random.SeedGenerator):
    """A generator whose next seed is a given one."""

    def __init__(self, state: Any):
        self._given = state

    def next(self, ordered: bool = True) -> Any:
        """The given seed."""
        return self._given


def has_value(variable: keras.Variable) -> bool:
    """Whether a variable has storage; see `without_values`."""
    return variable._value is not None


def give_values(variables: Iterable[keras.Variable]) -> None:
    """Initializes the variables that have no values yet, shard by shard."""
    for variable in variables:
        if isinstance(vars(variable).get("_direct_assign"), functools.partial):
            _initialize(variable, variable._initializer)


def adopt_shardings(pairs: Iterable[tuple[keras.Variable, keras.Variable]]) -> None:
    """Gives variables the shardings of those that they grow from.

    Args:
        pairs: pairs `(variable of the smaller model, variable of the bigger one)`.
    """
    if not host.is_distributed():
        return
    for source, target in pairs:
        if source._layout is not None:
            target._layout = source._layout
            if target._value is not None:
                target._direct_assign(target._value)


def _can_defer() -> bool:
    return keras.config.backend() != "torch" and not keras.config.is_nnx_enabled()


def _methods() -> Replacements:
    own = keras.Variable._initialize_with_initializer
    own_later = keras.Variable._deferred_initialize

    def initialize(variable: Any, initializer: Initializer) -> None:
        known = _INITIALIZERS.get()
        if known is not None:
            known[id(variable)] = initializer
        # The state of a seed is small, and may be read.
        is_float = keras.backend.is_float_dtype(variable.dtype)
        if known is None or not is_float:
            own(variable, initializer)
        elif not _can_defer():
            try:
                own(variable, initializer)
            except Exception:
                # It makes one shape only. The values will be overwritten.
                own(variable, keras.initializers.Zeros())
        else:
            variable._value, variable._initializer = None, initializer
            vars(variable)["_direct_assign"] = functools.partial(_first, variable)

    def initialize_later(variable: Any) -> None:
        if _INITIALIZERS.get() is None:
            own_later(variable)
        else:
            variable._initialize_with_initializer(variable._initializer)

    return [
        (keras.Variable, "_initialize_with_initializer", initialize),
        (keras.Variable, "_deferred_initialize", initialize_later),
    ]


# It has an effect only in contexts that have opened the scope.
_PATCH = Patch(_methods)


def _first(variable: Any, value: Any) -> None:
    """Makes the first assignment to a variable without a value."""
    _wake(variable)
    if keras.config.backend() == "jax":
        variable._direct_assign(value)
    else:
        if keras.backend.standardize_dtype(value.dtype) != variable.dtype:
            value = keras.ops.cast(value, variable.dtype)
        variable._initialize(value)


def _wake(variable: Any) -> None:
    """Restores the ordinary assignment of a variable without a value."""
    del vars(variable)["_direct_assign"]
    variable._initializer = None


def _initialize(variable: Any, initializer: Initializer) -> None:
    """Gives a variable its initial value."""
    _wake(variable)
    if host.is_distributed():
        _initialize_sharded(variable, initializer)
    else:
        variable._initialize_with_initializer(initializer)


def _initialize_sharded(variable: Any, initializer: Initializer) -> None:
    import jax

    variable._initialize_layout()
    shape, dtype = tuple(variable.shape), variable.dtype
    if isinstance(initializer, keras.initializers.Zeros):
        zero = np.zeros((), jax.dtypes.canonicalize_dtype(dtype))
        host.write(variable, np.broadcast_to(zero, shape))
        return
    sharding = getattr(variable._layout, "backend_layout", variable._layout)
    draw = jax.jit(lambda: initializer(shape, dtype=dtype), out_shardings=sharding)
    variable._value = draw()
