"""The optimizer's state through a growth, against the written rule.

The reference is made here from scratch: a fresh Keras optimizer on bare variables, whose
state is the small model's with first moments times s and second moments times s**2, and
whose gradient is the small model's next gradient times s, repeated over all blocks; s is
1/K for what grew on the side of its outputs, and 1 for readouts and what did not grow.
"""

import types

import keras
import numpy as np
import pytest
from keras import layers, optimizers
from models import numpy

import keras_fusion
from keras_fusion import DeepFusion, graft
from keras_fusion.values import slots

VOCABULARY, LENGTH, CLASSES, STEPS = 7, 5, 3, 3
RATE = 0.05

OPTIMIZERS = {
    "SGD": lambda: optimizers.SGD(RATE),
    "SGD momentum": lambda: optimizers.SGD(RATE, momentum=0.9),
    "SGD nesterov": lambda: optimizers.SGD(RATE, momentum=0.9, nesterov=True),
    "RMSprop": lambda: optimizers.RMSprop(RATE),
    "RMSprop centered": lambda: optimizers.RMSprop(RATE, momentum=0.9, centered=True),
    "Adam": lambda: optimizers.Adam(RATE),
    "Adam amsgrad": lambda: optimizers.Adam(RATE, amsgrad=True),
    "AdamW": lambda: optimizers.AdamW(RATE, weight_decay=0.1),
    "Adamax": lambda: optimizers.Adamax(RATE),
    "Nadam": lambda: optimizers.Nadam(RATE),
    "Adagrad": lambda: optimizers.Adagrad(RATE),
    "Adadelta": lambda: optimizers.Adadelta(1.0),
    "Ftrl": lambda: optimizers.Ftrl(RATE),
    "Ftrl regularized": lambda: optimizers.Ftrl(
        RATE, l1_regularization_strength=1e-4, l2_regularization_strength=1e-3, beta=0.1
    ),
    "Lion": lambda: optimizers.Lion(RATE),
    "Lamb": lambda: optimizers.Lamb(RATE),
    "Muon": lambda: optimizers.Muon(RATE),
    "Adafactor": lambda: optimizers.Adafactor(RATE),
    "LossScaleOptimizer": lambda: optimizers.LossScaleOptimizer(
        optimizers.Adam(RATE), initial_scale=8.0
    ),
}
if hasattr(optimizers, "ScheduleFreeAdamW"):
    OPTIMIZERS["ScheduleFreeAdamW"] = lambda: optimizers.ScheduleFreeAdamW(
        RATE, warmup_steps=0
    )
# Whose updates, element by element, do not depend on the gradient's scale.
SCALE_FREE = (
    "RMSprop",
    "Adam",
    "Adam amsgrad",
    "Adamax",
    "Nadam",
    "Adadelta",
    "Lion",
    "LossScaleOptimizer",
)
# The power of the gradient that each slot holds, as the optimizers' papers say.
DEGREES = {
    "momentums": 1,
    "average_gradients": 1,
    "m": 1,
    "u": 1,
    "velocities": 2,
    "velocity_hats": 2,
    "adam_velocities": 2,
    "accumulators": 2,
    "accumulated_grads": 2,
    "accumulated_delta_vars": 0,
    "r": 2,
    "c": 2,
    "v": 2,
}


def slot_lists(optimizer):
    return graft.read_state(optimizer).lists


def make(optimizer=None):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((LENGTH,))
    x = layers.Dense(4, use_bias=False)(inputs)
    x = layers.Dense(6, activation="gelu")(x)
    x = layers.LayerNormalization()(x)
    model = keras.Model(inputs, layers.Dense(CLASSES)(x))
    rng = np.random.default_rng(0)
    for variable in model.weights:
        noise = 0.2 * rng.standard_normal(variable.shape)
        variable.assign(numpy(variable) + noise.astype("float32"))
    if optimizer is not None:
        model.compile(optimizer, loss(), run_eagerly=True)
    return model


def loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def batches(count=STEPS + 1):
    x = np.random.default_rng(3).standard_normal((4 * count, LENGTH)).astype("float32")
    return x, np.arange(4 * count) % CLASSES


def train(model, *callbacks, steps=STEPS, **options):
    x, y = (a[: 4 * steps] for a in batches())
    options = {"batch_size": 4, "shuffle": False, "verbose": 0} | options
    return model.fit(x, y, callbacks=list(callbacks), **options)


def next_update(model):
    """What the next batch changes, variable by variable."""
    before = [numpy(v).copy() for v in model.trainable_variables]
    x, y = (a[4 * STEPS :] for a in batches())
    model.train_on_batch(x, y)
    after = [numpy(v) for v in model.trainable_variables]
    return [b - a for a, b in zip(before, after, strict=True)]


def next_gradient(model):
    """The gradient of the next batch, as the step of an SGD of rate 1."""
    twin = make(optimizers.SGD(1.0))
    twin.set_weights(model.get_weights())
    return [-step for step in next_update(twin)]


def tiled(array, shape):
    return np.tile(array, [b // a for a, b in zip(array.shape, shape, strict=True)])


def scales(small, wide):
    """s by variable: 1/K where the output side (the last axis, here) grew."""
    return [
        a.shape[-1] / b.shape[-1]
        for a, b in zip(small.trainable_variables, wide, strict=True)
    ]


def core(optimizer):
    return getattr(optimizer, "inner_optimizer", optimizer)


def slot_of(name, slot, scale, optimizer, kind):
    """The written rule for one slot of the small model, before it is repeated."""
    degree = 0 if (kind, name) == ("RMSprop", "momentums") else DEGREES[name]
    start = getattr(optimizer, "initial_accumulator_value", 0.0)
    start = start if name == "accumulators" else 0.0
    return (slot - start) * scale**degree + start


def reference_update(optimizer, small, fused, gradients):
    """The update of a fresh optimizer in the state that the rule says."""
    kind, old = type(core(optimizer)).__name__, core(optimizer)
    shapes = [tuple(np.shape(v)) for v in fused]
    factors = scales(small, fused)
    fresh = type(old).from_config(old.get_config())
    variables = [
        keras.Variable(value, name=v.name)
        for value, v in zip(fused, small.trainable_variables, strict=True)
    ]
    fresh.build(variables)
    lists = slot_lists(fresh)
    for name, olds in slot_lists(old).items():
        for i, slot in enumerate(olds):
            if slot is None or slot.shape == () != shapes[i]:
                continue
            target = lists[name][i]
            if name == "linears":
                continue  # below
            if kind == "ScheduleFreeAdamW" and name == "momentums":
                distance = numpy(slot) - numpy(small.trainable_variables[i])
                value = fused[i] + tiled(distance, shapes[i])
            else:
                value = slot_of(name, numpy(slot), factors[i], old, kind)
                value = tiled(value, target.shape)
            target.assign(value.astype("float32"))
    if kind == "Ftrl":
        for i, linear in enumerate(lists["linears"]):
            accumulator = numpy(lists["accumulators"][i])
            linear.assign(ftrl_dual(old, accumulator, fused[i]).astype("float32"))
    for name in vars(fresh):
        value = vars(old)[name]
        if isinstance(value, keras.Variable):
            vars(fresh)[name].assign(numpy(value))
    grads = [
        keras.ops.convert_to_tensor(tiled(g * s, shape).astype("float32"))
        for g, s, shape in zip(gradients, factors, shapes, strict=True)
    ]
    fresh.apply(grads, variables)
    return [numpy(v) - old for v, old in zip(variables, fused, strict=True)]


def ftrl_dual(optimizer, accumulator, value):
    """The dual that stands for the weights: -w * quadratic, and l1 on top."""
    l2 = optimizer.l2_regularization_strength + optimizer.beta / (2 * RATE)
    quadratic = np.sqrt(accumulator) / RATE + 2 * l2
    return -quadratic * value - optimizer.l1_regularization_strength * np.sign(value)


def test_every_optimizer_is_tested():
    tested = {type(core(build())).__name__ for build in OPTIMIZERS.values()}
    # Examples in docstrings register optimizers of their own.
    known = {name for name in slots.known_optimizers() if hasattr(optimizers, name)}
    assert known - tested <= {"ScheduleFreeAdamW"}
    exported = {
        name
        for name, cls in vars(optimizers).items()
        if isinstance(cls, type) and issubclass(cls, optimizers.Optimizer)
    }
    # The base class has no slots; MultiOptimizer only joins others, see below.
    missing = exported - tested - {"Optimizer", "LossScaleOptimizer", "MultiOptimizer"}
    assert not missing, f"Register and test these optimizers: {missing}."


@pytest.mark.core(
    "SGD momentum-2",
    "AdamW-2",
    "Muon-2",
    "Adafactor-2",
    "LossScaleOptimizer-2",
)
@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_first_update_after_the_growth(name, factor):
    small, live = make(OPTIMIZERS[name]()), make(OPTIMIZERS[name]())
    train(small)
    grow = DeepFusion(at_step=STEPS, factor=factor, off_diagonal="zeros", verbose=0)
    train(live, grow)
    fused = [numpy(v).copy() for v in live.trainable_variables]
    gradients = next_gradient(small)
    expected = reference_update(small.optimizer, small, fused, gradients)
    updates = next_update(live)
    own = next_update(small)
    for i, (update, reference) in enumerate(zip(updates, expected, strict=True)):
        size = np.max(np.abs(reference))
        np.testing.assert_allclose(update, reference, rtol=1e-3, atol=2e-3 * size)
        if name in SCALE_FREE:
            # Up to epsilon, which a gradient of 1/K meets earlier.
            same = tiled(own[i], update.shape)
            np.testing.assert_allclose(update, same, rtol=0.02, atol=0.02 * size)


@pytest.mark.core
def test_sgd_moves_each_block_by_its_share():
    small, live = make(optimizers.SGD(RATE)), make(optimizers.SGD(RATE))
    train(small)
    train(live, DeepFusion(at_step=STEPS, seed=0, off_diagonal="zeros", verbose=0))
    shares = scales(small, live.trainable_variables)
    for own, share, update in zip(
        next_update(small), shares, next_update(live), strict=True
    ):
        np.testing.assert_allclose(
            update, tiled(own * share, update.shape), rtol=1e-3, atol=1e-7
        )


@pytest.mark.core
def test_partners_bring_their_state():
    live, partner = make(optimizers.Adam(RATE)), make(optimizers.Adam(RATE))
    partner.set_weights([w + 0.1 for w in partner.get_weights()])
    train(partner)
    train(live, DeepFusion(at_step=STEPS, partners=[partner], verbose=0))
    theirs = slot_lists(partner.optimizer)
    # The second layer, which has widths on both sides.
    index = [v.path.split("/")[-2] for v in live.trainable_variables].index("dense_1")
    first = numpy(slot_lists(live.optimizer)["momentums"][index])
    second = numpy(slot_lists(live.optimizer)["velocities"][index])
    np.testing.assert_allclose(first[4:, 6:], numpy(theirs["momentums"][index]) / 2)
    np.testing.assert_allclose(second[4:, 6:], numpy(theirs["velocities"][index]) / 4)
    assert not first[:4, 6:].any() and (second > 0).all()


def test_averaged_weights_are_fused():
    def build():
        return optimizers.Adam(RATE, use_ema=True, ema_momentum=0.5)

    small, live = make(build()), make(build())
    train(small)
    grow = DeepFusion(at_step=STEPS, seed=0, verbose=0)
    live.compile(build(), loss(), run_eagerly=True)
    x, y = (a[: 4 * STEPS] for a in batches())
    live.fit(x, y, batch_size=4, shuffle=False, verbose=0, callbacks=[grow])
    # At the end of fit both hold the averages; they must be the same function.
    np.testing.assert_allclose(numpy(live(x)), numpy(small(x)), rtol=1e-4, atol=1e-5)


def test_growth_within_an_accumulation_window_loses_nothing():
    def build():
        return optimizers.SGD(RATE, gradient_accumulation_steps=2)

    small, live = make(build()), make(build())

    class GrowAtBatch(DeepFusion):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 2:  # one batch into the second window
                self.grow()

    train(small)
    train(live, GrowAtBatch(at_step=1, off_diagonal="zeros", verbose=0), steps=3)
    shares = scales(small, live.trainable_variables)
    for own, share, update in zip(
        next_update(small), shares, next_update(live), strict=True
    ):
        expected = tiled(own * share, update.shape)
        np.testing.assert_allclose(update, expected, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("by", ["names", "variables"])
def test_exclusions_from_weight_decay_are_kept(by):
    live = make()
    optimizer = optimizers.SGD(1e-9, weight_decay=1e6)
    kernels = [v for v in live.trainable_variables if v.name == "kernel"]
    if by == "names":
        optimizer.exclude_from_weight_decay(var_names=["kernel"])
    else:
        optimizer.exclude_from_weight_decay(var_list=kernels)
    live.compile(optimizer, loss(), run_eagerly=True)
    train(live, DeepFusion(at_step=STEPS, seed=0, off_diagonal="zeros", verbose=0))
    for variable, update in zip(
        live.trainable_variables, next_update(live), strict=True
    ):
        decayed = np.max(np.abs(update)) > 1e-5
        assert decayed == (variable.name != "kernel"), variable.path


def test_frozen_layers_stay_without_state():
    live = make()
    live.layers[2].trainable = False
    live.compile(optimizers.Adam(RATE), loss())
    before = numpy(live.layers[2].kernel)
    train(live, DeepFusion(at_step=2, off_diagonal="zeros", verbose=0))
    np.testing.assert_array_equal(numpy(live.layers[2].kernel)[:4, :6], before)
    assert len(slot_lists(live.optimizer)["momentums"]) == 5


def test_unknown_optimizers_are_refused():
    @keras.saving.register_keras_serializable("tests")
    class Own(optimizers.Optimizer):
        def build(self, variables):
            super().build(variables)
            self.memory = self.add_optimizer_variables(variables, "memory")

        def update_step(self, gradient, variable, rate):
            self.assign_sub(variable, gradient * rate)

    live = make(Own(0.1))
    with pytest.raises(keras_fusion.FusionError, match=r"Own.*register_optimizer"):
        train(live, DeepFusion(at_step=2, verbose=0))
    train(live, DeepFusion(at_step=2, optimizer_state="reset", verbose=0))
    keras_fusion.register_optimizer(Own, {"memory": keras_fusion.Slot(1.0)})
    train(live, DeepFusion(at_step=5, verbose=0))
    assert live.layers[2].units == 24


def by_rank():
    """An optimizer for kernels and another one for vectors, and both in one."""
    parts = {2: optimizers.Adam(RATE), 1: optimizers.SGD(RATE, momentum=0.9)}
    return parts, optimizers.MultiOptimizer(lambda variable: parts[variable.ndim])


@pytest.mark.skipif(
    not hasattr(optimizers, "MultiOptimizer"), reason="not in this Keras"
)
def test_several_optimizers_grow_together():
    small_parts, small_optimizer = by_rank()
    small, live = make(small_optimizer), make(by_rank()[1])
    train(small)
    train(live, DeepFusion(at_step=STEPS, off_diagonal="zeros", verbose=0))
    fused = [numpy(v).copy() for v in live.trainable_variables]
    gradients, updates = next_gradient(small), next_update(live)
    for rank, part in small_parts.items():
        chosen = [i for i, value in enumerate(fused) if value.ndim == rank]
        model = types.SimpleNamespace(
            trainable_variables=[small.trainable_variables[i] for i in chosen]
        )
        expected = reference_update(
            part, model, [fused[i] for i in chosen], [gradients[i] for i in chosen]
        )
        for i, reference in zip(chosen, expected, strict=True):
            atol = 2e-3 * np.max(np.abs(reference))
            np.testing.assert_allclose(updates[i], reference, rtol=1e-3, atol=atol)
