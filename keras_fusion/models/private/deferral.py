"""Variables of the bigger model, which get their first values only when it is filled.

All of them will be overwritten, so that to draw initial values and to hold them would
cost more than the fusion itself: time, and a second copy. Under a `keras.distribution`
Keras would also make each first value whole on one device, and shard it by a path that
numbers unnamed layers anew. So a bigger model is built without values here; its variables
take over the shardings of those that they grow from, and get their values one by one.
"""

import contextlib
import contextvars
import functools
import random
import threading
from collections.abc import Callable, Iterator, Sequence

import keras
import numpy as np

from keras_fusion.models import host

# The initializers of the variables that were created in the scope of this context.
_INITIALIZERS: contextvars.ContextVar = contextvars.ContextVar(
    "initializers", default=None
)


@contextlib.contextmanager
def without_values() -> Iterator[dict[int, Callable]]:
    """A scope in which floating-point variables are created without values.

    Shapes and dtypes are known. Whoever reads such a variable gets its initial value,
    made anew each time; the first assignment creates its storage, and so does
    `give_values`. On the PyTorch backend, where layers hold on to the tensors of their
    variables, they get values at once. The global random generators go on as if nothing
    had been built. Other threads create their variables as ever.

    Yields:
        Dict from the id of each variable created here to its initializer, for
        `initial_value`.
    """
    initializers, states = {}, (random.getstate(), np.random.get_state())
    with _patch():
        token = _INITIALIZERS.set(initializers)
        try:
            yield initializers
        finally:
            _INITIALIZERS.reset(token)
            random.setstate(states[0])
            np.random.set_state(states[1])


def initial_value(
    initializer: Callable, shape: tuple[int, ...], dtype: str, seed: Sequence[int]
) -> np.ndarray:
    """The initial value of a variable, drawn from a seed of our own.

    Args:
        initializer: the variable's initializer, whose own seed does not count.
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


def give_values(variables: list) -> None:
    """Makes first values for variables that have none, shard by shard."""
    for variable in variables:
        if isinstance(vars(variable).get("_direct_assign"), functools.partial):
            _initialize(variable, variable._initializer)


def adopt_shardings(pairs: list[tuple]) -> None:
    """Gives variables the shardings of those that they grow from.

    Args:
        pairs: list of `(variable of the smaller model, variable of the bigger one)`.
    """
    if not host.is_distributed():
        return
    for source, target in pairs:
        if source._layout is not None:
            target._layout = source._layout
            if target._value is not None:
                target._direct_assign(target._value)


def _can_defer():
    return keras.config.backend() != "torch" and not keras.config.is_nnx_enabled()


# Keras's class of variables is patched while any thread is in the scope; the patch asks
# the context whether it is meant.
_LOCK, _PATCH = threading.Lock(), contextlib.ExitStack()
_USERS: list = []


@contextlib.contextmanager
def _patch():
    user = object()
    with _LOCK:
        if not _USERS:
            _PATCH.enter_context(_replaced(**_methods()))
        _USERS.append(user)
    try:
        yield
    finally:
        with _LOCK:
            _USERS.remove(user)
            if not _USERS:
                _PATCH.close()


def _methods():
    own = keras.Variable._initialize_with_initializer
    own_later = keras.Variable._deferred_initialize

    def initialize(variable, initializer):
        known = _INITIALIZERS.get()
        if known is not None:
            known[id(variable)] = initializer
        # A seed's state is small, and may be read.
        is_float = keras.backend.is_float_dtype(variable.dtype)
        if known is None or not is_float or not _can_defer():
            own(variable, initializer)
        else:
            variable._value, variable._initializer = None, initializer
            vars(variable)["_direct_assign"] = functools.partial(_first, variable)

    def initialize_later(variable):
        if _INITIALIZERS.get() is None:
            own_later(variable)
        else:
            variable._initialize_with_initializer(variable._initializer)

    return {
        "_initialize_with_initializer": initialize,
        "_deferred_initialize": initialize_later,
    }


@contextlib.contextmanager
def _replaced(**methods):
    """Puts methods in the class of Keras's variables."""
    before = {name: vars(keras.Variable).get(name) for name in methods}
    try:
        for name, method in methods.items():
            setattr(keras.Variable, name, method)
        yield
    finally:
        for name, method in before.items():
            if method is None:
                delattr(keras.Variable, name)  # It was inherited.
            else:
                setattr(keras.Variable, name, method)


def _first(variable, value):
    """The first assignment to a variable without a value."""
    _wake(variable)
    if keras.config.backend() == "jax":
        variable._direct_assign(value)
    else:
        if keras.backend.standardize_dtype(value.dtype) != variable.dtype:
            value = keras.ops.cast(value, variable.dtype)
        variable._initialize(value)


def _wake(variable):
    """Ends a variable's waiting for its first value."""
    del vars(variable)["_direct_assign"]
    variable._initializer = None


def _initialize(variable, initializer):
    """Makes a variable's own first value."""
    _wake(variable)
    if host.is_distributed():
        _initialize_sharded(variable, initializer)
    else:
        variable._initialize_with_initializer(initializer)


def _initialize_sharded(variable, initializer):
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
