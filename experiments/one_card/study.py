"""The runs of the study: a small model, the big one from scratch, and two that grow."""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import keras

import keras_fusion
from experiments.harness.study import Size
from experiments.harness.tasks import Decoder
from experiments.one_card.packed_text import Batches, PackedText
from experiments.one_card.scales import Pair, Scale
from experiments.timing import Clock
from keras_fusion.flops import training_step_flops
from keras_fusion.t5.rate import WarmupStableDecay

GROWN_AT = 0.3  # of the steps, as in the recipe "from_scratch"
CONTINUED = 0.5  # of the steps: how long a trained model goes on after its growth
NOT_TIMED = 10  # first steps


class OutOfTimeError(Exception):
    """The study's time is over."""


class StopAt(keras.callbacks.Callback):
    """Ends a training when the time is over.

    Args:
        deadline: float, of `time.monotonic()`.
    """

    def __init__(self, deadline: float):
        super().__init__()
        self.deadline = deadline

    def on_train_batch_end(self, batch, logs=None):
        """Looks at the clock."""
        if time.monotonic() > self.deadline:
            raise OutOfTimeError


class Study:
    """Trains what is missing, and writes each run's result when it ends.

    Args:
        scale: `Scale`.
        packed: `PackedText`.
        path: `Path` of the JSON.
        minutes: float. After them nothing is trained any more.
        device: string. The card's name.
    """

    def __init__(
        self, scale: Scale, packed: PackedText, path: Path, minutes: float, device: str
    ):
        self.scale, self.packed, self.path = scale, packed, path
        self.deadline = time.monotonic() + 60 * minutes
        self.task = Decoder(scale.model, packed)
        self.found = json.loads(path.read_text()) if path.exists() else {}
        self.found |= {
            "device": device,
            "text_sha256": packed.checksum,
            "policy": keras.config.dtype_policy().name,
            "backend": keras.config.backend(),
            "keras": keras.__version__,
        }
        length = self.task.row_length
        self.validation = self.task.example(
            packed.validation_rows(length, scale.validation_rows), None
        )

    def run(self) -> dict:
        """Runs what the time suffices for.

        Returns:
            What was found, as in the file.
        """
        runs = self.found.setdefault("runs", {})
        try:
            for pair in self.scale.pairs:
                for name, action in self._plan(pair).items():
                    key = f"{pair}: {name}"
                    if key not in runs:
                        runs[key] = action()
                        self._write()
                        print(f"{key}: {runs[key]}", flush=True)
        except OutOfTimeError:
            print("The time is over.", flush=True)
        self.found["complete"] = set(runs) == {
            f"{pair}: {name}" for pair in self.scale.pairs for name in self._plan(pair)
        }
        self._write()
        return self.found

    def _write(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.found, indent=1) + "\n")

    def _plan(self, pair: Pair) -> dict[str, Callable[[], dict]]:
        """The runs of a pair by name."""
        steps = self._steps(pair)
        scratch = {
            f"scratch, rate {rate:g}": lambda rate=rate: self._scratch(
                pair.big, rate, steps
            )
            for rate in pair.rates
        }
        return {
            "small alone": lambda: self._scratch(pair.small, pair.small_rate, steps),
            "grown at 30%": lambda: self._grown(pair, steps),
            **scratch,
            "small alone, then grown": lambda: self._continued(pair, steps),
        }

    def _steps(self, pair: Pair) -> int:
        batch = self.scale.model.batch_size * self.scale.model.row_length
        tokens = pair.tokens_per_parameter * self.task.parameters(pair.big)
        return max(round(tokens / batch), 10)

    # The runs.

    def _scratch(self, size: Size, rate: float, steps: int) -> dict:
        model = self._model(size, rate, steps)
        seconds = self._fit(model, steps)
        return self._told(model, {size: steps}, seconds)

    def _grown(self, pair: Pair, steps: int) -> dict:
        """Grows after 30% of the steps by new features, the parent's steps counted."""
        moment = round(GROWN_AT * steps)
        model = self._model(pair.small, pair.small_rate, steps)
        grow = keras_fusion.GrowModel(
            keras_fusion.NewFeatures(2),
            keras_fusion.AfterSteps(moment),
            learning_rate_factor=pair.rates[0] / pair.small_rate,
            verbose=0,
        )
        seconds = self._fit(model, steps, [grow])
        taken = {pair.small: moment, pair.big: steps - moment}
        return self._told(model, taken, seconds, moment, grow)

    def _continued(self, pair: Pair, steps: int) -> dict:
        """Grows a model whose rate has fallen to zero, as one that exists; then half."""
        model = self._model(pair.small, pair.small_rate, steps)
        self._fit(model, steps)
        more = round(CONTINUED * steps)
        rate = _rate(pair.rates[0], self.scale.model, more)
        model.compile(self.task.compiled(pair.small, 0, rate).optimizer, model.loss)
        (grow,) = keras_fusion.recipes.parent_exists(
            optimizer_state="reset", learning_rate_factor=1.0, verbose=0
        )
        seconds = self._fit(model, more, [grow], seed=1)
        taken = {pair.small: 1, pair.big: more - 1}
        return self._told(model, taken, seconds, 1, grow)

    def _model(self, size: Size, rate: float, steps: int) -> keras.Model:
        return self.task.compiled(size, 0, _rate(rate, self.scale.model, steps))

    def _fit(self, model, steps, callbacks=(), seed=0) -> list[float]:
        """Trains; returns the seconds from each batch's end to the next's."""
        clock = Clock()
        settings = self.scale.model
        length = self.task.row_length
        batches = Batches(
            self.packed, self._example, steps, settings.batch_size, length, seed
        )
        # Keras's own `fit`: keras-hub's wants a dataset of TensorFlow.
        keras.Model.fit(
            model,
            batches,
            shuffle=False,
            verbose=0,
            callbacks=[*callbacks, clock, StopAt(self.deadline)],
        )
        return [wall for wall, _ in clock.seconds]

    def _example(self, rows):
        return self.task.example(rows, None)

    # What is told of them.

    def _told(self, model, taken, seconds, moment=None, grow=None) -> dict:
        x, y, weights = self.validation
        options = {"batch_size": 32, "verbose": 0, "return_dict": True}
        found = keras.Model.evaluate(model, x, y, sample_weight=weights, **options)
        told = {
            "loss": float(found["loss"]),
            "parameters": self.task.parameters(list(taken)[-1]),
            "steps": sum(taken.values()),
            "flops": sum(self._flops(s) * count for s, count in taken.items()),
            "seconds": sum(seconds),
            "seconds_per_step": _median(
                seconds[NOT_TIMED if grow is None else moment :]
            ),
        }
        if grow is not None:
            told["growth"] = {
                **grow.events[0].to_dict(),
                # The growth, compiling, and the first step of the grown model.
                "seconds_until_next_step": seconds[moment - 1],
                "seconds_per_step_before": _median(seconds[: max(moment - 1, 1)]),
            }
        return told

    def _flops(self, size: Size) -> int:
        settings = self.scale.model
        count, length = settings.batch_size, self.task.row_length
        rows = self.packed.validation_rows(length, count)
        model = self.task.compiled(size, 0, 1e-3)
        return training_step_flops(model, self._example(rows))


def _median(seconds: list[float]) -> float | None:
    return statistics.median(seconds) if seconds else None


def _rate(peak: float, settings, steps: int) -> WarmupStableDecay:
    """A rate that falls to zero over the last share of the steps."""
    begin = round((1 - settings.decay) * steps)
    return WarmupStableDecay(peak, settings.warmup_steps, begin, steps)
