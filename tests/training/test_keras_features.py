"""Nothing breaks around a growth in the same run."""

import warnings
import weakref

import keras
import numpy as np
import pytest
from keras import layers
from models import (
    data_for,
    functional,
    gpt2,
    loss,
    numpy,
    outputs,
    perturbed,
    relative_change,
    sequential,
    values,
)

from keras_fusion import DeepFusion, FusionOperator, grow

BACKEND = keras.config.backend()
core = pytest.mark.core


def regression(seed=0):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((4,))
    x = layers.Dense(8, activation="gelu")(inputs)
    x = x + layers.Dense(8)(layers.LayerNormalization()(x))
    return perturbed(keras.Model(inputs, layers.Dense(1)(x)), seed)


def points(count=32):
    x = np.random.default_rng(0).standard_normal((count, 4)).astype("float32")
    return x, (x[:, :1] > 0).astype("float32")


def fit(model, *callbacks, at_step=3, compile=None, **options):
    compile = {"optimizer": "adam", "loss": "mse"} | (compile or {})
    model.compile(**compile)
    grow = DeepFusion(at_step=at_step, seed=0, verbose=0)
    x, y = points()
    options = {"batch_size": 8, "epochs": 2, "verbose": 0, "shuffle": False} | options
    history = model.fit(x, y, callbacks=[grow, *callbacks], **options)
    assert len(grow.events) == 1 and model.layers[1].units == 16
    return history, grow.events[0]


@core
def test_metrics_validation_and_weights():
    history, event = fit(
        regression(),
        compile={"metrics": ["mae"], "weighted_metrics": ["mse"]},
        validation_data=points(8),
        class_weight={0: 1.0, 1: 2.0},
    )
    assert set(history.history) == {
        f"{prefix}{name}" for prefix in ("", "val_") for name in ("loss", "mae", "mse")
    }
    assert event.function_change < 1e-5
    assert np.isfinite(history.history["loss"]).all()


@core
@pytest.mark.parametrize("option", ["jit_compile", "run_eagerly"])
def test_ways_to_run_a_step(option):
    model = regression()
    fit(model, compile={option: True})
    assert getattr(model, option)


@pytest.mark.skipif(
    BACKEND == "torch", reason="Keras has it on TensorFlow and JAX only"
)
@core
def test_steps_per_execution():
    _, event = fit(regression(), at_step=3, compile={"steps_per_execution": 2})
    assert event.step == 4  # the end of the execution that holds step 3


@core
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(policy):
    keras.mixed_precision.set_global_policy(policy)
    model = regression()
    _, event = fit(model)
    # Measured in float32, in which the weights are.
    assert event.function_change < 1e-5 and event.rounding is None
    assert model.layers[1].dtype_policy.name == policy
    assert model.layers[1].compute_dtype == policy.removeprefix("mixed_")
    if policy == "mixed_float16":
        optimizer = model.optimizer
        assert isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        assert numpy(optimizer.dynamic_scale) > 1


@core
def test_accumulation_and_averages():
    for options in (
        {"gradient_accumulation_steps": 2},
        {"use_ema": True, "ema_overwrite_frequency": 3},
    ):
        optimizer = keras.optimizers.Adam(0.01, **options)
        _, event = fit(regression(), at_step=2, compile={"optimizer": optimizer})
        assert event.step == 2 and event.function_change < 1e-5
        updates = 4 if "gradient_accumulation_steps" in options else 8
        assert int(numpy(optimizer.iterations)) == updates


@core
def test_several_losses_by_name():
    inputs = keras.Input((4,), name="in")
    x = layers.Dense(8, activation="relu")(inputs)
    heads = {"a": layers.Dense(1, name="a")(x), "b": layers.Dense(2, name="b")(x)}
    model = keras.Model(inputs, heads)
    x, y = points()
    model.compile(
        "sgd",
        {"a": "mse", "b": "mae"},
        loss_weights={"a": 1.0, "b": 0.5},
        metrics={"b": ["mse"]},
    )
    targets = {"a": y, "b": np.concatenate([y, y], axis=1)}
    history = model.fit(
        x,
        targets,
        batch_size=8,
        verbose=0,
        callbacks=[DeepFusion(at_step=2, verbose=0)],
    )
    assert {"loss", "a_loss", "b_loss", "b_mse"} <= set(history.history)


