"""Small models on their way, which many courses grow from: trained once, kept in files."""

import time
from pathlib import Path

import keras
import numpy as np

from benchmarks.savings.rate import Rate
from benchmarks.savings.tasks import Size, Task
from keras_fusion.t5.store import Entry


class Claimed(Exception):
    """Another process trains this small model right now."""


class Trunk:
    """A small model of one seed, at constant rate.

    Args:
        task: `Task`.
        folder: `Path` below which its states are kept.
        size: `Size`.
        rate: float.
        seed: int.
    """

    def __init__(self, task: Task, folder: Path, size: Size, rate: float, seed: int):
        self.task, self.size, self.rate, self.seed = task, size, rate, seed
        name = f"{size.times}x{size.layers}-rate{rate:g}-seed{seed}"
        self.folder = folder / task.name / name

    def state(self, step: int) -> list[np.ndarray]:
        """The state after so many steps, trained now if nobody has.

        Raises:
            Claimed: if another process is training it.
        """
        entry = self._entry(step)
        if (stored := entry.load_state()) is None:
            with Entry(self.folder).claimed() as mine:
                if not mine:
                    raise Claimed(str(self.folder))
                self._train(step)
            stored = entry.load_state()
        return stored[0]

    def model(self, step: int) -> keras.Model:
        """The model after so many steps, with its optimizer."""
        values = self.state(step)
        model = self._fresh()
        restore(model, values)
        return model

    def curve(self, step: int) -> list:
        """Pairs of a share of the budget and the validation loss, up to a step."""
        points = [self._entry(s).load_state()[1] for s in self._steps() if s <= step]
        cost = self.task.cost(self.size) / self.task.budget
        return [[cost * point["step"], point["loss"]] for point in points]

    def _entry(self, step):
        return Entry(self.folder / f"step-{step:06}")

    def _steps(self):
        paths = self.folder.glob("step-*/state.npz")
        return sorted(int(path.parent.name.split("-")[1]) for path in paths)

    def _train(self, step):
        """Goes on from the last state before, or from the start."""
        begin = max((s for s in self._steps() if s < step), default=0)
        model = self._fresh()
        if begin:
            restore(model, self._entry(begin).load_state()[0])
        began = time.monotonic()
        model.fit(
            self.task.batches(self.seed, begin),
            steps_per_epoch=step - begin,
            verbose=0,
            shuffle=False,
        )
        loss = model.evaluate(self.task.glance, verbose=0, return_dict=True)["loss"]
        figures = {"step": step, "loss": loss, "seconds": time.monotonic() - began}
        self._entry(step).save_state(snapshot(model), figures)

    def _fresh(self):
        rate = Rate(self.rate, self.task.warmup_steps)
        return self.task.compiled(self.size, self.seed, rate, jit_compile=True)


def snapshot(model: keras.Model) -> list[np.ndarray]:
    """Copies of a model's weights and its optimizer's variables."""
    return [np.array(keras.ops.convert_to_numpy(v)) for v in _variables(model)]


def restore(model: keras.Model, values: list[np.ndarray]) -> None:
    """Puts `snapshot` back, of a model that is built alike."""
    model.optimizer.build(model.trainable_variables)
    for variable, value in zip(_variables(model), values, strict=True):
        variable.assign(value)


def _variables(model):
    return [*model.weights, *model.optimizer.variables]
