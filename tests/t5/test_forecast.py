"""`python -m keras_fusion.t5 plan` says what the trainings will count."""

import json

import keras
import numpy as np
import pytest
from t5_stores import write_recipe

from keras_fusion import ExistingParent, ScalingLaw, plan_growth
from keras_fusion.flops import training_step_flops
from keras_fusion.t5 import __main__ as command_line
from keras_fusion.t5 import forecast, recipe
from keras_fusion.t5.model import build
from keras_fusion.t5.start import compiled
from keras_fusion.t5.tree import parse

LAW = ScalingLaw(1.7, 400.0, 0.34, 410.0, 0.28)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "smoke.toml"
    return recipe.load(write_recipe(path, num_layers=1))


@pytest.fixture(scope="module")
def forecaster(small):
    return forecast.Forecaster(small, forecast.Machine(devices=2), laws=[LAW])


def test_flops_and_bytes_are_those_of_the_training(small, forecaster):
    node = parse("S")
    model = build(small.architecture(node, small.text.vocabulary_size), seed=0)
    compiled(model, node, small)
    rows, task = small.training.batch_size, small.text.corruption()
    lengths = {"encoder": task.input_length, "decoder": task.target_length}
    x = {
        f"{side}_{name}": np.ones((rows, length), "int32")
        for side, length in lengths.items()
        for name in ("token_ids", "padding_mask")
    }
    labels = np.ones((rows, task.target_length), "int32")
    found = forecaster.forecast(node)
    steps = small.training.steps
    assert found.cost.flops == steps * training_step_flops(model, (x, labels))
    assert found.params == model.count_params()

    model.optimizer.build(model.trainable_variables)
    slots = [v for v in model.optimizer._variables if "float" in v.dtype]
    # Keras keeps the placeholders of vectors out of its list, and the rate in it.
    vectors = sum(len(v.shape) < 2 for v in model.trainable_variables)
    count = sum(int(np.prod(v.shape)) for v in slots) - 1 + 2 * vectors
    held = 2 * model.count_params() + count
    assert found.device_bytes == pytest.approx(4 * held, rel=1e-3)


def test_shares_are_those_of_plan_growth(small, forecaster):
    found = forecaster.forecast(parse("M(2*S)"))
    params = {shape: forecaster.model(shape).params for shape in "SM"}
    tokens = forecaster.tokens(parse("S"))
    parent = ExistingParent(params["S"], LAW.loss(params["S"], tokens), tokens)
    advice = plan_growth(params["M"], law=LAW, tokens=tokens, parents=parent)
    assert found.share == pytest.approx([advice.best_growth.share] * 2)
    before = forecaster.model("S").row_flops / forecaster.model("M").row_flops
    assert found.share_counted == pytest.approx([found.share[0] + before] * 2)


def test_two_laws_give_an_interval(small, forecaster):
    def asked(*laws):
        found = forecast.Forecaster(small, forecaster.machine, laws)
        found.model = forecaster.model  # The same models, built once.
        return found.forecast(parse("M(S, S)"))

    each = [asked(law).share[0] for law in forecast.LAWS]
    both = asked(*forecast.LAWS)
    assert both.share == pytest.approx((min(each), max(each)))
    assert both.share[0] < both.share[1]


def test_parents_in_parallel_shorten_the_wall_time(forecaster):
    found = forecaster.forecast(parse("M(S, S)"))
    one, root = (forecaster.spent(parse(tree)).hours for tree in "SM")
    assert found.trainings == 3
    assert found.cost.hours_in_series == pytest.approx(2 * one + root)
    assert found.cost.hours_in_parallel == pytest.approx(one + root)
    assert found.cost.accelerator_hours == pytest.approx(2 * (2 * one + root))


def test_command_writes_its_tables(tmp_path, capsys):
    page, law = tmp_path / "page.md", tmp_path / "law.json"
    page.write_text("<!-- plan begin -->\n<!-- plan end -->\n", encoding="utf-8")
    constants = {"irreducible": 1.7, "size_scale": 400, "size_exponent": 0.34}
    law.write_text(
        json.dumps(constants | {"data_scale": 410, "data_exponent": 0.28}),
        encoding="utf-8",
    )
    scale = write_recipe(tmp_path / "smoke.toml", num_layers=1)
    words = ["plan", "--scale", scale, "--tree", "S", "--tree", "M(2*S)"]
    words += ["--law", str(law), "--docs", str(page), "--devices", "4"]
    keras.utils.clear_session()
    assert command_line.main(words) == 0
    shown = capsys.readouterr().out
    assert "| S1 | `S1` | 1 |" in shown and "| M(2*S1) | `M(2*S1)` | 2 |" in shown
    assert shown.strip() in page.read_text(encoding="utf-8")
