"""The annealing of block norms in a study: all at once, or one after the other."""

import keras_fusion
from experiments.harness.study import Growth


class AnnealInOrder(keras_fusion.AnnealBlockNorms):
    """Anneals one norm after the other, each over its part of the steps.

    Args:
        steps: int. Of all of them together.
        order: `"bottom"` or `"top"`: with which end of the model to begin.
    """

    def __init__(self, steps: int, order: str):
        super().__init__(steps)
        self.order = order

    def _next_blends(self, blends):
        """One norm after the other, in the order of the model's layers."""
        forward = 1 if self.order == "bottom" else -1
        done = sum(blends) + len(blends) / self.steps
        found = [min(max(done - number, 0.0), 1.0) for number in range(len(blends))]
        return found[::forward]


def annealing(growth: Growth) -> list[keras_fusion.AnnealBlockNorms]:
    """The callbacks of a growth that anneal its block norms."""
    if not growth.anneal_steps:
        return []
    if growth.anneal_order == "together":
        return [keras_fusion.AnnealBlockNorms(growth.anneal_steps)]
    return [AnnealInOrder(growth.anneal_steps, growth.anneal_order)]
