"""The annealing of block norms in a study: all at once, or one after the other."""

import keras_fusion
from experiments.harness.study import Growth
from keras_fusion.models import exchange, private


class AnnealInOrder(keras_fusion.AnnealBlockNorms):
    """Anneals one norm after the other, each over its part of the steps.

    Args:
        steps: int. Of all of them together.
        order: `"bottom"` or `"top"`: with which end of the model to begin.
    """

    def __init__(self, steps: int, order: str):
        super().__init__(steps)
        self.order = order

    def on_train_batch_begin(self, batch, logs=None):
        """Moves the statistics of the batch to come."""
        norms = exchange.block_norms(self.model)
        if not norms:
            return
        private.sync(self.model)
        if self.order == "top":
            norms = norms[::-1]
        done = sum(float(norm.blend.value) for norm in norms)
        done += len(norms) / self.steps
        for number, norm in enumerate(norms):
            norm.blend.assign(min(max(done - number, 0.0), 1.0))


def annealing(growth: Growth) -> list[keras_fusion.AnnealBlockNorms]:
    """The callbacks of a growth that anneal its block norms."""
    if not growth.anneal_steps:
        return []
    if growth.anneal_order == "together":
        return [keras_fusion.AnnealBlockNorms(growth.anneal_steps)]
    return [AnnealInOrder(growth.anneal_steps, growth.anneal_order)]
