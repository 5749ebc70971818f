"""The graft: a live model becomes the fused one, in the middle of `fit()`.

The live object keeps its identity and all that belongs to the training run (compile
state, metrics, history, stop flag, strategy); its graph, layers and weights become the
fused model's. So every reference that others hold stays valid.
"""

import keras
import numpy as np

from keras_fusion.errors import GrowthError
from keras_fusion.graft import optimizer as optimizers
from keras_fusion.models.private import deferral

# What belongs to the training run and not to the network.
_RUN_STATE = {
    "_called",
    "_compile_config",
    "_compile_loss",
    "_compile_metrics",
    "_compiled_trainable_state",
    "_compute_loss_has_training_arg",
    "_distribute_reduction_method",
    "_distribute_strategy",
    "_epoch_iterator",
    "_eval_epoch_iterator",
    "_inbound_nodes",
    "_initial_epoch",
    "_jax_state",
    "_jax_state_synced",
    "_jit_compile",
    "_loss_tracker",
    "_outbound_nodes",
    "_parent_path",
    "_run_eagerly",
    "build",
    "compiled",
    "history",
    "loss",
    "name",
    "optimizer",
    "quantize",
    "sampler",
    "set_weights",
    "steps_per_execution",
    "stop_training",
    "test_function",
    "predict_function",
    "train_function",
    "unrolled_steps_per_execution",
}
_PLAIN = (bool, int, float, str, bytes, type(None))


def graft(
    live: keras.Model,
    fused: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    adapt_weights=None,
) -> None:
    """Makes the live model the fused one; if that fails, leaves it as it was.

    Args:
        live: the model in training.
        fused: the bigger model, filled. It must not be used afterwards.
        optimizer: optimizer built on the fused model's variables. The live model's
            optimizer object takes its state over.
        adapt_weights: function from a list of weights of the live model as it was to
            those of the fused one. With it `live.set_weights` goes on accepting weights
            that were taken before the growth, as `EarlyStopping` does at the end.

    Raises:
        GrowthError: if anything failed; the model trains on as before.
    """
    owners = [live, *optimizers.family(live.optimizer)]
    before = [dict(vars(owner)) for owner in owners]
    old_shapes = [tuple(v.shape) for v in live.weights]
    try:
        _take_over_model(live, fused)
        optimizers.take_over(live.optimizer, optimizer)
        live._compiled_trainable_state = {
            layer: layer.trainable for layer in live._flatten_layers()
        }
        if adapt_weights is not None:
            _accept_old_weights(live, old_shapes, adapt_weights)
        live.test_function = live.predict_function = None
        if hasattr(live, "generate_function"):
            live.generate_function = None
        live.train_function = None
        live.make_train_function(force=True)
        _let_go(before[0])
    except BaseException as error:
        for owner, state in zip(owners, before, strict=True):
            _restore(owner, state)
        if not isinstance(error, Exception):
            raise
        raise GrowthError(
            f"The growth of {live.name!r} failed while the model was swapped ({error}); "
            "it trains on as it was."
        ) from error


def _let_go(state):
    """Empties the lists in which Keras tracked the small model's layers.

    The compiled losses keep a list of output names, and with it the old tracker; the
    small model would live as long as they do.
    """
    for name in ("_layers", "_trainable_variables", "_non_trainable_variables"):
        state[name].clear()


def _restore(owner, state):
    vars(owner).clear()
    vars(owner).update(state)


def _take_over_model(live, fused):
    own = vars(live)
    initial = _initial_attributes(live)
    # The tracker's list of metrics is the new one; its content is the run's.
    vars(fused)["_metrics"][:] = own["_metrics"]
    for name, value in vars(fused).items():
        current = own.get(name)
        if name in own and (name in _RUN_STATE or isinstance(current, keras.Metric)):
            continue
        if name in initial and _changed(initial[name], current):
            continue
        own[name] = value


def _initial_attributes(live):
    """What a new model of the same config starts with.

    A plain attribute that has changed since (a counter) belongs to the run and is
    kept; one that has not (a scale computed from the width) belongs to the network.
    """
    if getattr(live, "outputs", None):
        return {}  # The network is in the graph, and building a twin would cost weights.
    try:
        with deferral.without_values():
            return vars(type(live).from_config(live.get_config()))
    except Exception:
        return {}  # Without a config the fused model's attributes count.


def _changed(initial, current):
    return (
        isinstance(initial, _PLAIN)
        and isinstance(current, _PLAIN)
        and initial != current
    )


def _accept_old_weights(live, old_shapes, adapt_weights):
    """Lets weights from before the growth be set: they are grown in the same way.

    After several growths the weights of any stage climb up, stage by stage.
    """
    stages = getattr(vars(live).get("set_weights"), "stages", [])
    stages = [*stages, (old_shapes, adapt_weights)]

    def set_weights(weights):
        for shapes, adapt in stages:
            if [tuple(np.shape(w)) for w in weights] == shapes:
                weights = adapt(weights)
        type(live).set_weights(live, weights)

    set_weights.stages = stages
    vars(live)["set_weights"] = set_weights
