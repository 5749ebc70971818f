"""Contract tests for your own registered layers, models and operators.

keras_fusion.register(MyBlock, widths=("units",), output_width="units")
keras_fusion.testing.run_rule_test(MyBlock(8), input_shape=(2, 5, 4))
keras_fusion.testing.run_growth_test(my_model, x, y, loss="mse")
"""

import os
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from keras_fusion.models import host, probe, rules, tree
from keras_fusion.operators.base import GrowthOperator
from keras_fusion.operators.fusion_plan import plan_fusion
from keras_fusion.operators.plan import Plan
from keras_fusion.training.deep_fusion import DeepFusion
from keras_fusion.training.grow_model import GrowModel
from keras_fusion.training.schedules import AtStep
from keras_fusion.values.fuse import fuse_slot

__all__ = ["run_growth_test", "run_rule_test"]


def run_rule_test(
    layer: keras.Layer,
    input_shape: tuple[int, ...],
    *,
    input_dtype: str = "float32",
    call: Callable[[Any, Any], Any] | None = None,
    factor: int = 2,
    tolerance: float = 1e-5,
) -> keras.Model:
    """Tests that a layer's rule is right: fusion keeps its promises for the layer.

    The layer is put into a small model, between a Dense layer (or ids, if
    `input_dtype` is an integer type) and a Dense readout. Then

    - all its widths grow by `factor`;
    - a self-fusion keeps the outputs, with zero and with paired off-diagonals;
    - one step of SGD in the fused model changes each block as the roles say: hidden
      blocks get 1/K of the gradient, off-diagonal ones too;
    - the fused model is rebuilt from its config with equal shapes.

    Args:
        layer: the layer, not called yet.
        input_shape: shape of a batch of inputs, including the batch size.
        input_dtype: string. Dtype of the inputs. Defaults to `"float32"`.
        call: function `(layer, x) -> y` for a layer that is not called as `layer(x)`.
        factor: int. Number of copies in the self-fusion. Defaults to 2.
        tolerance: float. Largest relative change of the outputs. Defaults to 1e-5.

    Returns:
        The fused model.

    Raises:
        AssertionError: naming the property that does not hold.
        FusionError: if the layer cannot be fused.

    Example:

    >>> import keras
    >>> from keras_fusion.testing import run_rule_test
    >>> fused = run_rule_test(keras.layers.Dense(8), input_shape=(2, 4))
    >>> fused.layers[2].units
    16
    """
    model = _embed(layer, input_shape, input_dtype, call or (lambda f, x: f(x)))
    _perturb(model)
    inputs = probe.batch(model, size=input_shape[0], seed=1)
    before = probe.outputs(model, inputs)
    for off_diagonal in ("paired", "zeros"):
        plan = plan_fusion(model, factor=factor, off_diagonal=off_diagonal, seed=1)
        plan.fill()
        change = probe.change(before, probe.outputs(plan.fused, inputs))
        assert change <= tolerance, (
            f"A self-fusion of {type(layer).__name__} with {off_diagonal} off-diagonals "
            f"changes the outputs by {change:.1e}, more than {tolerance:.0e}."
        )
    _check_widths(layer, _counterpart(plan, layer), factor)
    _check_gradients(plan, inputs)
    twin = type(plan.fused).from_config(plan.fused.get_config())
    assert [v.shape for v in twin.weights] == [v.shape for v in plan.fused.weights]
    return plan.fused


def _embed(
    layer: keras.Layer,
    input_shape: tuple[int, ...],
    input_dtype: str,
    call: Callable[[Any, Any], Any],
) -> keras.Model:
    inputs = keras.Input(batch_shape=(None, *input_shape[1:]), dtype=input_dtype)
    x = inputs
    if keras.backend.is_float_dtype(input_dtype):
        x = keras.layers.Dense(input_shape[-1], name="before")(x)
    x = call(layer, x)
    return keras.Model(inputs, keras.layers.Dense(3, name="after")(x))


def _perturb(model: keras.Model) -> None:
    """Moves weights off initial zeros and ones (biases, gammas), so that errors show."""
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        value = host.to_numpy(variable)
        noise = rng.standard_normal(value.shape) * 0.2
        variable.assign(value + noise.astype(value.dtype))


def _counterpart(plan: Plan, layer: keras.Layer) -> keras.Layer:
    pairs = tree.lockstep([plan.parents[0], plan.fused])
    return next(new for _, (old, new) in pairs if old is layer)


