"""From block-wise norms to Keras's own, in the course of training."""

import keras

from keras_fusion import graft
from keras_fusion.errors import FusionError
from keras_fusion.models import private, tree
from keras_fusion.models.block_norms import is_block_norm
from keras_fusion.training import runs, swap
from keras_fusion.training.record import STOCK_NORMS, Change, shapes_of


@keras.saving.register_keras_serializable(package="keras_fusion")
class AnnealBlockNorms(runs.Member):
    """Leads block-wise norms over to one shared statistic, and then takes them out.

    From the first batch on which the live model has block norms (a growth with
    `norms="block"` put them in, or they were there from the start) their statistics
    move linearly from the blocks' own to those of all features. Then the live model
    becomes one of Keras's norms, with the same weights and optimizer state, which
    saves and loads without keras_fusion. A run that was cut off goes on where the
    norms' blend stood.

    Args:
        steps: int of at least 1. Training batches that the way takes.

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

    def __init__(self, steps: int):
        super().__init__()
        if not isinstance(steps, int) or steps < 1:
            raise FusionError(
                f"`steps` must be an integer of at least 1. Received: steps={steps!r}."
            )
        self.steps = steps

    def on_train_batch_begin(self, batch, logs=None):
        """Moves the statistics of the batch to come."""
        norms = _block_norms(self.model)
        if not norms:
            return
        private.sync(self.model)
        for norm in norms:
            now = float(keras.ops.convert_to_numpy(norm.blend))
            norm.blend.assign(min(1.0, now + 1.0 / self.steps))

    def on_train_batch_end(self, batch, logs=None):
        """Takes the norms out when they have become Keras's."""
        norms = _block_norms(self.model)
        if not norms:
            return
        private.sync(self.model)
        # Rounding: a sum of `steps` parts is not quite 1.
        blends = [float(keras.ops.convert_to_numpy(norm.blend)) for norm in norms]
        if min(blends) > 1.0 - 0.5 / self.steps:
            self._use_stock_norms()

    def _use_stock_norms(self):
        prepared, run = swap.prepare_stock_norms(self.model), runs.of(self.model)
        change = Change(
            kind=STOCK_NORMS,
            step=graft.steps(graft.leaves(self.model.optimizer)[0]),
            before=shapes_of(self.model),
            after=shapes_of(prepared.plan.fused),
        )
        with swap.uninterrupted():
            run.announce(self, change)
            swap.put_in_place(self.model, prepared)
            run.changed(self, change)

    def script(self) -> dict:
        """What must be equal in a script that takes the run up again, as plain data."""
        return {"steps": self.steps}  # How far the norms are is a weight of theirs.

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {"steps": self.steps}


def _block_norms(model):
    return [layer for _, layer in tree.walk(model) if is_block_norm(layer)]
