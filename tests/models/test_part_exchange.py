"""What devices send each other, so that each gets the parts that it needs."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_fusion.models.part_exchange import Exchange
from keras_fusion.models.shards import Split

pytestmark = [
    pytest.mark.core,
    pytest.mark.skipif(keras.config.backend() != "jax", reason="shards are JAX's"),
]


def split(parts, length):
    import jax

    mesh = jax.sharding.AbstractMesh((parts,), ("x",))
    return Split(mesh, (length,), (("x",),))


def received(exchange, array, indices):
    """Entries of an array, as devices in an exchange get them.

    `jax.vmap` has no exchange in which some stay out: what is sent is NumPy's here, and
    JAX's on the eight devices of tests/values/test_on_devices.py.
    """
    import jax

    parts, own = array.reshape(exchange.parts, -1), indices.reshape(exchange.parts, -1)
    if not exchange.rounds:
        return array[own].reshape(-1)
    buffers = np.full((exchange.parts, len(exchange.rounds), exchange.local), np.nan)
    for number, pairs in enumerate(exchange.rounds):
        for sender, receiver in pairs:
            buffers[receiver, number] = parts[sender]
    places = jax.vmap(exchange.places, axis_name="x")(own)
    return np.take_along_axis(buffers.reshape(exchange.parts, -1), places, 1).reshape(
        -1
    )


@settings(max_examples=25, deadline=None)
@given(data=st.data(), parts=st.integers(2, 6), local=st.integers(1, 4))
def test_each_device_gets_the_entries_that_it_asks_for(data, parts, local):
    count, length = data.draw(st.integers(1, 4)), parts * local
    index = st.integers(-1, length - 1)
    size = parts * count
    indices = np.array(data.draw(st.lists(index, min_size=size, max_size=size)))
    exchange = Exchange.of(split(parts, length), split(parts, size), 0, indices)
    assert exchange is not None and len(exchange.rounds) < parts
    for pairs in exchange.rounds:
        senders, receivers = zip(*pairs, strict=True)
        assert len({*senders}) == len({*receivers}) == len(pairs)
    array = 10.0 + np.arange(length)
    found = received(exchange, array, np.maximum(indices, 0))
    is_old = indices >= 0
    np.testing.assert_array_equal(found[is_old], array[indices[is_old]])


@pytest.mark.parametrize("parts", [4, 8, 16])
def test_a_doubled_axis_takes_two_rounds(parts):
    """A device's part of two copies comes from two old parts, however many there are."""
    old, new = split(parts, 3 * parts), split(parts, 6 * parts)
    exchange = Exchange.of(old, new, 0, np.tile(np.arange(3 * parts), 2))
    assert exchange is not None and len(exchange.rounds) == 2


def test_nothing_is_sent_along_an_axis_that_stays_or_is_whole():
    import jax

    same = split(4, 8)
    assert Exchange.of(same, same, 0, None) is None
    mesh = jax.sharding.AbstractMesh((4,), ("x",))
    whole = Split(mesh, (8,), ((),))
    assert (
        Exchange.of(whole, Split(mesh, (16,), (("x",),)), 0, np.arange(16) % 8) is None
    )
