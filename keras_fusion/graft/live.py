"""The graft: turns a live model into the fused one during `fit()`.

The live object keeps its identity and everything that belongs to the training run
(compile state, metrics, history, stop flag, strategy); its graph, layers and weights
become the fused model's. So every reference to it stays valid.
"""

import contextlib
import gc
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from keras_fusion.errors import GrowthError
from keras_fusion.graft import metrics, own_state
from keras_fusion.graft import optimizer as optimizers
from keras_fusion.models import private
from keras_fusion.models.private import attachments
from keras_fusion.models.private.attributes import instance_attributes

Weights = list[np.ndarray]
Adapter = Callable[[Weights], Weights]


@contextlib.contextmanager
def grafted(
    live: keras.Model,
    fused: keras.Model,
    optimizer: keras.optimizers.Optimizer | None,
    adapt_weights: Adapter | None = None,
) -> Iterator[None]:
    """Opens a scope at whose beginning the live model becomes the fused one.

    If that or anything in the scope fails, the live model is at its end what it was
    before, with all that is attached to it and to its optimizer.

    Args:
        live: the model in training.
        fused: the bigger model, filled. It must not be used afterwards.
        optimizer: optimizer built on the fused model's variables. The live model's
            optimizer object takes over its state. `None` if it has none.
        adapt_weights: function from a list of weights of the live model before the growth
            to those of the fused one. With it `live.set_weights` continues to accept
            weights from before the growth, which `EarlyStopping` restores at the end.

    Raises:
        GrowthError: if the swap failed; the model continues to train as before.
    """
    owners = [live, *optimizers.family(optimizers.optimizer_of(live))]
    before = [dict(instance_attributes(owner)) for owner in owners]
    attached = [attachments.remembered(owner) for owner in owners]
    variables, parts = {id(v) for v in live.variables}, private.parts_of(live)
    try:
        _swap(live, fused, optimizer, adapt_weights)
        yield
        _tell_others(live, parts, variables)
        _let_go(before[0])
    except BaseException:
        for owner, state, put_back in zip(owners, before, attached, strict=True):
            _restore(owner, state)
            put_back()
        raise


def _swap(
    live: keras.Model,
    fused: keras.Model,
    optimizer: keras.optimizers.Optimizer | None,
    adapt_weights: Adapter | None,
) -> None:
    own_optimizer = optimizers.optimizer_of(live)
    old_shapes = [tuple(v.shape) for v in live.weights]
    try:
        metrics.carry(live, fused)
        _take_over_model(live, fused)
        if own_optimizer is not None and optimizer is not None:
            optimizers.take_over(own_optimizer, optimizer)
        if adapt_weights is not None:
            accept_old_weights(live, old_shapes, adapt_weights)
        if live.compiled:
            live._compiled_trainable_state = {
                layer: layer.trainable for layer in live._flatten_layers()
            }
        private.compile_again(live)
    except Exception as error:
        raise GrowthError(
            f"The growth of {live.name!r} failed while the model was swapped ({error}); "
            "it trains on as it was."
        ) from error


def _tell_others(live: keras.Model, parts: set[int], before: set[int]) -> None:
    """Lets other models that hold the live one see what it has become.

    Their compiled functions would go on with its variables from before the growth. Models
    that have some of its layers, without holding it, cannot follow it.

    Args:
        live: the model that has grown.
        parts: the ids of its layers before the growth, and of what they hold.
        before: the ids of its variables before the growth.
    """
    holders, sharing = [], []
    for other in private.others(live):
        if any(layer is live for layer in other._flatten_layers()):
            holders.append(other)
        elif not parts & private.identity(other) and private.has_any(other, before):
            sharing.append(weakref.ref(other))
        del other
    private.forget_compiled(holders)
    for holder in holders:
        optimizer = getattr(holder, "optimizer", None)
        if optimizer is None or before.isdisjoint(optimizers.trained_ids(optimizer)):
            continue
        warnings.warn(
            f"Model {holder.name!r} holds {live.name!r}, which has grown, and its "
            "optimizer trains the variables from before. Call "
            f"{holder.name}.compile(...) anew before you train it.",
            stacklevel=2,
        )
    if sharing:
        gc.collect()  # Models hold themselves, also those that nobody uses any more.
    for other in filter(None, (ref() for ref in sharing)):
        warnings.warn(
            f"Model {other.name!r} shares layers with {live.name!r}, which has grown, and "
            "keeps the small ones, which are not trained any further. Make it anew from "
            f"the layers that {live.name!r} has now.",
            stacklevel=2,
        )


@contextlib.contextmanager
def with_optimizer(
    model: keras.Model, optimizer: keras.optimizers.Optimizer
) -> Iterator[None]:
    """Opens a scope in which a model has an optimizer that it was not compiled with."""
    own = instance_attributes(model)  # so that no backend begins to track the optimizer
    before = {name: own[name] for name in ("optimizer",) if name in own}
    own["optimizer"] = optimizer
    try:
        yield
    finally:
        del own["optimizer"]
        own.update(before)


def _let_go(state: dict[str, Any]) -> None:
    """Empties the lists in which Keras tracked the small model's layers.

    The compiled losses keep a list of output names and thereby the old tracker, which
    would keep the small model alive.
    """
    for name in ("_layers", "_trainable_variables", "_non_trainable_variables"):
        state[name].clear()


def _restore(owner: Any, state: dict[str, Any]) -> None:
    instance_attributes(owner).clear()
    instance_attributes(owner).update(state)


def _take_over_model(live: keras.Model, fused: keras.Model) -> None:
    own = instance_attributes(live)
    kept = {attachments.NAME, *own_state.names_of_run(live, fused)}
    # The tracker's list of metrics is the new model's; the metrics are the run's.
    instance_attributes(fused)["_metrics"][:] = own["_metrics"]
    for name, value in instance_attributes(fused).items():
        if name not in kept:
            own[name] = value


def accept_old_weights(
    live: keras.Model, old_shapes: list[tuple[int, ...]], adapt_weights: Adapter
) -> None:
    """Makes `set_weights` accept weights from before a change, which it changes alike.

    After several changes it changes the weights of any stage, stage by stage.

    Args:
        live: the live model, changed.
        old_shapes: the shapes of its weights before.
        adapt_weights: function from the weights before to those after.
    """
    stages = getattr(instance_attributes(live).get("set_weights"), "stages", [])
    stages = [*stages, (old_shapes, adapt_weights)]

    def set_weights(weights: Sequence[np.ndarray]) -> None:
        for shapes, adapt in stages:
            if [tuple(np.shape(w)) for w in weights] == shapes:
                weights = adapt(weights)
        type(live).set_weights(live, weights)

    set_weights.stages = stages
    instance_attributes(live)["set_weights"] = set_weights
