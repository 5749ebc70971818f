"""Optimizers, what the growth rule says of their slots, and a tiny model to train.

The rule is written down here a second time, in its plainest form, so that the package
is compared with the rule and not with itself.
"""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
from keras import layers, optimizers

import keras_fusion

VOCABULARY, LENGTH, BATCH, STEPS = 7, 4, 8, 4
TINY = 1e-12  # an epsilon that the gradients of the tiny model do not feel


@dataclasses.dataclass(frozen=True)
class Case:
    """An optimizer and its rule.

    Args:
        make: function without arguments that makes the optimizer.
        powers: dict from slot to the power of the gradient's scale.
        like_small: what each block's first update is, relative to the small model's
            own next one: `"equal"` for optimizers that divide the gradient's scale
            away, `"scaled"` for those that do not, `None` where an update depends on
            the whole variable.
    """

    make: Callable
    powers: dict
    like_small: str | None = "equal"


ADAM = {"momentums": 1, "velocities": 2}
CASES = {
    "SGD": Case(lambda: optimizers.SGD(0.1), {}, "scaled"),
    "SGD-momentum": Case(lambda: optimizers.SGD(0.1, 0.9), {"momentums": 1}, "scaled"),
    "SGD-nesterov": Case(
        lambda: optimizers.SGD(0.1, 0.9, nesterov=True), {"momentums": 1}, "scaled"
    ),
    "RMSprop": Case(
        lambda: optimizers.RMSprop(0.01, epsilon=TINY), {"velocities": 2}
    ),
    "RMSprop-all": Case(
        lambda: optimizers.RMSprop(0.01, momentum=0.9, centered=True, epsilon=TINY),
        {"velocities": 2, "momentums": 0, "average_gradients": 1},
    ),
    "Adam": Case(lambda: optimizers.Adam(0.01, epsilon=TINY), ADAM),
    "Adam-amsgrad": Case(
        lambda: optimizers.Adam(0.01, amsgrad=True, epsilon=TINY),
        ADAM | {"velocity_hats": 2},
    ),
    "AdamW": Case(lambda: optimizers.AdamW(0.01, weight_decay=0.1), ADAM, None),
    "Adamax": Case(lambda: optimizers.Adamax(0.01, epsilon=TINY), {"m": 1, "u": 1}),
    "Nadam": Case(lambda: optimizers.Nadam(0.01, epsilon=TINY), ADAM),
    "Adagrad": Case(
        lambda: optimizers.Adagrad(0.01, initial_accumulator_value=0, epsilon=TINY),
        {"accumulators": 2},
    ),
    "Adagrad-start": Case(lambda: optimizers.Adagrad(0.01), {"accumulators": 2}, None),
    "Adadelta": Case(
        lambda: optimizers.Adadelta(1.0, epsilon=TINY),
        {"accumulated_grads": 2, "accumulated_delta_vars": 0},
    ),
    "Ftrl": Case(
        lambda: optimizers.Ftrl(0.05), {"accumulators": 2, "linears": "dual"}, None
    ),
    "Ftrl-l1-l2-beta": Case(
        lambda: optimizers.Ftrl(
            0.05,
            l1_regularization_strength=0.01,
            l2_regularization_strength=0.02,
            l2_shrinkage_regularization_strength=0.01,
            beta=0.1,
        ),
        {"accumulators": 2, "linears": "dual"},
        None,
    ),
    "Lion": Case(lambda: optimizers.Lion(0.01), {"momentums": 1}),
    "Lamb": Case(lambda: optimizers.Lamb(0.01), ADAM, None),
    "Muon": Case(
        lambda: optimizers.Muon(0.01), {"momentums": 1, "adam_velocities": 2}, None
    ),
    "Adafactor": Case(
        lambda: optimizers.Adafactor(0.1), {"r": 2, "c": 2, "v": 2}, None
    ),
    "ScheduleFreeAdamW": Case(
        lambda: optimizers.ScheduleFreeAdamW(0.01, epsilon=TINY, warmup_steps=2),
        {"momentums": "near weights", "velocities": 2},
    ),
    "Adam-clipnorm": Case(
        lambda: optimizers.Adam(0.01, clipnorm=1e-3, weight_decay=0.1), ADAM, None
    ),
    "SGD-clipvalue": Case(
        lambda: optimizers.SGD(0.1, 0.9, clipvalue=1e-3), {"momentums": 1}, None
    ),
    "SGD-global_clipnorm": Case(
        lambda: optimizers.SGD(0.1, 0.9, global_clipnorm=1e-2), {"momentums": 1}, None
    ),
}
CASES = {
    name: case
    for name, case in CASES.items()
    if hasattr(optimizers, name.split("-")[0])  # not in this release of Keras
}


