"""`preview`: tells what a growth would do, and does nothing."""

import json

import keras
import numpy as np
import pytest
from models import KINDS, data_for, functional, loss, numpy, values

import keras_fusion
from keras_fusion import DeepFusion, DepthStacking, FusionError, Net2Net, preview

pytestmark = pytest.mark.core
OPERATORS = {
    "self-fusion": keras_fusion.FusionOperator(factor=2),
    "fraction": keras_fusion.FusionOperator(factor=1.5),
    "Net2Net": Net2Net(factor=1.5, exact=False),
    "depth": DepthStacking(),
    "chain": keras_fusion.Chain([keras_fusion.HyperCloning(), DepthStacking()]),
}
OPTIMIZERS = ["adam", "sgd", "adafactor", "lion", "ftrl", "nadam"]


def size(variables):
    return sum(numpy(v).nbytes for v in variables)


def trained(kind="functional", optimizer="adam"):
    model, (x, y) = KINDS[kind](), data_for(kind)
    model.compile(optimizer, loss())
    model.fit(x, y, batch_size=16, verbose=0)
    return model


@pytest.mark.core("fraction", "chain")
@pytest.mark.parametrize("name", OPERATORS)
def test_predictions_equal_the_grown_model(name):
    model = trained()
    before = [*values(model), *map(numpy, model.optimizer.variables)]
    seen = preview(model, OPERATORS[name], verbose=0)
    now = [*values(model), *map(numpy, model.optimizer.variables)]
    assert all(map(np.array_equal, before, now))
    own = size([*model.weights, *model.optimizer.variables])
    event = keras_fusion.grow(model, OPERATORS[name], verbose=0)
    assert seen.params == (event.params_before, event.params_after)
    grown = size([*model.weights, *model.optimizer.variables])
    assert seen.bytes == pytest.approx((own, grown), rel=0.02)
    before, during, after = seen.device_bytes
    assert (before, after) == seen.bytes
    # A chain's first growth is there as well.
    assert during > before + after if name == "chain" else during == before + after
    assert sum(layer.params_after for layer in seen.layers) == event.params_after
    assert sum(layer.params_before for layer in seen.layers) == event.params_before
    shapes = sorted(tuple(v.shape) for v in model.weights)
    assert shapes == sorted(s for x in seen.layers for s in x.after.values())
    assert seen.exact == (name in ("self-fusion", "fraction"))


