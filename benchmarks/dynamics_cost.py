"""What a measure of `DynamicsMonitor` costs, in gradients of the same batch.

python benchmarks/dynamics_cost.py

A self-fused T5 and a batch of the demo; the median of each over some rounds in one run.
"""

import statistics
import time

import keras

import keras_fusion
from keras_fusion.demo import settings
from keras_fusion.demo.comparison import make_trainer
from keras_fusion.demo.training import compiled
from keras_fusion.dynamics import Derivatives, DynamicsMonitor
from keras_fusion.t5.model import build

ROUNDS = 7


def main():
    """Prints the ratios."""
    trainer = make_trainer(settings.FULL, seed=0, began=time.monotonic())
    batch = trainer.batch
    model = compiled(build(trainer.architecture.halved(), seed=0), 1e-3)
    grow = keras_fusion.DeepFusion(at_step=2)
    monitor = DynamicsMonitor(grow, *batch)
    spent = {"gradient": [], "measure": [], "before_growth": []}

    class Timer(keras.callbacks.Callback):
        """Times everything within the run, once the growth has happened."""

        def on_train_end(self, logs=None):
            gradient = Derivatives(model)
            gradient(*batch)
            for _ in range(ROUNDS):
                for name, action in (
                    ("gradient", lambda: gradient(*batch)),
                    ("measure", monitor.measure),
                    ("before_growth", lambda: monitor.before_growth(grow)),
                ):
                    began = time.perf_counter()
                    action()
                    spent[name].append(time.perf_counter() - began)

    data = trainer.batches(0).take(3)
    model.fit(data, verbose=0, callbacks=[grow, Timer(), monitor])
    one = statistics.median(spent["gradient"])
    print(f"{model.count_params():,} parameters, {keras.config.backend()}")
    print(f"a gradient: {one:.3f} s")
    for name, title in (
        ("measure", "a measure"),
        ("before_growth", "with the activations of all layers"),
    ):
        print(f"{title}: {statistics.median(spent[name]) / one:.1f} gradients")


if __name__ == "__main__":
    main()