def tiny(seed=0, width=4):
    """Embedding, hidden layers, a norm and a readout, all off their start."""
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((LENGTH,), dtype="int32"),
            layers.Embedding(VOCABULARY, width, name="embedding"),
            layers.Dense(width + 2, activation="gelu", name="first"),
            layers.LayerNormalization(name="norm"),
            layers.Dense(width, activation="tanh", name="second"),
            layers.Dense(3, name="readout"),
        ],
        name="tiny",
    )
    rng = np.random.default_rng(seed)
    for v in model.weights:
        value = numpy(v)
        v.assign(value + 0.1 * rng.standard_normal(value.shape).astype(value.dtype))
    return model


def data(batches=STEPS + 1, seed=0):
    """Inputs and targets of so many batches."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, VOCABULARY, (batches * BATCH, LENGTH), "int32")
    return x, rng.standard_normal((batches * BATCH, LENGTH, 3)).astype("float32")


def numpy(x):
    return np.array(keras.ops.convert_to_numpy(x))


def synced(model):
    """The model, with the values that a JAX training loop holds."""
    if hasattr(model, "jax_state_sync") and getattr(model, "_jax_state", None):
        model.jax_state_sync()
    return model


def weights(model):
    return [numpy(v) for v in synced(model).trainable_variables]


def core(optimizer):
    return getattr(optimizer, "inner_optimizer", optimizer)


def slot(optimizer, name):
    """The list of a slot's variables, whatever its attribute is called."""
    return getattr(optimizer, name, None) or getattr(optimizer, "_" + name, None) or []


def slots(optimizer, names):
    """Values of slots by name; a variable without one has `None`."""
    return {
        name: [None if v is None else numpy(v) for v in slot(optimizer, name)]
        for name in names
    }


class Record(keras.callbacks.Callback):
    """Takes `what(model)` when so many batches of the run are over."""

    def __init__(self, what, *batches):
        super().__init__()
        self.what, self.batches, self.seen, self.taken = what, batches, 0, {}

    def on_train_batch_end(self, batch, logs=None):
        self.seen += 1
        if self.seen in self.batches:
            self.taken[self.seen] = self.what(synced(self.model))


def train(model, batches=STEPS + 1, callbacks=(), epochs=1, **data_options):
    x, y = data(batches, **data_options)
    model.fit(
        x,
        y,
        batch_size=BATCH,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=list(callbacks),
    )
    return model


def compiled(model, optimizer, **options):
    options = {"run_eagerly": True} | options
    model.compile(optimizer=optimizer, loss="mse", **options)
    return model


def grow_at(step=STEPS, **options):
    options = {"off_diagonal": "zeros", "seed": 1, "verbose": 0} | options
    return keras_fusion.DeepFusion(at_step=step, **options)


class Gradient(keras.optimizers.Optimizer):
    """Puts each variable's gradient in its place."""

    def __init__(self, learning_rate=0.0, **kwargs):
        super().__init__(learning_rate=learning_rate, **kwargs)

    def update_step(self, gradient, variable, learning_rate):
        self.assign(variable, keras.ops.convert_to_tensor(gradient))


def gradients(model, values, batch):
    """Gradients of a model with the given weights on one batch of `data()`."""
    twin = keras.models.clone_model(model)
    twin.set_weights(values)
    x, y = data()
    part = slice(batch * BATCH, (batch + 1) * BATCH)
    compiled(twin, Gradient()).train_on_batch(x[part], y[part])
    return weights(twin)


def tile(small, shape):
    """The small array in all blocks of the shape."""
    return np.tile(small, [n // m for n, m in zip(shape, small.shape, strict=True)])


def gradient_scale(small, fused):
    """1/K for what feeds grown outputs; 1 for readouts and what did not grow."""
    return small.shape[-1] / fused.shape[-1]


def ruled(optimizer, power, name, small, old, new):
    """A slot as the rule says.

    Args:
        optimizer: the optimizer, for its options.
        power: the case's power.
        name: the slot's name.
        small: the small model's slot.
        old: the small model's variable.
        new: the grown variable.
    """
    if power == "dual":
        return None  # follows from the others, see `dual`
    if power == "near weights":
        return new + tile(small - old, new.shape)
    scale = gradient_scale(old, new) ** power
    start = getattr(optimizer, "initial_accumulator_value", 0.0)
    axes = list(range(old.ndim))
    if name in ("r", "c") and old.ndim > 1:
        del axes[-1 if name == "r" else -2]
    elif name in ("r", "c"):
        return small  # a placeholder
    shape = [new.shape[i] for i in axes]
    return tile(small - start, shape) * scale + start


def dual(optimizer, accumulators, values):
    """Ftrl's `linears` that stand for the given weights."""
    rate = float(numpy(optimizer.learning_rate))
    power = accumulators**-optimizer.learning_rate_power / rate
    l2 = 2 * optimizer.l2_regularization_strength + optimizer.beta / rate
    return -(power + l2) * values - np.sign(
        values
    ) * optimizer.l1_regularization_strength