@pytest.mark.parametrize("state", ["trained", "not trained"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_bytes_of_any_optimizer(optimizer, state):
    model = functional()
    model.compile(optimizer, loss())
    if state == "trained":
        model.optimizer.build(model.trainable_variables)
    seen = preview(model, 2, verbose=0)
    assert model.optimizer.built == (state == "trained")
    keras_fusion.grow(model, 2, verbose=0)
    if state != "trained":
        model.optimizer.build(model.trainable_variables)
    own = size([*model.weights, *model.optimizer.variables])
    assert seen.bytes[1] == pytest.approx(own, rel=0.02)


def test_a_model_without_optimizer():
    model = functional()
    seen = preview(model, 2, verbose=0)
    keras_fusion.grow(model, 2, verbose=0)
    assert seen.bytes[1] == size(model.weights)


@pytest.mark.skipif(keras.config.backend() == "torch", reason="counts no FLOPs")
@pytest.mark.parametrize("kind", ["functional", "sequential", "subclassed"])
def test_flops_are_those_of_a_step(kind):
    model, (x, y) = trained(kind), data_for(kind, 2)
    seen = preview(model, 2, probe=x, verbose=0)
    count = keras_fusion.flops.training_step_flops
    before = count(model, (x, y))
    keras_fusion.grow(model, 2, verbose=0)
    assert seen.flops == (before, count(model, (x, y)))
    assert "on inputs of shape (2, 6)" in str(seen)


@pytest.mark.skipif(keras.config.backend() != "torch", reason="counts FLOPs")
def test_what_is_not_counted_is_told():
    seen = preview(functional(), 2, verbose=0)
    assert seen.flops is None and "FLOPs are not counted: FLOPs are" in str(seen)


def test_the_table(capsys):
    model = functional()
    seen = preview(model)
    printed = capsys.readouterr().out
    assert printed == f"{seen}\n"
    assert "self-fusion x2 of 'functional'" in printed
    assert "logits (Dense)" in printed and "180 -> 340" in printed
    assert "(x2)" in printed, "layers that are alike share a line"
    assert "956 -> 2,916 (x3.05)" in printed
    assert max(map(len, printed.splitlines())) < 120
    assert repr(seen) == str(seen)


def test_it_is_plain_data_too():
    seen = preview(functional(), 2, verbose=0)
    data = json.loads(json.dumps(seen.to_dict()))
    assert data["params"] == list(seen.params) and data["refused"] is None
    assert data["layers"][0]["after"] == {"embeddings": [20, 16]}


# The callback's.


def test_a_callback_previews_its_growth(capsys):
    model, other = functional(), functional(seed=1)
    grow = DeepFusion(
        at_step=1, partners=[other], norms="joint", optimizer_state="reset"
    )
    seen = grow.preview(model)
    assert capsys.readouterr().out == f"{seen}\n"
    assert not seen.exact and "Norms of distinct parents are joined: 3" in str(seen)
    notes = {x.kind: x.note for x in seen.layers}
    assert notes["LayerNormalization"].startswith("approximate: one statistic")
    assert not notes["Dense"].startswith("approximate")
    DeepFusion(at_step=1, verbose=0).preview(model)
    assert capsys.readouterr().out == "" and grow.events == []


def test_block_norms_are_exact():
    parents = functional(), functional(seed=1)
    grow = DeepFusion(at_step=1, partners=[parents[1]], norms="block", verbose=0)
    seen = grow.preview(parents[0])
    assert seen.exact and {x.note for x in seen.layers} == {"exact"}


# What is refused.


class Scale(keras.layers.Layer):
    def build(self, input_shape):
        self.scale = self.add_weight(shape=input_shape[-1:], name="scale")

    def call(self, x):
        return x * self.scale


def test_a_refusal_is_told_with_its_reason(capsys):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), Scale()])
    seen = preview(model)
    assert "Register it" in seen.refused
    assert seen.params == (model.count_params(), None) and not seen.exact
    assert f"Refused: {seen.refused}" in capsys.readouterr().out
    with pytest.raises(FusionError) as refused:
        keras_fusion.grow(model)
    assert str(refused.value) == seen.refused


def test_an_optimizer_is_refused_by_name():
    class Mine(keras.optimizers.SGD):
        def build(self, variables):
            super().build(variables)
            self.mine = [self.add_variable_from_reference(v, "m") for v in variables]

    model = functional()
    model.compile(Mine(), loss())
    model.optimizer.build(model.trainable_variables)
    assert "['mine']" in preview(model, 2, verbose=0).refused
    seen = preview(model, 2, optimizer_state="reset", verbose=0)
    assert seen.refused is None
    keras_fusion.grow(model, 2, optimizer_state="reset", verbose=0)
    assert seen.bytes[1] == size([*model.weights, *model.optimizer.variables])


def test_arguments_are_refused_at_once():
    with pytest.raises(FusionError, match="`model` must be a keras.Model"):
        preview(3)
    with pytest.raises(FusionError, match="`factor` must be a number above 1"):
        preview(functional(), 0.5)
    with pytest.raises(FusionError, match="`operator_or_factor` must be"):
        preview(functional(), "two")


def test_distinct_parents_are_on_the_devices_during_the_growth():
    model, partner = trained(), trained()
    operator = keras_fusion.FusionOperator([partner])
    seen = preview(model, operator, optimizer_state="reset", verbose=0)
    before, during, after = seen.device_bytes
    assert during == 2 * before + after
    assert f"{before:,} -> {during:,} during the growth -> {after:,}" in str(seen)
