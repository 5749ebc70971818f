"""The growth operators of the literature: one contract for all of them."""

import itertools

import keras
import numpy as np
import pytest
from models import (
    KINDS,
    data_for,
    functional,
    gradients,
    loss,
    norm_free,
    numpy,
    outputs,
    perturbed,
    relative_change,
    values,
)
from plans import is_exact
from repository import ROOT

import keras_fusion
from keras_fusion import (
    AtStep,
    Chain,
    DepthStacking,
    FusionError,
    FusionOperator,
    GrowModel,
    HyperCloning,
    Lemon,
    Net2Net,
    NewFeatures,
    StagedTraining,
    ZeroPadding,
)
from keras_fusion.testing import run_operator_test
from keras_fusion.values import slot_values, slots

# At least one of each known operator.
OPERATORS = {
    "fusion": FusionOperator(seed=0),
    "hypercloning": HyperCloning(),
    "hypercloning_x3_noise": HyperCloning(3, noise_scale=0.1, seed=0),
    "net2net": Net2Net(seed=0),
    "net2net_random": Net2Net(draw="random", exact=False, seed=0),
    "net2net_by_a_half": Net2Net(1.5, exact=False, seed=0),
    "lemon": Lemon(seed=0),
    "lemon_by_a_half": Lemon(1.5, seed=0),
    "staged": StagedTraining(),
    "staged_noise": StagedTraining(noise_scale=0.1, seed=0),
    "zero_padding": ZeroPadding(),
    "new_features": NewFeatures(),
    "new_features_block": NewFeatures(1.5, norms="block"),
    "stacking": DepthStacking(),
    "stacking_x3_interleaved": DepthStacking(3, "interleaved"),
    "random_blocks": DepthStacking(new_blocks="random"),
    "identities": DepthStacking(identity=True),
    "random_identities": DepthStacking(identity=True, new_blocks="random"),
    "width_depth": Chain([HyperCloning(), DepthStacking()]),
    "depth_width": Chain([DepthStacking(identity=True), FusionOperator(seed=0)]),
}
OPTIMIZERS = {
    "adam": lambda: keras.optimizers.Adam(0.01),
    "adafactor": lambda: keras.optimizers.Adafactor(0.01),
    "sgd": lambda: keras.optimizers.SGD(0.01, momentum=0.9),
}
DEPTH = [name for name, operator in OPERATORS.items() if "depth" in str(operator)]


KNOWN = {method.cls for method in keras_fusion.known_operators().values()}


def test_every_known_operator_is_tested():
    assert {type(operator) for operator in OPERATORS.values()} == KNOWN


# Each operator with one optimizer, in turn; Adafactor's step takes long to compile.
RUNS = list(zip(OPERATORS, itertools.cycle(("adam", "sgd")), strict=False))
RUNS += [("hypercloning", "adafactor"), ("identities", "adafactor")]


def test_the_docs_tell_of_every_known_operator():
    page = ROOT / "docs" / "growth_operators.md"
    text = page.read_text(encoding="utf-8")
    for name in keras_fusion.known_operators():
        assert f"| `{name}(" in text, f"{page} has no row for {name}."


@pytest.mark.core("hypercloning_x3_noise-adam", "width_depth-adam")
@pytest.mark.parametrize(("name", "optimizer"), RUNS)
def test_operators_grow_in_fit(name, optimizer):
    model = perturbed(functional(8))
    x, y = data_for("functional", 16)
    make = OPTIMIZERS[optimizer]
    run_operator_test(OPERATORS[name], model, x, y, loss=loss(), optimizer=make())


# Their new capacity begins at zero, which norms after a residual sum do not leave alone.
FROM_ZERO = ("zero_padding", "lemon_by_a_half")
# A T5 takes seconds to build, and is for those that differ on it.
CASES = [(name, "functional") for name in OPERATORS]
CASES += [
    (name, "subclassed") for name in OPERATORS if name not in (*DEPTH, *FROM_ZERO)
]
CASES += [("lemon_by_a_half", kind) for kind in ("t5", "sequential")]
CASES += [("depth_width", "t5"), ("stacking", "gpt2"), ("identities", "gpt2")]
CASES += [("random_identities", "t5"), ("random_blocks", "gpt2")]
CASES += [("new_features_block", kind) for kind in ("t5", "gpt2", "bert")]
CASES += [("new_features", "gpt2")]
CASES += [("net2net", kind) for kind in ("t5", "bert", "gpt2", "sequential")]
CASES += [("net2net_random", "sequential")]


