"""The modified field of a growth: its order of accuracy, and its bracket."""

import keras
import numpy as np
import pytest
from keras import layers
from models import data_for, loss, numpy, t5

from keras_fusion import FusionError
from keras_fusion.dynamics import Bracket, Derivatives, Phases

BACKEND = keras.config.backend()
pytestmark = [
    pytest.mark.core,
    pytest.mark.skipif(
        BACKEND == "torch", reason="second derivatives are for TensorFlow and JAX"
    ),
]


@pytest.fixture
def float64():
    """Computes in float64, which JAX does on request only."""
    keras.config.set_floatx("float64")
    keras.mixed_precision.set_global_policy("float64")
    if BACKEND == "jax":
        import jax

        jax.config.update("jax_enable_x64", True)
    yield
    if BACKEND == "jax":
        jax.config.update("jax_enable_x64", False)
    keras.config.set_floatx("float32")
    keras.mixed_precision.set_global_policy("float32")


def network():
    """A small network, a batch, and the mask of the smaller network inside."""
    rng = np.random.default_rng(0)
    inputs = keras.Input((3,))
    # Not tanh: on JAX Keras's rounds to float32.
    h = layers.Dense(6, activation="silu")(inputs)
    h = layers.Dense(4, activation="silu")(h)
    model = keras.Model(inputs, layers.Dense(2)(h))
    model.compile("sgd", "mse")
    for variable in model.trainable_variables:
        variable.assign(0.7 * rng.standard_normal(variable.shape))
    mask = [np.zeros(v.shape) for v in model.trainable_variables]
    for array, block in zip(mask, ("3,3", "3", "3,2", "2", "2,2", "2"), strict=True):
        array[tuple(slice(int(n)) for n in block.split(","))] = 1.0
    return model, mask, rng.standard_normal((16, 3)), rng.standard_normal((16, 2))


def weights(model):
    return [numpy(v).copy() for v in model.trainable_variables]


def put(model, values):
    for variable, value in zip(model.trainable_variables, values, strict=True):
        variable.assign(value)


def moved(start, field, time):
    return [w + time * f for w, f in zip(start, field, strict=True)]


def flowed(at, slope, time, parts=8):
    """Where the flow of a field leads, by Runge and Kutta's method of fourth order."""
    step = time / parts
    for _ in range(parts):
        a = slope(at)
        b = slope(moved(at, a, step / 2))
        c = slope(moved(at, b, step / 2))
        d = slope(moved(at, c, step))
        rows = zip(a, b, c, d, strict=True)
        at = moved(at, [p + 2 * q + 2 * r + s for p, q, r, s in rows], step / 6)
    return at


@pytest.mark.parametrize("steps", [(1, 1), (3, 2)])
@pytest.mark.compiled
def test_order_of_convergence(float64, steps):
    model, mask, x, y = network()
    field, start = Bracket(model, mask), weights(model)

    def descended(phases):
        put(model, start)
        rates = [phases.small_rate] * phases.small_steps
        rates += [phases.big_rate] * phases.big_steps
        for i, rate in enumerate(rates):
            gradient = field(x, y).gradient
            if i < phases.small_steps:
                gradient = [m * g for m, g in zip(mask, gradient, strict=True)]
            put(model, moved(weights(model), gradient, -rate))
        return weights(model)

    def flow(phases, with_bracket):
        def slope(at):
            put(model, at)
            return field(x, y).modified(phases, with_bracket=with_bracket)

        return flowed(start, slope, 1.0)

    rates = np.geomspace(0.0003, 0.003, 4)  # a decade
    errors = {True: [], False: []}
    for rate in rates:
        phases = Phases(steps[0], rate, steps[1], 0.8 * rate)
        end = descended(phases)
        for with_bracket, found in errors.items():
            gaps = zip(end, flow(phases, with_bracket), strict=True)
            found.append(np.sqrt(sum(np.sum((a - b) ** 2) for a, b in gaps)))
    orders = {k: np.polyfit(np.log(rates), np.log(e), 1)[0] for k, e in errors.items()}
    assert 2.9 < orders[True] < 3.1
    assert 1.9 < orders[False] < 2.1


