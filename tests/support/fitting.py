"""One live model and one way to train it, for what happens around a growth."""

import keras
from models import data_for, functional, loss, numpy, outputs


class Watch(keras.callbacks.Callback):
    """The outputs of the live model after one of its steps."""

    def __init__(self, step, x):
        super().__init__()
        self.step, self.x, self.outputs = step, x, None

    def on_train_batch_end(self, batch, logs=None):
        if int(numpy(self.model.optimizer.iterations)) == self.step:
            self.outputs = outputs(self.model, self.x)


def live_model():
    model = functional()
    model.compile("adam", loss(), jit_compile=False)
    return model


def fit(model, *callbacks, **options):
    x, y = data_for("functional")
    options = {"batch_size": 8, "shuffle": False, "verbose": 0, "epochs": 2} | options
    return model.fit(x, y, callbacks=list(callbacks), **options)
