"""The fuzz: random models of all layers and operations, grown in every way.

    KERAS_FUSION_FUZZ=5000 pytest tests/experiments/test_fuzz.py

runs more than the seeds of a usual run; `python -m experiments.fuzz --float64` prints them.
"""

import os

import keras
import numpy as np
import pytest
from keras import layers

from experiments.fuzz import catalogue, generator, judge, left_out

COUNT = int(os.environ.get("KERAS_FUSION_FUZZ", "200"))
GROUP = 25


@pytest.fixture
def float64():
    """The fuzz computes in float64, in which roundings are no excuse."""
    keras.config.set_floatx("float64")
    keras.mixed_precision.set_global_policy("float64")
    yield
    keras.config.set_floatx("float32")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("first", range(0, COUNT, GROUP))
def test_no_growth_of_a_random_model_breaks_its_promise(first, float64):
    seeds = range(first, min(first + GROUP, COUNT))
    verdicts = [judge.judged(seed) for seed in seeds]
    faults = [verdict for verdict in verdicts if verdict.is_fault]
    assert not faults, judge.summary(faults)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", [526, 3214, 3330, 3371, 4643])
def test_faults_that_the_long_fuzz_found_are_refused(seed, float64):
    verdict = judge.judged(seed)
    assert verdict.result == "refused", verdict


def test_every_layer_of_keras_is_in_the_fuzz_or_left_out_with_a_reason():
    classes = {n: x for n, x in vars(layers).items() if isinstance(x, type)}
    used = {getattr(layers, entry.name) for entry in catalogue.LAYERS}
    unused = {x for x in classes.values() if x not in used}
    assert {x.__name__ for x in unused} - left_out.left_out() == set()


@pytest.mark.core
def test_a_seed_makes_the_same_model_each_time():
    one, two = generator.program(3), generator.program(3)
    assert one.describe() == two.describe()
    assert one.describe() != generator.program(4).describe()


def first_distinct(head):
    """A seed of distinct parents without norms whose outputs come out of a head."""
    growth = list(judge.GROWTHS).index("distinct, block norms")
    for seed in range(growth, 600, len(judge.GROWTHS)):
        drawn = generator.program(seed)
        if drawn.heads == (head,) and len(drawn.steps) < 4:
            verdict = judge.judged(seed)
            if verdict.detail.endswith("of logits"):
                return seed, verdict
    raise AssertionError(f"no seed with the head {head!r}")


@pytest.mark.filterwarnings("ignore")
def test_the_judge_compares_logits_behind_which_something_acts(float64, monkeypatch):
    """The outputs are a function of their mean, and a wrong mean is seen."""
    seed, verdict = first_distinct("softmax")
    assert verdict.result == "exact"
    fuse = judge.kf.fuse

    def biased(*arguments, **options):
        grown = fuse(*arguments, **options)
        last = grown.trainable_variables[-1]
        last.assign(np.arange(3.0) + np.array(keras.ops.convert_to_numpy(last)))
        return grown

    monkeypatch.setattr(judge.kf, "fuse", biased)
    assert judge.judged(seed).result == "wrong"


@pytest.mark.core
@pytest.mark.filterwarnings("ignore")
def test_the_judge_sees_a_wrong_result(monkeypatch):
    """A growth that changes its model is found, whatever the seed."""

    def broken(model, seed):
        twin = generator.model(5)
        twin.set_weights([1.5 * value for value in twin.get_weights()])
        return twin

    growth = list(judge.GROWTHS)[5 % len(judge.GROWTHS)]
    monkeypatch.setitem(judge.GROWTHS, growth, broken)
    assert judge.judged(5).result == "wrong"
