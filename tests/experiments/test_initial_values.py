"""The initial values that a study names, and new blocks that are drawn anew."""

import types

import keras
import numpy as np
import pytest

pytest.importorskip("keras_hub")

from experiments.harness import initialization  # noqa: E402
from experiments.harness.study import Model, Size  # noqa: E402
from experiments.harness.tasks import Decoder  # noqa: E402


def decoder(**options):
    settings = Model("decoder", {"name": "Adam"}, initialization=options)
    vocabulary = types.SimpleNamespace(size=600)
    return Decoder(settings, types.SimpleNamespace(vocabulary=vocabulary))


def by_name(model):
    return {v.path: keras.ops.convert_to_numpy(v) for v in model.weights}


def test_initial_values_are_those_that_the_study_names():
    values = by_name(decoder().fresh(Size(64, 2), 0))
    options = {"kernels": "fan_in", "residual": "by_depth", "embeddings": 0.3}
    drawn = by_name(decoder(**options).fresh(Size(64, 2), 0))
    block = "transformer_layer_1/"
    for name, expected in {
        "token_embedding/embeddings": 0.3,
        "token_embedding/reverse_embeddings": 1 / 8,
        f"{block}self_attention/query/kernel": 1 / 8,
        f"{block}self_attention/attention_output/kernel": 1 / 8 / 2,
        f"{block}feedforward_gate_dense/kernel": 1 / 8,
        f"{block}feedforward_output_dense/kernel": 1 / np.sqrt(170) / 2,
    }.items():
        assert np.std(drawn[name]) == pytest.approx(expected, rel=0.05)
        assert np.std(values[name]) < 0.03
    norm = f"{block}feedforward_layernorm/scale"
    np.testing.assert_array_equal(drawn[norm], values[norm])
    with pytest.raises(ValueError, match="'kernels': 'fanin'"):
        decoder(kernels="fanin").fresh(Size(32, 1), 0)


def test_only_new_blocks_are_renewed():
    task = decoder()
    model, fresh = task.compiled(Size(32, 3), 0, 1e-3), task.fresh(Size(32, 3), 1)
    model.optimizer.build(model.trainable_variables)
    for slot in model.optimizer.variables[2:]:
        slot.assign(keras.ops.ones(slot.shape, slot.dtype))
    before, new = by_name(model), by_name(fresh)
    initialization.renew_blocks(model, model.optimizer, fresh, old_layers=1)
    for name, value in by_name(model).items():
        renewed = "transformer_layer_1/" in name or "transformer_layer_2/" in name
        np.testing.assert_array_equal(value, (new if renewed else before)[name])
    for slot in model.optimizer.variables[2:]:
        renewed = "layer_1_" in slot.path or "layer_2_" in slot.path
        expected = 0.0 if renewed and slot.path.endswith("momentum") else 1.0
        assert np.all(keras.ops.convert_to_numpy(slot) == expected), slot.path
    with pytest.raises(ValueError, match="behind the first 3"):
        initialization.renew_blocks(model, model.optimizer, fresh, old_layers=3)