def _check_widths(layer: keras.Layer, fused: keras.Layer, factor: int) -> None:
    rule = rules.find(layer)
    if rule is None or rule.grow is not None:
        return
    old, new = layer.get_config(), fused.get_config()
    for key in rule.widths:
        if isinstance(old[key], int):
            assert new[key] == factor * old[key], (
                f"The width {key!r} of {type(layer).__name__} grew from {old[key]} to "
                f"{new[key]}, not by a factor of {factor}."
            )


def _check_gradients(plan: Plan, inputs: Any) -> None:
    """Checks that one step of SGD moves every block according to `gradient_scale`."""
    targets = np.random.default_rng(2).standard_normal(
        probe.outputs(plan.fused, inputs)[0].shape
    )
    moves = [_sgd_step(m, inputs, targets) for m in (plan.parents[0], plan.fused)]
    # Some gradients are zero up to rounding (a bias before a softmax or a norm).
    floor = 1e-3 * max(np.max(np.abs(move)) for move in moves[0].values())
    for item in plan.layouts:
        if id(item.sources[0]) not in moves[0]:
            continue
        small = moves[0][id(item.sources[0])]
        expected = fuse_slot(
            [small] * len(plan.parents),
            item.axes,
            factor=item.gradient_scale,
            copies=True,
        )
        actual = moves[1][id(item.target)]
        error = np.max(np.abs(actual - expected)) / max(np.max(np.abs(small)), floor)
        assert error < 1e-2, (
            f"The gradient of {item.address!r} in the fused model does not match its roles "
            f"{[axis.role for axis in item.axes]}: off by {error:.1e} of the parent's."
        )


def _sgd_step(
    model: keras.Model, inputs: Any, targets: np.ndarray
) -> dict[int, np.ndarray]:
    """Changes of the weights in one step of SGD, by variable; the model is restored."""
    before = [host.to_numpy(v).copy() for v in model.trainable_variables]
    state = model.get_weights()
    model.compile(optimizer=keras.optimizers.SGD(1.0), loss="mse", run_eagerly=True)
    model.train_on_batch(inputs, targets)
    moves = {
        id(v): host.to_numpy(v) - old
        for v, old in zip(model.trainable_variables, before, strict=True)
    }
    model.set_weights(state)
    return moves


def run_growth_test(
    model: keras.Model,
    x: Any,
    y: Any,
    *,
    loss: Any,
    optimizer: keras.optimizers.Optimizer | str = "adam",
    batch_size: int = 8,
    at_step: int = 3,
    steps_after: int = 50,
    tolerance: float = 1e-5,
    **options: Any,
) -> DeepFusion:
    """Tests that a model grows inside `fit()`, and that the rest keeps working.

    The model is trained, fused with itself at `at_step` within an epoch, and trained on.
    Then its outputs must not have changed at the growth; the copies must have diverged;
    the live object must be the grown model, with the names it had; and, saved and
    reloaded, it must make the same predictions.

    Args:
        model: a model, compiled or not.
        x: arrays in the structure of the model's inputs.
        y: targets.
        loss: loss, as for `compile`.
        optimizer: optimizer, as for `compile`. Defaults to `"adam"`.
        batch_size: int. Defaults to 8.
        at_step: int. Defaults to 3.
        steps_after: int. Steps to train after the growth. Defaults to 50.
        tolerance: float. Largest relative change of the outputs. Defaults to 1e-5.
        **options: further arguments of `DeepFusion`.

    Returns:
        The callback, with its `events` and its `model`.

    Raises:
        AssertionError: naming the property that does not hold.

    Example:

    >>> import keras, numpy as np
    >>> from keras_fusion.testing import run_growth_test
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu")])
    >>> model.add(keras.layers.Dense(1))
    >>> x = np.random.default_rng(0).standard_normal((64, 4)).astype("float32")
    >>> grow = run_growth_test(model, x, x[:, :1], loss="mse", steps_after=20)
    >>> grow.model.layers[0].units
    16
    """
    model.compile(optimizer=optimizer, loss=loss)
    count = len(keras.tree.flatten(x)[0])
    steps = at_step + steps_after
    epochs = -(-steps * batch_size // count)
    probe_batch = keras.tree.map_structure(lambda a: a[:batch_size], x)
    grow = DeepFusion(at_step=at_step, seed=1, probe=probe_batch, verbose=0, **options)
    shapes = {}
    record = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: shapes.setdefault(
            "before", [(v.path, tuple(v.shape)) for v in model.weights]
        )
    )
    _fit(model, x, y, batch_size=batch_size, epochs=epochs, callbacks=[record, grow])
    (event,) = grow.events
    assert event.step == at_step, f"The growth came at {event.step}, not at {at_step}."
    assert event.params_after == model.count_params() > event.params_before
    if grow.operator.off_diagonal != "random":
        assert event.function_change <= tolerance, f"{event}"
    names = [path for path, _ in shapes["before"]]
    assert [v.path for v in model.weights] == names, "Names of variables have changed."
    if grow.operator.off_diagonal in (None, "paired"):
        _check_diverged(model, [shape for _, shape in shapes["before"]])
    _check_reload(model, probe_batch)
    return grow


