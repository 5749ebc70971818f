"""Variables of the bigger model, which get no values before it is filled.

All of them will be overwritten, so drawing and holding initial values would cost more
than the fusion itself: time, and a second copy. Under a `keras.distribution` Keras would
also make each initial value whole on one device, and shard it by a path in which unnamed
layers are numbered anew. So a bigger model is built without values here; its variables
get the shardings of those that they grow from, and their values one by one.
"""

import contextlib
import contextvars
import functools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
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
        `initial_value`.
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


def initial_value(
    initializer: Initializer, shape: tuple[int, ...], dtype: str, seed: Sequence[int]
) -> np.ndarray:
    """Draws the initial value of a variable from a given seed.

    Args:
        initializer: the variable's initializer, whose own seed is not used.
        shape: tuple of ints. The variable's shape.
        dtype: string. Its dtype.
        seed: ints.

    Returns:
        Array of that shape.
    """
    if isinstance(initializer, keras.initializers.Initializer):
        try:
            config = initializer.get_config()
        except NotImplementedError:
            config = {}
        if "seed" in config:
            (number,) = np.random.SeedSequence(seed).generate_state(1)
            config["seed"] = int(number >> 1)
            initializer = type(initializer).from_config(config)
    return host.host(initializer(shape, dtype=dtype))


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
