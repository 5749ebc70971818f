import gc
import os

import keras
import pytest

# Most of a small test's time TensorFlow traces the step of `fit`. The tests of these rooms
# ask for values and structures, so their steps are not compiled. Those of tests/training,
# all processes of their own and the core suite on JAX compile, as users do.
EAGER_ROOMS = {
    *("analysis", "architecture", "experiments", "graft", "layout"),
    *("models", "operators", "values"),
}

# Collecting imports every test module; what one of them set, the processes of all tests
# would get. TensorFlow and JAX set some of their own.
STEERING = ("CUDA_", "JAX_", "KERAS_", "OMP_", "TF_", "XLA_")


def _environment():
    return {(k, v) for k, v in os.environ.items() if k.startswith(STEERING)}


ENVIRONMENT = _environment()

# What importing made stays: a collection need not look at half a million old objects.
gc.collect()
gc.freeze()


def pytest_collection_modifyitems(config, items):
    """What runs on TensorFlow alone: `tensorflow`, and what `core(*ids)` does not name."""
    _check_core_ids(config, items)
    if config.option.markexpr == "core":
        kept, others = [], []
        for item in items:
            ids = _core_ids(item)
            alone = item.get_closest_marker("tensorflow") is not None
            alone = alone or (ids and item.callspec.id not in ids)
            (others if alone else kept).append(item)
        config.hook.pytest_deselected(items=others)
        items[:] = kept
    # A long file that comes last leaves the other workers idle.
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish(session):
    """No test, and nothing that a test imports, sets the environment by being imported."""
    if names := {name for name, _ in ENVIRONMENT ^ _environment()}:
        raise pytest.UsageError(f"Importing the tests changed {sorted(names)}.")


def _core_ids(item):
    mark = item.get_closest_marker("core")
    return mark.args if mark else ()


def _check_core_ids(config, items):
    """A parameter that is renamed would be left out on JAX and PyTorch in silence."""
    if any("::" in argument for argument in config.args):
        return  # Not all parameters of a test are here.
    named, known = {}, {}
    for item in items:
        if ids := _core_ids(item):
            test = item.nodeid.split("[")[0]
            named[test] = set(ids)
            known.setdefault(test, set()).add(item.callspec.id)
    for test, ids in named.items():
        if missing := ids - known[test]:
            raise pytest.UsageError(f"{test} has no parameters {sorted(missing)}.")


@pytest.fixture(autouse=True)
def seeded(monkeypatch):
    """Every test draws the same random numbers, alone or in company."""
    keras.utils.set_random_seed(0)
    yield
    keras.mixed_precision.set_global_policy("float32")
    # It collects garbage, which takes half a second: once for each file is enough.
    monkeypatch.setattr(gc, "collect", lambda *args: 0)
    keras.utils.clear_session()


def _run_eagerly(eager):
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.run_functions_eagerly(eager)


def _is_eager(module):
    room = module.path.parent.name
    return room in EAGER_ROOMS or module.get_closest_marker("eager") is not None


@pytest.fixture(autouse=True, scope="module")
def eager_steps(request):
    """On TensorFlow, steps without a compiled function where that says nothing."""
    _run_eagerly(_is_eager(request.node))
    yield
    _run_eagerly(False)


@pytest.fixture(autouse=True)
def compiled_steps(request):
    """A test with the mark `compiled` has them in an eager room too."""
    if request.node.get_closest_marker("compiled"):
        _run_eagerly(False)
    yield
    _run_eagerly(_is_eager(request.node.getparent(pytest.Module)))


@pytest.fixture(autouse=True)
def usual_kernels():
    """The T5 commands ask TensorFlow for deterministic kernels, which compiles no step."""
    yield
    if keras.config.backend() == "tensorflow":
        from tensorflow.python.framework.config import disable_op_determinism

        disable_op_determinism()


@pytest.fixture(autouse=True, scope="session")
def built_optimizers():
    """An optimizer that builds itself in its first step has TensorFlow trace it twice.

    It is built right before that step, so that a run begins without it, as users' do.
    """
    if keras.config.backend() != "tensorflow":
        yield
        return
    trainer = next(t for t in keras.Model.__mro__ if "_make_function" in vars(t))
    make = trainer._make_function

    def make_function(model, step):
        made = make(model, step)

        def built_first(iterator):
            optimizer = getattr(model, "optimizer", None)
            if model.built and optimizer is not None and not optimizer.built:
                with model.distribute_strategy.scope():
                    optimizer.build(model.trainable_variables)
            return made(iterator)

        return built_first if step == model.train_step else made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "_make_function", make_function)
        yield


@pytest.fixture(autouse=True, scope="module")
def collected():
    """The models of a file are gone before the next one.

    What is still there then stays: later collections need not look at it.
    """
    yield
    gc.collect()
    gc.freeze()