@core
def test_frozen_layers_regularizers_and_constraints():
    inputs = keras.Input((4,))
    frozen = layers.Dense(8, trainable=False)
    regular = layers.Dense(
        8,
        kernel_regularizer=keras.regularizers.L2(0.01),
        kernel_constraint=keras.constraints.MaxNorm(0.5),
    )
    x = regular(frozen(inputs))
    model = keras.Model(inputs, layers.Dense(1)(x))
    before = numpy(frozen.kernel)
    with pytest.warns(UserWarning, match="penalize its weights by") as said:
        fit(model)
    assert len([w for w in said if "penalize" in str(w.message)]) == 1
    after = numpy(model.layers[1].kernel)
    np.testing.assert_array_equal(after, np.concatenate([before, before], axis=1))
    norms = np.linalg.norm(numpy(model.layers[2].kernel), axis=0)
    assert (norms <= 0.5 + 1e-5).all() and len(model.losses) == 1


@core
@pytest.mark.parametrize(
    ("regularizer", "kernels", "ratio"),
    [("l2", 1, 2.0), ("l2", 2, 0.5), ("l1", 1, 2.0), ("l1", 2, 1.0)],
)
def test_what_a_growth_does_to_penalties_is_told(regularizer, kernels, ratio):
    """Copies of a hidden kernel are penalized once each, halves of a readout less."""
    options = [{}, {}]
    options[kernels - 1] = {"kernel_regularizer": regularizer}
    hidden, readout = layers.Dense(8, **options[0]), layers.Dense(1, **options[1])
    model = keras.Sequential([keras.Input((4,)), hidden, readout])
    before = float(numpy(sum(model.losses)))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        grow(model, FusionOperator(off_diagonal="zeros"), verbose=0)
    after = float(numpy(sum(model.losses)))
    assert after / before == pytest.approx(ratio, rel=1e-5)
    told = [str(w.message) for w in said if "penalize" in str(w.message)]
    assert bool(told) == (ratio != 1)
    if told:
        assert f"by {before:.3g} before the growth and by {after:.3g} after" in told[0]


@keras.saving.register_keras_serializable("tests")
class Counting(keras.Model):
    """A model with a train step, metrics and a counter of its own."""

    def __init__(self, units=8, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.share = 1.0 / units
        self.seen = 0
        self.distance = keras.metrics.Mean(name="distance")
        self.hidden = layers.Dense(units)
        self.readout = layers.Dense(1)

    def call(self, x):
        return self.readout(self.hidden(x))

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        value = keras.ops.mean(keras.ops.square(y - y_pred))
        self.distance.update_state(value)
        return value

    def get_config(self):
        return super().get_config() | {"units": self.units}


@core
def test_a_class_keeps_its_own_state():
    from keras_fusion import register

    register(Counting, widths=("units",))
    model = Counting()
    x, y = points()
    model.compile("adam")
    metric = model.distance
    model.seen = 42
    model.fit(
        x, y, batch_size=8, verbose=0, callbacks=[DeepFusion(at_step=2, verbose=0)]
    )
    assert (model.units, model.share) == (16, 1 / 16)  # belongs to the network
    assert model.seen == 42 and model.distance is metric  # belongs to the run
    assert sum(m is metric for m in model.metrics) == 1
    assert model.evaluate(x, y, verbose=0, return_dict=True)["distance"] > 0


# Other callbacks in the same run.


@core
def test_early_stopping_restores_weights_from_before_the_growth():
    model, x = regression(), points()[0]
    best = {}

    class Spoil(keras.callbacks.Callback):
        """Makes the first epoch the best: afterwards the weights are ruined."""

        def on_epoch_end(self, epoch, logs=None):
            if epoch == 0:
                best["outputs"] = outputs(self.model, x)
            logs["loss"] = float(epoch)

    spoil = Spoil()
    stop = keras.callbacks.EarlyStopping(
        monitor="loss", patience=5, restore_best_weights=True
    )
    history, event = fit(model, spoil, stop, at_step=6, epochs=3)
    assert event.step == 6 and model.layers[1].units == 16
    assert relative_change(best["outputs"], outputs(model, x)) < 1e-5
    model.set_weights(model.get_weights())


@core
def test_callbacks_that_watch_and_steer(tmp_path):
    callbacks = keras.callbacks
    model = regression()
    log = tmp_path / "log.csv"
    history, _ = fit(
        model,
        callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras"),
        callbacks.ModelCheckpoint(tmp_path / "w.weights.h5", save_weights_only=True),
        callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.5),
        callbacks.ReduceLROnPlateau(
            monitor="loss", patience=1, min_delta=100, factor=0.1
        ),
        callbacks.CSVLogger(log),
        callbacks.TerminateOnNaN(),
        epochs=3,
        validation_data=points(8),
    )
    assert log.read_text().count("\n") == 4
    assert float(numpy(model.optimizer.learning_rate)) == pytest.approx(1.25e-6)
    x = points()[0]
    again = keras.saving.load_model(tmp_path / "3.keras")
    np.testing.assert_allclose(outputs(model, x), outputs(again, x), atol=1e-6)
    again.load_weights(tmp_path / "w.weights.h5")
    np.testing.assert_allclose(outputs(model, x), outputs(again, x), atol=1e-6)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorBoard logs with TensorFlow")
