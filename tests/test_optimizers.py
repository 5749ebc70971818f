"""The first update after a growth with carried state, for every optimizer of Keras.

It must be what the rule says: first moments times the gradient's scale, second moments
times its square, repeated over all blocks.
"""

import functools
import inspect

import keras
import numpy as np
import pytest
from optimizer_cases import (
    CASES,
    STEPS,
    compiled,
    core,
    dual,
    gradient_scale,
    gradients,
    grow_at,
    numpy,
    ruled,
    slot,
    slots,
    Record,
    tile,
    tiny,
    train,
    weights,
)

import keras_fusion
from keras_fusion.slots import known_optimizers

# What keras.optimizers exports and holds no slots of its own.
WRAPPERS = {"Optimizer", "LossScaleOptimizer", "MultiOptimizer"}
CORE = {"SGD-nesterov", "Adam", "Adafactor", "Muon", "Ftrl", "Lion", "Nadam"}
ALL = [
    pytest.param(name, marks=pytest.mark.core) if name in CORE else name
    for name in CASES
]
WRAPPED = ["LossScale-SGD-momentum", "LossScale-Adam"]


def make(name):
    name, wrapped = name.removeprefix("LossScale-"), name.startswith("LossScale-")
    optimizer = CASES[name].make()
    if wrapped:
        return keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=16.0)
    return optimizer


@pytest.mark.core
def test_every_optimizer_of_keras_has_a_case():
    exported = {
        name
        for name, value in vars(keras.optimizers).items()
        if inspect.isclass(value) and issubclass(value, keras.optimizers.Optimizer)
    }
    covered = {name.split("-")[0] for name in CASES}
    assert exported - WRAPPERS == covered
    assert covered == set(known_optimizers()) & exported
    # Registered by name, also those that this release of Keras does not have yet.
    assert set(known_optimizers()) - exported <= {"ScheduleFreeAdamW"}


def snapshot(name, model):
    optimizer = core(model.optimizer)
    scalars = {"iterations": optimizer.iterations}
    scalars |= {k: v for k, v in vars(optimizer).items() if k == "_u_product"}
    return {
        "weights": weights(model),
        "slots": slots(optimizer, CASES[name.removeprefix("LossScale-")].powers),
        "scalars": {k: numpy(v) for k, v in scalars.items()},
    }


@functools.cache
def small_run(name):
    """The small model after `STEPS` steps, and after one more."""
    record = Record(functools.partial(snapshot, name), STEPS, STEPS + 1)
    train(compiled(tiny(), make(name)), callbacks=[record])
    return record.taken[STEPS], record.taken[STEPS + 1]


class Fused(keras.callbacks.Callback):
    """Takes the grown model's weights before its first update."""

    def on_train_batch_begin(self, batch, logs=None):
        if batch == STEPS:
            self.weights = weights(self.model)


def grown_run(name, **options):
    """Weights right after the growth, after one more step, and the model."""
    fused, grow = Fused(), grow_at(**options)
    model = train(compiled(tiny(), make(name)), callbacks=[grow, fused])
    assert grow.events[0].step == STEPS
    return fused.weights, weights(model), model


def predicted(name, small, fused, grads):
    """Bare variables after one step of a new optimizer with the rule's state."""
    name = name.removeprefix("LossScale-")
    case, optimizer = CASES[name], CASES[name].make()
    paths = [v.path.replace("/", "_") for v in tiny().trainable_variables]
    variables = [
        keras.Variable(w, name=p) for w, p in zip(fused, paths, strict=True)
    ]
    optimizer.build(variables)
    for slot_name, power in case.powers.items():
        for i, variable in enumerate(slot(optimizer, slot_name)):
            if variable is None:
                continue
            if power == "dual":
                accumulators = numpy(slot(optimizer, "accumulators")[i])
                value = dual(optimizer, accumulators, fused[i])
            else:
                held = small["slots"][slot_name][i]
                old = small["weights"][i]
                value = ruled(optimizer, power, slot_name, held, old, fused[i])
            variable.assign(value)
    for scalar, value in small["scalars"].items():
        getattr(optimizer, scalar).assign(value)
    optimizer.apply([keras.ops.convert_to_tensor(g) for g in grads], variables)
    return [numpy(v) for v in variables]


def assert_updates_equal(actual, expected, before, tolerance=1e-3):
    """Compares changes; float32 keeps about three digits of a change of 1e-4 of 1."""
    for i, (a, e, b) in enumerate(zip(actual, expected, before, strict=True)):
        floor = 1e-6 * np.max(np.abs(b))
        scale = np.max(np.abs(e - b))
        np.testing.assert_allclose(
            a - b, e - b, atol=tolerance * scale + floor, rtol=0, err_msg=f"{i}"
        )


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("name", [*ALL, *WRAPPED])
def test_first_update_is_what_the_rule_says(name, factor):
    small, later = small_run(name)
    fused, after, model = grown_run(name, factor=factor)
    grads = [
        tile(g, f.shape) * gradient_scale(g, f)
        for g, f in zip(gradients(tiny(), small["weights"], STEPS), fused, strict=True)
    ]
    assert_updates_equal(after, predicted(name, small, fused, grads), fused)
    like_small = CASES[name.removeprefix("LossScale-")].like_small
    if like_small is not None:
        own = [
            f + tile(b - a, f.shape) * (gradient_scale(a, f) if like_small == "scaled" else 1)
            for f, a, b in zip(fused, small["weights"], later["weights"], strict=True)
        ]
        assert_updates_equal(after, own, fused)


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("name", [*ALL, *WRAPPED])
def test_first_update_with_paired_noise(name, factor):
    # The halves part here, so the gradients are the grown model's own.
    small, _ = small_run(name)
    fused, after, model = grown_run(name, factor=factor, off_diagonal="paired")
    grads = gradients(model, fused, STEPS)
    assert_updates_equal(after, predicted(name, small, fused, grads), fused)
