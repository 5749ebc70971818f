"""Growing in threads leaves Keras as it was, and disturbs no other thread."""

import threading

import keras
import numpy as np
import pytest
from keras import layers

from keras_fusion import fuse, multi_worker_fit
from keras_fusion.models import private

pytestmark = pytest.mark.core

X = np.random.default_rng(0).standard_normal((8, 4)).astype("float32")
PATCHED = ("_initialize_with_initializer", "_deferred_initialize")


def net():
    return keras.Sequential([keras.Input((4,)), layers.Dense(8), layers.Dense(1)])


def run(*functions):
    """Runs functions in threads of their own; their errors are the test's."""
    errors = []

    def safely(function):
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=safely, args=(f,)) for f in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors


def own_attributes():
    return {name: vars(keras.Variable).get(name) for name in PATCHED}


def test_fusing_in_threads_leaves_keras_as_it_was():
    before = own_attributes()

    def work():
        parent = net()
        for seed in range(4):
            fuse(parent, factor=2, seed=seed)

    run(work, work, work)
    assert own_attributes() == before
    model = net()
    model.compile("adam", "mse")
    model.fit(X, X[:, :1], verbose=0)


def test_scopes_that_end_in_another_order_than_they_began():
    """The first to begin is the first to end, while the second one is still at work."""
    before, inside, first_is_out = own_attributes(), *(threading.Event() for _ in "ab")

    def first():
        with private.without_values():
            assert inside.wait(30)
        first_is_out.set()

    def second():
        with private.without_values():
            inside.set()
            assert first_is_out.wait(30)
            assert own_attributes() != before
            if keras.config.backend() != "torch":
                assert layers.Dense(3).trainable and net().weights[0].shape == (4, 8)

    run(first, second)
    assert own_attributes() == before


def test_other_threads_create_variables_as_usual():
    inside, done = threading.Event(), threading.Event()

    def grows():
        with private.without_values():
            inside.set()
            assert done.wait(30)

    def trains():
        assert inside.wait(30)
        try:
            model = net()
            assert np.abs(model.get_weights()[0]).max() > 0
            model.compile("sgd", "mse")
            model.fit(X, X[:, :1], verbose=0)
        finally:
            done.set()

    run(grows, trains)


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="TensorFlow's own.")
def test_workers_scopes_that_end_in_another_order():
    from keras.src.backend.tensorflow import trainer

    def patched():
        return trainer.reduce_per_replica, vars(trainer.TensorFlowTrainer).get(
            "_maybe_symbolic_build"
        )

    before, first, second = patched(), multi_worker_fit(), multi_worker_fit()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert patched() != before
    second.__exit__(None, None, None)
    assert patched() == before