def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    fit(
        regression(),
        keras.callbacks.TensorBoard(tmp_path, histogram_freq=1, update_freq=1),
        validation_data=points(8),
    )
    assert list(tmp_path.rglob("events*"))


# What users do with a grown model.


@core
def test_a_grown_model_is_an_ordinary_one(capsys):
    model = sequential()
    x, y = data_for("sequential")
    model.compile("adam", loss(), metrics=["accuracy"])
    model.fit(
        x, y, batch_size=8, verbose=0, callbacks=[DeepFusion(at_step=2, verbose=0)]
    )
    model.summary()
    assert "(None, 6, 16)" in capsys.readouterr().out
    assert set(model.evaluate(x, y, verbose=0, return_dict=True)) == {
        "loss",
        "accuracy",
    }
    assert model.predict(x, verbose=0).shape == (32, 6, 20)
    assert model.count_params() == sum(int(np.prod(v.shape)) for v in model.weights)
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    np.testing.assert_allclose(outputs(model, x), outputs(clone, x), atol=1e-5)
    model.compile("sgd", loss())
    model.fit(x, y, verbose=0)


@core
def test_plot_model(tmp_path):
    model = functional()
    fit_it = DeepFusion(at_step=1, verbose=0)
    model.compile("sgd", loss())
    model.fit(*data_for("functional", 8), verbose=0, callbacks=[fit_it])
    dot = keras.utils.model_to_dot(model, show_shapes=True)
    assert dot is None or "16" in dot.to_string()


def test_generation_after_a_growth():
    model = gpt2()
    model.compile("adam", loss(), sampler="greedy")
    x, y = data_for("gpt2", 8)
    prompt = {k: v[:2] for k, v in x.items()}
    prompt["padding_mask"] = np.array([[1, 1, 0, 0, 0, 0]] * 2, "int32")
    model.generate(prompt, stop_token_ids=None)
    grow = DeepFusion(at_step=1, verbose=0)
    model.fit(x, y, verbose=0, batch_size=8, callbacks=[grow])
    ids = numpy(model.generate(prompt, stop_token_ids=None)["token_ids"])
    # The first token by hand, from the grown model's own logits.
    logits = outputs(model, prompt)
    np.testing.assert_array_equal(ids[:, 2], np.argmax(logits[:, 1], axis=-1))


@core
def test_the_small_model_is_let_go():
    model = functional()
    old = weakref.ref(model.layers[1])
    model.compile("sgd", loss())
    grow = DeepFusion(at_step=1, verbose=0)
    model.fit(*data_for("functional", 8), verbose=0, callbacks=[grow])
    import gc

    gc.collect()
    assert old() is None


def test_checkpoints_of_tensorflow(tmp_path):
    if BACKEND != "tensorflow":
        pytest.skip("TensorFlow's own checkpoints")
    import tensorflow as tf

    model = regression()
    fit(model)
    path = tf.train.Checkpoint(model=model).save(tmp_path / "c")
    before = values(model)
    model.set_weights([w * 0 for w in model.get_weights()])
    tf.train.Checkpoint(model=model).restore(path)
    for a, b in zip(before, values(model), strict=True):
        np.testing.assert_array_equal(a, b)
