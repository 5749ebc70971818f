"""The bigger model's variables under a `keras.distribution`: laid out, then filled.

Keras makes a variable's first value on one device and shards it afterwards (below 250 MB
times the devices), by a path that numbers unnamed layers anew. So a bigger model is built
without values here; its variables take over the layouts of those that they grow from, and
their first values are the fused ones, written shard by shard.
"""

import contextlib

import keras
import numpy as np

from keras_fusion import placement


@contextlib.contextmanager
def without_values():
    """In this scope, floating-point variables are created without values.

    Only under a `keras.distribution`; else the scope does nothing. Shapes and dtypes are
    known. `adopt_layouts` and then `placement.write` or `give_values` follow.
    """
    if not _can_defer():
        yield
        return
    own = keras.Variable._initialize_with_initializer

    def initialize(variable, initializer):
        if not keras.backend.is_float_dtype(variable.dtype):
            own(variable, initializer)  # A seed's state is small, and may be read.
        else:
            variable._value, variable._initializer = None, initializer

    def initialize_later(variable):
        variable._initialize_with_initializer(variable._initializer)

    with _replaced(
        _initialize_with_initializer=initialize, _deferred_initialize=initialize_later
    ):
        yield


def give_values(variables: list) -> None:
    """Makes first values for variables that have none, shard by shard."""
    for variable in variables:
        if variable._value is None:
            _initialize_sharded(variable, variable._initializer)


def adopt_layouts(pairs: list[tuple]) -> None:
    """Gives variables the layouts of those that they grow from.

    Args:
        pairs: list of `(variable of the smaller model, variable of the bigger one)`.
    """
    if not placement.is_distributed():
        return
    for source, target in pairs:
        if source._layout is not None:
            target._layout = source._layout
            if target._value is not None:
                target._direct_assign(target._value)


def _can_defer():
    return placement.is_distributed() and not keras.config.is_nnx_enabled()


@contextlib.contextmanager
def _replaced(**methods):
    """Puts methods in the class of Keras's variables, for the while."""
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


def _initialize_sharded(variable, initializer):
    import jax

    variable._initialize_layout()
    shape, dtype = tuple(variable.shape), variable.dtype
    if isinstance(initializer, keras.initializers.Zeros):
        zero = np.zeros((), jax.dtypes.canonicalize_dtype(dtype))
        placement.write(variable, np.broadcast_to(zero, shape))
        return
    sharding = getattr(variable._layout, "backend_layout", variable._layout)
    draw = jax.jit(lambda: initializer(shape, dtype=dtype), out_shardings=sharding)
    variable._value = draw()