def test_the_bracket_is_that_of_explicit_hessians(float64):
    model, mask, x, y = network()
    field = Bracket(model, mask)(x, y)
    start, size = weights(model), sum(m.size for m in mask)
    flat = np.concatenate([np.ravel(g) for g in field.gradient])
    kept = np.concatenate([np.ravel(m) for m in mask])

    def vector(k):
        unit, ends = np.eye(size)[k], np.cumsum([m.size for m in mask])[:-1]
        return [
            keras.ops.convert_to_tensor(part.reshape(m.shape))
            for part, m in zip(np.split(unit, ends), mask, strict=True)
        ]

    # The whole second derivative, column by column.
    result = Derivatives(model, lambda _: [vector(k) for k in range(size)])(x, y)
    hessian = np.stack(
        [np.concatenate([np.ravel(p) for p in c]) for c in result.products]
    )
    np.testing.assert_allclose(hessian, hessian.T, atol=1e-10)
    expected = hessian @ (kept * flat) - kept * (hessian @ flat)
    found = np.concatenate([np.ravel(b) for b in field.bracket])
    np.testing.assert_allclose(found, expected, atol=1e-8)
    # And the gradient and second derivative are those of the loss, by differences.
    step, ahead = 1e-5, []
    for sign in (1, -1):
        put(model, moved(start, field.gradient, sign * step))
        ahead.append(Bracket(model, mask)(x, y))
    slope = (ahead[0].loss - ahead[1].loss) / (2 * step)
    assert slope == pytest.approx(flat @ flat, rel=1e-4)
    rows = zip(ahead[0].gradient, ahead[1].gradient, field.of_big, strict=True)
    for plus, minus, product in rows:
        np.testing.assert_allclose((plus - minus) / (2 * step), product, atol=1e-7)


def test_what_the_bracket_tells():
    model, mask, x, y = network()
    field = Bracket(model, mask)(x, y)
    phases = Phases(10, 0.01, 5, 0.02)
    assert phases.bracket_weight == pytest.approx(0.5 * 0.1 * 0.1)
    assert -1 <= field.alignment <= 1 and field.bracket_norm > 0
    # Both phases descend one loss, so the bracket is orthogonal to its gradient.
    assert abs(field.alignment) < 1e-6
    square = sum(np.sum(g**2) for g in field.gradient)
    assert field.implicit_regularization(0.4) == pytest.approx(0.1 * square, rel=1e-5)
    # A network that is all of the grown one commutes with it.
    whole = Bracket(model, [np.ones_like(m) for m in mask])(x, y)
    assert whole.bracket_norm == 0.0 and whole.alignment == 0.0


def test_the_effect_of_the_bracket_is_that_of_the_order(float64):
    """The flow of the small network first against that of the grown one first."""
    model, mask, x, y = network()
    rng = np.random.default_rng(1)
    # Two neighbouring speeds, as after a fusion, instead of a mask.
    speeds = [m * (1 + rng.random(m.shape)) for m in mask]
    bracket, start = Bracket(model, speeds), weights(model)
    gradient = Derivatives(model)

    def slope(at, speed):
        put(model, at)
        return [-s * g for s, g in zip(speed, gradient(x, y).gradient, strict=True)]

    def loss_after(*parts):
        at = start
        for time, speed in parts:
            at = flowed(at, lambda at, speed=speed: slope(at, speed), time)
        put(model, at)
        # Not by compute_loss, which rounds on JAX.
        return np.mean((numpy(model(x)) - y) ** 2)

    errors = []
    for time in (0.001, 0.0005):
        small, big = (time, speeds), (1.5 * time, [1.0] * len(mask))
        found = (loss_after(small, big) - loss_after(big, small)) / 2
        put(model, start)
        phases = Phases(1000, time / 1000, 1000, 1.5 * time / 1000)
        expected = bracket(x, y).bracket_effect(phases)
        errors.append(abs(found / expected - 1))
    # Exact to leading order: the error halves with the time.
    assert errors[1] < 0.1 and 0.4 < errors[1] / errors[0] < 0.6, errors


def test_the_analysis_changes_nothing_and_computes_in_float32():
    keras.utils.set_random_seed(0)
    model = t5()
    x, y = data_for("t5", 4)
    model.compile("adam", loss(), metrics=[], weighted_metrics=[])
    mask = [np.zeros(v.shape) for v in model.trainable_variables]
    before = weights(model)
    expected = Bracket(model, mask)(x, y).loss
    assert expected == pytest.approx(
        np.ravel(model.evaluate(x, y, verbose=0))[0], rel=1e-5
    )
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    half = t5()
    put(half, before)
    half.compile("adam", loss(), metrics=[], weighted_metrics=[])
    rough = np.ravel(half.evaluate(x, y, verbose=0))[0]
    assert Bracket(half, mask)(x, y).loss == pytest.approx(expected, rel=1e-5)
    # Afterwards it computes as it did.
    assert np.ravel(half.evaluate(x, y, verbose=0))[0] == pytest.approx(rough, rel=1e-6)
    assert {layer.compute_dtype for layer in half.layers[-1:]} == {"bfloat16"}
    for a, b in zip(before, weights(model), strict=True):
        np.testing.assert_array_equal(a, b)


def test_errors():
    model, mask, *_ = network()
    with pytest.raises(FusionError, match=r"has \(6,\), the array \(5,\)"):
        Bracket(model, [mask[0], np.ones(5), *mask[2:]])
    with pytest.raises(FusionError, match="6 variables, 5 arrays"):
        Bracket(model, mask[:5])
    with pytest.raises(FusionError, match="not compiled"):
        Bracket(keras.Sequential([keras.Input((1,)), layers.Dense(1)]), [])
