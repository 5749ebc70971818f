"""`keras_fusion.grow`: the growth of a callback, outside of `fit`."""

import re

import keras
import numpy as np
import pytest
from fitting import fit, live_model
from models import KINDS, data_for, functional, loss, numpy, outputs, subclassed, values
from rates import Rates, mean_of_outputs
from repository import ROOT

import keras_fusion
from keras_fusion import DeepFusion, FusionError, FusionOperator, GrowthError, grow
from keras_fusion.models import progress

pytestmark = pytest.mark.core
BACKEND = keras.config.backend()
TITLES = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}


def state_of(model):
    return [numpy(v).copy() for v in (*model.weights, *model.optimizer.variables)]


def assert_equal(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.core("functional", "subclassed")
@pytest.mark.parametrize("kind", ["functional", "sequential", "subclassed"])
def test_growing_keeps_the_function_and_training_goes_on(kind):
    model, (x, y) = KINDS[kind](), data_for(kind)
    model.compile("adam", loss())
    model.fit(x, y, batch_size=8, verbose=0)
    layer, optimizer, before = model.layers[0], model.optimizer, outputs(model, x)
    event = grow(model, 2, verbose=0)
    np.testing.assert_allclose(outputs(model, x), before, atol=1e-5)
    assert model.optimizer is optimizer and model.layers[0] is not layer
    assert event.step == int(numpy(optimizer.iterations)) == 4
    assert event.params_after == model.count_params() > event.params_before
    history = model.fit(x, y, batch_size=8, epochs=2, verbose=0).history
    assert history["loss"][1] < history["loss"][0]
    assert int(numpy(optimizer.iterations)) == 12


def test_it_is_the_growth_of_the_callback():
    """The same seed gives the same weights and optimizer state, bit by bit."""
    inside, outside = live_model(), live_model()
    operator = FusionOperator(seed=5)
    fit(inside, keras_fusion.GrowModel(operator, keras_fusion.AtEpoch(1), verbose=0))
    fit(outside, epochs=1)
    grow(outside, operator, verbose=0)
    fit(outside, epochs=1)
    assert_equal(state_of(outside), state_of(inside))


def test_without_an_optimizer_it_is_fuse_in_place():
    model = functional()
    x, _ = data_for("functional")
    before = outputs(model, x)
    fused = keras_fusion.fuse(model, factor=2, off_diagonal="paired", seed=3)
    event = grow(model, FusionOperator(seed=3), verbose=0)
    assert_equal(values(model), values(fused))
    np.testing.assert_allclose(outputs(model, x), before, atol=1e-5)
    assert event.step == 0 and not model.compiled
    model.compile("adam", loss())
    fit(model, DeepFusion(at_step=2, verbose=0))
    assert model.layers[1].output_dim == 32


def test_the_optimizer_of_a_loop_of_ones_own():
    model, other = functional(), live_model()
    optimizer = keras.optimizers.Adam(1e-3)
    optimizer.build(model.trainable_variables)
    ones = [keras.ops.ones(v.shape) for v in model.trainable_variables]
    optimizer.apply(ones, model.trainable_variables)
    other.optimizer.build(other.trainable_variables)
    other.optimizer.apply(ones, other.trainable_variables)
    operator = FusionOperator(seed=1)
    assert grow(model, operator, optimizer=optimizer, verbose=0).step == 1
    grow(other, operator, verbose=0)
    assert_equal(map(numpy, optimizer.variables), map(numpy, other.optimizer.variables))
    assert not hasattr(model, "optimizer")
    ones = [keras.ops.ones(v.shape) for v in model.trainable_variables]
    optimizer.apply(ones, model.trainable_variables)


@pytest.mark.tensorflow
def test_it_draws_from_the_global_generator_unless_given_a_seed():
    def grown(**options):
        model = functional()
        keras.utils.set_random_seed(7)
        grow(model, 2, verbose=0, **options)
        return values(model)

    assert_equal(grown(), grown())
    assert_equal(grown(seed=4), grown(seed=4))
    assert not all(map(np.array_equal, grown(), grown(seed=4)))


class Lonely(keras.callbacks.Callback):
    """A callback of a user's own that grows the model."""

    def on_train_batch_end(self, batch, logs=None):
        if batch == 1:
            self.event = grow(self.model, 2, verbose=0)


def test_it_works_inside_of_fit_too():
    model, lonely = live_model(), Lonely()
    fit(model, lonely, epochs=1)
    assert lonely.event.step == 2 and model.layers[1].output_dim == 16
    assert int(numpy(model.optimizer.iterations)) == 4


def test_the_line_is_printed(capsys):
    event = grow(functional(), 2)
    assert capsys.readouterr().out == f"\n{event}\n"
    grow(functional(), 2, verbose=0)
    assert capsys.readouterr().out == ""


@pytest.mark.core("bfloat16")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounding_is_called_so_where_the_weights_are_coarse(dtype):
    keras.config.set_dtype_policy(dtype)
    model = functional()
    event = grow(model, 2, verbose=0)
    assert 1e-5 < event.function_change < 0.05 and event.rounding == dtype
    assert f"rounding of {dtype})" in str(event)
    assert model.layers[1].compute_dtype == dtype
    changing = keras_fusion.FusionOperator(off_diagonal="random")
    assert grow(model, changing, verbose=0).rounding is None


@pytest.mark.tensorflow
def test_a_long_growth_shows_how_far_it_is(capsys, monkeypatch):
    """After some seconds; in a log every ten."""
    model = live_model()
    fit(model, epochs=1)
    grow(model, 2)
    assert "filling" not in capsys.readouterr().out
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    monkeypatch.setattr(progress, "_INTERVALS", {True: 0.0, False: 0.0})
    grow(model, 2)
    printed = capsys.readouterr().out
    assert "keras_fusion: filling 'functional" in printed
    assert "keras_fusion: growing the state of Adam" in printed
    assert printed.count("layers[6].kernel") == 2
    assert printed.endswith("same argmax 100.0%)\n")
    grow(model, 2, verbose=0)
    assert capsys.readouterr().out == ""


# What is refused, and what fails.


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    ("arguments", "options", "pattern"),
    [
        (
            (1.0,),
            {},
            "`factor` must be a number above 1, and of at most 1000. Received: factor=1",
        ),
        (("two",), {}, "`operator_or_factor` must be a growth operator"),
        ((True,), {}, "`operator_or_factor` must be a growth operator"),
        ((2,), {"optimizer_state": "keep"}, "`optimizer_state` must be"),
        ((2,), {"seed": -1}, "`seed` must be.*seed=-1"),
        ((2,), {"verbose": 2}, "`verbose` must be 0 or 1"),
        ((2,), {"optimizer": "adam"}, "`optimizer` must be a Keras optimizer"),
        ((2,), {"optimizer": keras.optimizers.SGD()}, "another one .SGD.; only one"),
        ((1.3,), {}, "not whole"),
    ],
)
def test_what_cannot_work_is_refused_and_changes_nothing(arguments, options, pattern):
    model = live_model()
    fit(model, epochs=1)
    before = state_of(model)
    with pytest.raises(FusionError, match=pattern):
        grow(model, *arguments, **options)
    assert_equal(state_of(model), before)
    fit(model, epochs=1)


