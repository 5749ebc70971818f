"""`preview` predicts the growth of every family of keras-hub in the coverage table."""

import keras
import numpy as np
import pytest

import keras_fusion
from experiments import families
from keras_fusion.flops import training_step_flops
from keras_fusion.models import samples


def size(model):
    """Parameters and bytes with the optimizer's state, counted on a model itself."""
    model.optimizer.build(model.trainable_variables)
    held = [*model.weights, *model.optimizer.variables]
    return model.count_params(), sum(4 * v.value.numpy().size for v in held)


def step_flops(model, inputs):
    """The FLOPs of a step with its loss, counted on a model itself."""
    outputs = model(keras.tree.map_structure(keras.ops.convert_to_tensor, inputs))
    targets = keras.tree.map_structure(lambda y: np.zeros(y.shape, "float32"), outputs)
    return training_step_flops(model, (inputs, targets))


@pytest.mark.slow
@pytest.mark.parametrize("family", families.ALL)
def test_predictions_equal_the_grown_model(family):
    model = families.model(family, "backbone")
    model.compile(keras.optimizers.Adam(1e-3), "mse")
    inputs = samples.accepted(model)
    weights = [v.value.numpy() for v in model.weights]
    seen = keras_fusion.preview(model, 2, probe=inputs, verbose=0)
    for variable, value in zip(model.weights, weights, strict=True):
        np.testing.assert_array_equal(variable.value.numpy(), value)
    assert not model.optimizer.built
    assert seen.refused is None
    before = size(model)
    # SigLIP's loss calls the model once more, which a preview does not know.
    if family != "SigLIP":
        assert seen.flops[0] == step_flops(model, inputs)
    keras_fusion.grow(model, 2, probe=inputs, verbose=0)
    after = size(model)
    assert seen.exact
    assert seen.params == (before[0], after[0])
    # But for the step counts of the optimizer, which are integers of 8 bytes.
    assert seen.bytes == pytest.approx((before[1], after[1]), rel=0.02)
    if family == "SigLIP":
        # Its loss calls the model once more, which a preview does not know.
        counted = keras_fusion.preview(model, 2, probe=inputs, verbose=0).flops[0]
    else:
        counted = step_flops(model, inputs)
    assert seen.flops[1] == counted > seen.flops[0]
    # But for the blends of constants that are the parents' (ALiBi's slopes).
    blends = sum(v.name == "blend" for v in model.weights)
    assert sum(layer.params_after for layer in seen.layers) == after[0] - blends
