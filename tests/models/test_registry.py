"""The registry of rules: what is in it, and what it does not take."""

import pytest
from keras import layers

from keras_fusion import FusionError, register, registered


class Layer(layers.Layer):
    """One that nobody has registered."""


BAD_REGISTRATIONS = {
    "not a layer": (lambda: register(int), r"cls=<class 'int'>"),
    "widths as a string": (lambda: register(Layer, widths="units"), r"'units'"),
    "output_width": (
        lambda: register(Layer, widths=("a",), output_width="b"),
        r"output_width='b'",
    ),
    "role": (lambda: register(Layer, roles={"w": ("inn",)}), r"roles\['w'\].*'inn'"),
}


@pytest.mark.parametrize("case", BAD_REGISTRATIONS)
def test_bad_registration(case):
    call, pattern = BAD_REGISTRATIONS[case]
    with pytest.raises(FusionError, match=pattern):
        call()


def test_registered_lists_every_rule():
    class New(layers.Layer):
        pass

    assert layers.Dense in registered() and New not in registered()
    register(New, widths=("units",))
    assert New in registered()