@pytest.mark.tensorflow
def test_what_is_no_model_is_refused():
    with pytest.raises(FusionError, match="`model` must be a keras.Model. Received"):
        grow(keras.layers.Dense(3))
    with pytest.raises(FusionError, match="is not built"):
        grow(keras.Sequential([keras.layers.Dense(3)]))


@pytest.mark.parametrize("method", ["make_train_function", "count_params"])
def test_a_failure_leaves_the_model_as_it_was(method, monkeypatch):
    model = live_model()
    fit(model, epochs=1)
    layers, before = list(model.layers), state_of(model)

    def broken(*arguments, **options):
        raise RuntimeError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(model, method, broken)
        with pytest.raises((GrowthError, RuntimeError), match="no room"):
            grow(model, verbose=0)
    assert all(a is b for a, b in zip(layers, model.layers, strict=True))
    assert_equal(state_of(model), before)
    grow(model, verbose=0)
    fit(model, epochs=1)


@pytest.mark.parametrize("is_schedule", [False, True])
def test_a_rate_is_warmed_up_again(is_schedule):
    """Outside of `fit`, and in fits without a callback of this package."""
    model, rate = functional(), 0.5
    if is_schedule:
        rate = keras.optimizers.schedules.PolynomialDecay(0.5, 1, 0.5)
    model.compile(keras.optimizers.SGD(rate), mean_of_outputs)
    rates = Rates()
    fit(model, rates, epochs=1)
    grow(model, 2, rewarmup_steps=5, learning_rate_factor=0.1, verbose=0)
    fit(model, rates, epochs=2)
    expected = np.array([0.01, 0.02, 0.03, 0.04, 0.05, 0.05, 0.05])
    np.testing.assert_allclose(rates.values[:4], 0.5, rtol=1e-4)
    np.testing.assert_allclose(rates.values[4:11], expected, rtol=1e-3)