def run_operator_test(
    operator: GrowthOperator,
    model: keras.Model,
    x: Any,
    y: Any,
    *,
    loss: Any,
    optimizer: keras.optimizers.Optimizer | str = "adam",
    batch_size: int = 8,
    at_step: int = 3,
    steps_after: int = 5,
    tolerance: float = 1e-5,
) -> GrowModel:
    """Tests that an operator grows a model inside `fit()`, as its plan promises.

    The operator must be restored from its config. The model is trained and grown at
    `at_step`: its outputs must not have changed if the plan is exact; the optimizer must
    continue its step count; the training must continue with finite losses; and, saved and
    reloaded, the model must make the same predictions.

    Args:
        operator: the operator.
        model: a model, compiled or not.
        x: arrays in the structure of the model's inputs.
        y: targets.
        loss: loss, as for `compile`.
        optimizer: optimizer, as for `compile`. Defaults to `"adam"`.
        batch_size: int. Defaults to 8.
        at_step: int. Defaults to 3.
        steps_after: int. Steps to train after the growth. Defaults to 5.
        tolerance: float. Largest relative change of the outputs. Defaults to 1e-5.

    Returns:
        The callback, with its `events` and its `model`.

    Raises:
        AssertionError: naming the property that does not hold.
    """
    config = keras.saving.serialize_keras_object(operator)
    operator = keras.saving.deserialize_keras_object(config)
    again = keras.saving.serialize_keras_object(operator)
    assert again == config, f"The config of {operator} changes: {config}, {again}."
    model.compile(optimizer=optimizer, loss=loss)
    exact = operator.plan(model, 0).exact
    steps = at_step + steps_after
    inputs, targets = (
        keras.tree.map_structure(lambda a: _rows(a, steps * batch_size), part)
        for part in (x, y)
    )
    probe_batch = keras.tree.map_structure(lambda a: a[:batch_size], x)
    grow = GrowModel(operator, AtStep(at_step), probe=probe_batch, verbose=0)
    history = _fit(model, inputs, targets, batch_size=batch_size, callbacks=[grow])
    (event,) = grow.events
    assert event.params_after == model.count_params() > event.params_before
    assert not exact or event.function_change <= tolerance, f"{event}"
    done = int(host.to_numpy(model.optimizer.iterations))
    assert done == steps, f"The optimizer counts {done} steps of {steps}."
    losses = history.history["loss"]
    assert np.isfinite(losses).all(), f"The loss is {losses}."
    _check_reload(model, probe_batch)
    return grow


def _fit(model: keras.Model, x: Any, y: Any, **options: Any) -> Any:
    """Trains a model without output."""
    return model.fit(x, y, **{"verbose": 0, **options})


def _rows(array: np.ndarray, count: int) -> np.ndarray:
    """The first rows of an array, which is repeated if it has fewer."""
    return np.resize(array, (count, *array.shape[1:]))


def _check_diverged(model: keras.Model, shapes: Sequence[tuple[int, ...]]) -> None:
    differs = False
    for variable, shape in zip(model.weights, shapes, strict=True):
        value = host.to_numpy(variable)
        for axis, size in enumerate(shape):
            if value.shape[axis] == 2 * size:
                first, second = np.split(value, 2, axis)
                differs = differs or np.max(np.abs(first - second)) > 1e-4
    assert differs, "The copies of a paired self-fusion have not diverged."


def _check_reload(model: keras.Model, inputs: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.keras")
        model.save(path)
        again: Any = keras.saving.load_model(path)
    change = probe.change(probe.outputs(model, inputs), probe.outputs(again, inputs))
    assert change <= 1e-6, f"The reloaded model's outputs differ by {change:.1e}."
