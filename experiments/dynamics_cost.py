"""Measures what `DynamicsMonitor` costs, in gradients of the same batch.

python -m experiments.dynamics_cost

A self-fused T5 and a batch of the demo; the median of each over some rounds in one run.
"""

import keras

import keras_fusion
from experiments.timing import clocked, summary
from keras_fusion.demo import data, settings
from keras_fusion.demo.training import compiled
from keras_fusion.dynamics import Derivatives, DynamicsMonitor
from keras_fusion.t5.model import build

ROUNDS = 7


class Timer(keras.callbacks.Callback):
    """Times everything within a run, once the growth has happened.

    Args:
        monitor: `DynamicsMonitor` of the run.
        grow: the callback that grows the model.
        batch: tuple.
    """

    def __init__(self, monitor, grow, batch):
        super().__init__()
        self.monitor, self.grow, self.batch = monitor, grow, batch
        self.spent = {}

    def on_train_end(self, logs=None):
        """Measures."""
        gradient = Derivatives(self.model)
        gradient(*self.batch)
        actions = {
            "a gradient": lambda: gradient(*self.batch),
            "a measure": self.monitor.measure,
            "with the activations of all layers": lambda: self.monitor.before_growth(
                self.grow
            ),
        }
        for _ in range(ROUNDS):
            for name, action in actions.items():
                self.spent.setdefault(name, []).append(clocked(action))


def main():
    """Prints the ratios."""
    loaded = data.load(settings.FULL, seed=0)
    batches = loaded.batches(0)
    shape = settings.FULL.architecture(loaded.vocabulary.size).halved()
    model = compiled(build(shape, seed=0), 1e-3)
    grow = keras_fusion.DeepFusion(at_step=2)
    monitor = DynamicsMonitor(grow, *batches(0))
    timer = Timer(monitor, grow, batches(0))
    model.fit(batches.dataset().take(3), verbose=0, callbacks=[grow, timer, monitor])
    found = {name: pair["seconds"] for name, pair in summary(timer.spent).items()}
    one = found.pop("a gradient")
    print(f"{model.count_params():,} parameters, {keras.config.backend()}")
    print(f"a gradient: {one:.3f} s")
    for name, seconds in found.items():
        print(f"{name}: {seconds / one:.1f} gradients")


if __name__ == "__main__":
    main()