@pytest.mark.parametrize(("name", "kind"), sorted(set(CASES)))
def test_the_function_stays_where_it_is_promised(name, kind):
    model, operator = perturbed(KINDS[kind]()), OPERATORS[name]
    x, _ = data_for(kind, 4)
    before = values(model)
    plan = operator.plan(model)
    grown = plan.fill()
    assert all(map(np.array_equal, before, values(model)))
    assert grown.count_params() > model.count_params()
    change = relative_change(outputs(model, x), outputs(grown, x))
    assert change < 1e-5 if is_exact(plan) else 1e-5 < change < 10


# GPT-2 sets the epsilon of its norms in its code, and so cannot have a smaller one.
@pytest.mark.parametrize("kind", ["subclassed", "gpt2"])
@pytest.mark.parametrize("name", FROM_ZERO)
def test_norms_that_count_new_capacity_are_refused(name, kind):
    with pytest.raises(FusionError, match=r"norms after the residual sum.*'block'"):
        OPERATORS[name].plan(KINDS[kind]())


@pytest.mark.parametrize("name", OPERATORS)
def test_the_promise_is_kept_without_norms(name):
    model, x = norm_free(16), data_for("functional", 4)[0]
    plan = OPERATORS[name].plan(model)
    change = relative_change(outputs(model, x), outputs(plan.fill(), x))
    assert (change < 1e-5) == is_exact(plan), change


def test_every_known_operator_can_promise_the_function():
    """In one of its forms at least; else a promise of nothing would be kept above."""
    model = norm_free(16)
    promising = {
        type(operator)
        for operator in OPERATORS.values()
        if is_exact(operator.plan(model))
    }
    assert promising == KNOWN


LAWS = [
    (HyperCloning(), "functional"),
    (HyperCloning(), "t5"),
    (Net2Net(noise_scale=0.0, seed=1), "functional"),
    (Net2Net(1.5, "random", noise_scale=0.0, seed=1), "norm_free"),
    (Lemon(1.5, spread=0.0, noise_scale=0.0), "norm_free"),
    (StagedTraining(), "norm_free"),
]


@pytest.mark.parametrize(("operator", "kind"), LAWS, ids=str)
def test_moments_are_carried_at_the_scale_of_the_gradients(operator, kind):
    """A carried first moment is what the grown model would have gathered."""
    model = norm_free(16) if kind == "norm_free" else perturbed(KINDS[kind]())
    x, y = data_for(kind, 4)
    y = y % 5 if kind == "norm_free" else y
    plan = operator.plan(model)
    plan.fill()
    small, large = gradients(model, x, y), gradients(plan.fused, x, y)
    largest = max(np.max(np.abs(v)) for v in small.values())
    for item in plan.layouts:
        if not item.target.trainable:
            continue
        arrays = [small[id(source)] for source in item.sources]
        expected = slot_values.fused_slot(
            slots.Slot(1.0),
            arrays,
            item,
            plan.filler,
            optimizer=None,
            weights=[],
            value=None,
            done={},
            copies=True,
        )
        error = np.max(np.abs(large[id(item.target)] - expected))
        if item.address.endswith("token_embedding.embeddings"):
            continue  # Tied: two gradients, of which only one is divided.
        assert error < 1e-2 * max(np.max(np.abs(arrays[0])), 1e-3 * largest), item


def test_noise_parts_copies_that_stay_equal_without():
    x, y = data_for("functional", 64)
    for noise in (0.0, 0.05):
        model = functional()
        model.compile(keras.optimizers.Adam(0.01), loss())
        grow = GrowModel(HyperCloning(noise_scale=noise, seed=0), AtStep(2), verbose=0)
        model.fit(x, y, batch_size=8, verbose=0, callbacks=[grow])
        first, second = np.split(numpy(model.layers[1].embeddings), 2, axis=-1)
        assert (np.max(np.abs(first - second)) > 1e-3) == (noise > 0)


# What cannot be.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HyperCloning(1.5), "factor=1.5"),
        (lambda: Net2Net(draw="twice"), "draw='twice'"),
        (lambda: Net2Net(1.5).plan(functional(8)), "unequally often.*exact=False"),
        (lambda: Net2Net(draw="random", seed=0).plan(functional(8)), "draw='random'"),
        (lambda: Lemon(spread=1.0), "spread=1.0"),
        (lambda: HyperCloning(noise_scale=-1), "noise_scale=-1"),
        (lambda: ZeroPadding(1.0), "factor=1.0"),
        (lambda: Net2Net(1.3).plan(norm_free(16)), "not whole"),
        (
            lambda: HyperCloning().plan(keras.Sequential([keras.layers.Dense(2)])),
            "is not built",
        ),
    ],
)
def test_errors_name_the_argument_and_the_way_out(make, message):
    with pytest.raises(FusionError, match=message):
        make()


def test_an_operator_without_a_plan_says_so():
    with pytest.raises(NotImplementedError, match="GrowthOperator has no `plan`"):
        keras_fusion.GrowthOperator().plan(functional())
