"""From block-wise norms to Keras's own, in the course of training."""

from typing import Any, cast

import keras

from keras_fusion import graft
from keras_fusion.errors import is_integer, require
from keras_fusion.models import exchange, host, private
from keras_fusion.models.names import helpful
from keras_fusion.training import journal, swap
from keras_fusion.training.matching import shapes_of
from keras_fusion.training.record import STOCK_NORMS, Change


@keras.saving.register_keras_serializable(package="keras_fusion")
class AnnealBlockNorms(keras.callbacks.Callback):
    """Turns block norms into the stock norms they are made of, over a number of batches.

    From the first batch on which the live model has block norms (a growth with
    `norms="block"` put them in, or they were there from the start) their outputs move
    linearly from the norms of the blocks to the norm of all features. Then each becomes
    the stock norm again, of Keras, keras-hub or a user, with the same weights and
    optimizer state, so that the model saves and loads without keras_fusion. Constants
    that depend on a width (ALiBi's slopes), the routings of mixtures of experts and the
    cosines of CLIP move from the parents' to the stock layer's in the same way. A run
    that was cut off continues where the blend stood.

    Args:
        steps: int of at least 1. Training batches over which the outputs move.

    Raises:
        FusionError: if `steps` is no such number.

    Example:

    >>> import keras, keras_fusion, numpy as np
    >>> def build():
    ...     return keras.Sequential(
    ...         [
    ...             keras.Input((4,)),
    ...             keras.layers.Dense(8),
    ...             keras.layers.LayerNormalization(),
    ...             keras.layers.Dense(1),
    ...         ]
    ...     )
    >>> model, other = build(), build()
    >>> model.compile("adam", "mse")
    >>> callbacks = [
    ...     keras_fusion.DeepFusion(
    ...         at_step=2,
    ...         partners=[other],
    ...         norms="block",
    ...         optimizer_state="reset",
    ...         verbose=0,
    ...     ),
    ...     keras_fusion.AnnealBlockNorms(steps=4),
    ... ]
    >>> x = np.random.default_rng(0).standard_normal((64, 4)).astype("float32")
    >>> _ = model.fit(x, x[:, :1], batch_size=8, verbose=0, callbacks=callbacks)
    >>> type(model.layers[1]).__name__, model.layers[0].units
    ('LayerNormalization', 16)

    The annealing is this package's own.
    """

    @helpful
    def __init__(self, steps: int):
        super().__init__()
        fits = is_integer(steps, 1)
        require(fits, "steps", steps, "an integer of at least 1")
        self.steps = steps
        # How far the norms are is a weight of theirs, so that a backup has it.
        self._author = journal.Author(self, self._change_if_due)

    @property
    def model(self) -> keras.Model:
        """The model in training."""
        return cast(keras.Model, super().model)

    def set_model(self, model: keras.Model) -> None:
        """Joins those who change the model."""
        super().set_model(model)
        journal.of(model).join(self._author)

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Sets the journal's clock."""
        journal.of(self.model).begin_epoch(self.model, epoch)

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        """Moves the statistics of the batch to come."""
        norms = exchange.block_norms(self.model)
        if not norms:
            return
        private.sync(self.model)
        blends = self._next_blends([_blend(norm) for norm in norms])
        for norm, blend in zip(norms, blends, strict=True):
            norm.blend.assign(blend)

    def _next_blends(self, blends: list[float]) -> list[float]:
        """How far the norms are in the batch to come, from how far they were."""
        return [min(1.0, blend + 1.0 / self.steps) for blend in blends]

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Replaces the norms when they have become Keras's."""
        journal.of(self.model).end_batch(self, batch)

    def _change_if_due(self, logs: dict | None) -> None:
        norms = exchange.block_norms(self.model)
        if not norms or logs is not None:
            return
        private.sync(self.model)
        # Rounding: a sum of `steps` parts is not quite 1.
        if min(map(_blend, norms)) > 1.0 - 0.5 / self.steps:
            self._use_stock_norms()

    def _use_stock_norms(self) -> None:
        model = self.model
        prepared = swap.prepare_stock_norms(model)
        change = Change(
            kind=STOCK_NORMS,
            step=graft.steps(graft.leaves(model.optimizer)[0]),
            before=shapes_of(model),
            after=prepared.shapes,
        )
        with (
            swap.uninterrupted(),
            journal.of(model).announced(self._author, change) as pending,
            swap.in_place(model, prepared),
        ):
            pending.commit()

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {"steps": self.steps}

    @classmethod
    def from_config(cls, config: dict) -> "AnnealBlockNorms":
        """Rebuilds the callback from `get_config`."""
        return cls(**config)


def _blend(norm: Any) -> float:
    return float(host.read(norm.blend))
