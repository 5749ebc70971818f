"""What users type: the names that the package shows, and arguments that are mistyped."""

import dataclasses
import inspect

import pytest
from public import public_names

import keras_fusion
from keras_fusion import FusionError

PUBLIC = {
    name: value
    for name, value in public_names().items()
    if name.count(".") == 1  # of keras_fusion itself
}
# Without options to mistype, or classes of plain fields, for which Python's error will do.
PLAIN = {"known_operators", "registered", "multi_worker_fit", "register_optimizer"}


def with_options():
    for name, value in PUBLIC.items():
        short, own = name.partition(".")[2], value
        if inspect.isclass(value):
            own = vars(value).get("__init__")
            if own is None or issubclass(value, (Exception, list)):
                continue
            if dataclasses.is_dataclass(value):
                continue
        if short not in PLAIN:
            yield pytest.param(value, own, id=short)


@pytest.mark.core
def test_dir_shows_the_public_names_alone():
    shown = {name for name in dir(keras_fusion) if not name.startswith("_")}
    assert shown == set(keras_fusion.__all__)
    assert "__version__" in dir(keras_fusion)


@pytest.mark.parametrize(("value", "function"), list(with_options()))
def test_a_mistyped_argument_is_named_with_what_was_meant(value, function):
    names = [n for n in inspect.signature(function).parameters if n != "self"]
    for name in names:
        with pytest.raises(FusionError, match=f"Did you mean `{name}`") as raised:
            value(**{f"{name}x": 1})
        assert isinstance(raised.value, TypeError)
        assert f"has no argument `{name}x`" in str(raised.value)


@pytest.mark.parametrize(("value", "function"), list(with_options()))
def test_no_argument_is_hidden(value, function):
    kinds = {p.kind for p in inspect.signature(value).parameters.values()}
    assert inspect.Parameter.VAR_KEYWORD not in kinds


@pytest.mark.core
def test_near_misses():
    with pytest.raises(FusionError, match="DeepFusion.. has no .* mean `norms`"):
        keras_fusion.DeepFusion(at_step=3, norm="block")
    with pytest.raises(FusionError, match="fuse.. has no argument .* mean `norms`"):
        keras_fusion.fuse([], norm="block")
    with pytest.raises(TypeError, match="Net2Net.. has no .*mean `noise_scale`"):
        keras_fusion.Net2Net(noise_scales=1)
    with pytest.raises(FusionError) as raised:
        keras_fusion.DeepFusion(zzz=1)
    assert "Did you mean" not in str(raised.value)
    assert "It has at_step, at_epoch, schedule, partners," in str(raised.value)
