"""What t5, the demo and the experiments share: rate, snapshots, FLOPs meter, tables."""

import keras
import numpy as np
import pytest
from models import data_for, functional, loss, values

from keras_fusion import DeepFusion
from keras_fusion.t5 import markdown
from keras_fusion.t5.meter import FlopsMeter
from keras_fusion.t5.rate import WarmupStableDecay
from keras_fusion.t5.snapshot import restore, snapshot

pytestmark = pytest.mark.core
STEPS = np.arange(0, 120, 7)


def rates(schedule, steps=STEPS):
    return [float(keras.ops.convert_to_numpy(schedule(int(step)))) for step in steps]


def test_a_linear_fall_is_the_lower_of_two_lines():
    schedule = WarmupStableDecay(0.3, 20, decay_from=60, decay_to=100)
    expected = 0.3 * np.clip(np.minimum((STEPS + 1) / 20, (100 - STEPS) / 40), 0.0, 1.0)
    np.testing.assert_allclose(rates(schedule), expected, rtol=1e-6)
    forever = WarmupStableDecay(0.3, 20)
    assert rates(forever, [10**9]) == pytest.approx([0.3])


def test_without_an_end_the_rate_falls_as_one_over_the_root_of_the_step():
    schedule = WarmupStableDecay(0.3, decay_from=25)
    expected = 0.3 * np.sqrt(25 / np.maximum(STEPS, 25))
    np.testing.assert_allclose(rates(schedule), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "schedule",
    [
        WarmupStableDecay(0.1, 5),
        WarmupStableDecay(0.1, 5, decay_from=30),
        WarmupStableDecay(0.1, 5, 30, keras.Variable(60.0)),
    ],
)
def test_a_schedule_goes_through_a_file(schedule):
    config = keras.saving.serialize_keras_object(schedule)
    again = keras.saving.deserialize_keras_object(config)
    np.testing.assert_allclose(rates(again), rates(schedule))


def test_files_of_the_first_version_load():
    config = {
        "module": None,
        "class_name": "InverseSquareRoot",
        "registered_name": "keras_fusion>InverseSquareRoot",
        "config": {"peak": 0.03, "constant_steps": 100, "warmup_steps": 50},
    }
    schedule = keras.saving.deserialize_keras_object(config)
    assert rates(schedule, [24, 99, 400]) == pytest.approx([0.015, 0.03, 0.015])


@pytest.mark.skipif(keras.config.backend() == "jax", reason="It compiles values in.")
def test_a_fall_in_variables_needs_no_new_training_function():
    start, end = (keras.Variable(v, trainable=False) for v in (1e9, 2e9))
    model = functional()
    schedule = WarmupStableDecay(0.1, 1, start, end)
    model.compile(keras.optimizers.SGD(schedule), loss())
    x, y = data_for("functional", count=8)
    model.train_on_batch(x, y)
    start.assign(0.0)
    end.assign(1.0)  # The rate is zero from the next update on.
    before = values(model)
    model.train_on_batch(x, y)
    for one, other in zip(values(model), before, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_snapshot_brings_a_grown_model_and_its_optimizer_back():
    def trained(steps, *callbacks):
        x, y = data_for("functional", count=8 * steps)
        options = {"batch_size": 8, "shuffle": False, "verbose": 0}
        model.fit(x, y, callbacks=callbacks, **options)
        return snapshot(model)

    model = functional()
    model.compile(keras.optimizers.Adam(0.01), loss())
    kept = trained(4, DeepFusion(at_step=3, seed=0, verbose=0))
    ended = trained(3)
    restore(model, kept)
    for one, other in zip(trained(3), ended, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)
    with pytest.raises(ValueError, match="zip"):
        restore(model, kept[:-1])


class Held(keras.utils.PyDataset):
    """Data to evaluate on, in one batch."""

    def __init__(self, *arrays):
        super().__init__()
        self.arrays = arrays

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self.arrays


def test_the_meter_counts_each_model_at_its_cost_and_evaluates_around_a_growth():
    model = functional()
    model.compile(keras.optimizers.SGD(0.05), loss())
    x, y = data_for("functional", count=8 * 6)
    small = model.count_params()
    meter = FlopsMeter(
        lambda model: 10 if model.count_params() == small else 30, Held(x, y), 35, [3]
    )
    grow = DeepFusion(at_step=3, seed=0, verbose=0)
    options = {"batch_size": 8, "shuffle": False, "verbose": 0}
    model.fit(x, y, callbacks=[meter, grow], **options)
    wide = model.count_params()
    # Before and after the growth, at 35 and 70 and 105, and not twice at the end.
    found = [(p.step, p.flops, p.parameters) for p in meter.points]
    assert found == [
        (3, 30, small),
        (3, 30, wide),
        (4, 60, wide),
        (5, 90, wide),
        (6, 120, wide),
    ]
    assert meter.points[0].loss == pytest.approx(meter.points[1].loss, rel=1e-4)
    assert meter.points[-1].accuracy is None


def test_a_growth_at_the_last_step_is_evaluated_on_both_sides():
    model = functional()
    model.compile(keras.optimizers.SGD(0.05), loss())
    x, y = data_for("functional", count=16)
    meter = FlopsMeter(lambda model: 1, Held(x, y), 100, [2])
    grow = DeepFusion(at_step=2, seed=0, verbose=0)
    model.fit(x, y, batch_size=8, verbose=0, callbacks=[meter, grow])
    before, after = meter.points
    assert before.step == after.step == 2 and before.parameters < after.parameters


def test_tables_go_between_the_marks_of_a_page(tmp_path):
    rows = [("a", "1"), ("long", "22")]
    text = markdown.table(("x", "y"), rows)
    assert text == "| x | y |\n| --- | --- |\n| a | 1 |\n| long | 22 |"
    assert markdown.table(("x", "y"), rows, aligned=True).splitlines()[2:] == [
        "| a    |  1 |",
        "| long | 22 |",
    ]
    with pytest.raises(ValueError, match=r"needs 2 cells. Received: \('b',\)"):
        markdown.table(("x", "y"), [("b",)])
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- own begin -->\nold\n<!-- own end -->\nbelow\n")
    for _ in range(2):
        markdown.insert(text, page, "own")
        inside = f"<!-- own begin -->\n\n{text}\n<!-- own end -->"
        assert page.read_text() == f"above\n{inside}\nbelow\n"
    with pytest.raises(ValueError, match="needs the lines <!-- tables begin -->"):
        markdown.insert(text, page)
