"""The learning rates that updates had, measured by what they did."""

import keras
from models import numpy


def mean_of_outputs(labels, outputs):
    """A loss whose gradient by the last layer's biases has the sum 1."""
    return keras.ops.mean(outputs, axis=-1)


class Rates(keras.callbacks.Callback):
    """The rate of each of SGD's updates, and that which others see before it.

    The model must end in a layer with biases, and have `mean_of_outputs` as loss.
    """

    def __init__(self):
        super().__init__()
        self.values, self.seen = [], []

    def on_train_batch_begin(self, batch, logs=None):
        self.before = self.biases()
        self.seen.append(float(numpy(self.model.optimizer.learning_rate)))

    def on_train_batch_end(self, batch, logs=None):
        self.values.append((self.before - self.biases()).sum())

    def biases(self):
        if hasattr(self.model, "jax_state_sync"):
            self.model.jax_state_sync()
        return numpy(self.model.layers[-1].bias).astype("float64")