@pytest.mark.tensorflow
def test_a_backup_tells_of_a_growth_outside_of_fit(tmp_path):
    model = live_model()
    grow(model, 2, verbose=0)
    backup = keras_fusion.BackupAndRestore(tmp_path / "backup", delete_checkpoint=False)
    fit(model, backup, epochs=1)
    backup = keras_fusion.BackupAndRestore(tmp_path / "backup")
    with pytest.raises(
        FusionError, match="changed at step 0 by a callback that is not"
    ):
        fit(live_model(), backup)
    again = live_model()
    grow(again, 2, verbose=0)
    assert fit(again, backup, epochs=2).epoch == [1]


# The loops of docs/custom_loops.md.


def documented_loop():
    """The page's block for this backend."""
    text = (ROOT / "docs" / "custom_loops.md").read_text(encoding="utf-8")
    section = text.split(f"\n## {TITLES[BACKEND]}\n")[1].split("\n## ")[0]
    (block,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    return block


def test_the_documented_loop_runs():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((160, 8, 4)).astype("float32")
    y = x.sum(axis=-1, keepdims=True)
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(1)]
    )
    model.compile(keras.optimizers.Adam(0.01), "mse")
    batches = [
        tuple(map(keras.ops.convert_to_tensor, pair)) for pair in zip(x, y, strict=True)
    ]
    names = {"keras": keras, "keras_fusion": keras_fusion, "model": model}
    names |= {"batches": batches, "dataset": batches}
    source = documented_loop()
    assert "grow(model, 2)" in source and "number == 100" in source
    before = float(np.mean((outputs(model, x[0]) - y[0]) ** 2))
    exec(compile(source, "docs/custom_loops.md", "exec"), names)
    assert model.layers[0].units == 16
    assert int(numpy(model.optimizer.iterations)) == 160
    after = float(np.mean((outputs(model, x[0]) - y[0]) ** 2))
    assert after < before / 2


def test_a_subclassed_model_doubles_in_few_lines():
    model, (x, y) = subclassed(), data_for("subclassed")
    model.compile(keras.optimizers.Adam(0.01), loss())
    model.fit(x, y, batch_size=8, verbose=0)
    before, slots = outputs(model, x), [v.shape for v in model.optimizer.variables]
    keras_fusion.grow(model, 2, verbose=0)
    assert np.abs(outputs(model, x) - before).max() < 1e-5
    first = model.optimizer._momentums[0]
    assert tuple(first.shape) == tuple(model.trainable_variables[0].shape)
    assert np.any(numpy(first)) and len(slots) == len(model.optimizer.variables)
    model.fit(x, y, batch_size=8, verbose=0)
