"""What the measurements of time share: clocks, medians, and a model to time."""

import statistics
import time
from collections.abc import Callable

import keras
import keras_hub
import numpy as np

Pair = tuple[float, float]  # seconds on the wall's clock and on the processor's


def now() -> Pair:
    """The time on both clocks."""
    return time.perf_counter(), time.process_time()


def clocked(action: Callable[[], object]) -> Pair:
    """Wall and processor seconds of an action."""
    began = now()
    action()
    return _between(began, now())


def _between(before, after):
    return tuple(b - a for a, b in zip(before, after, strict=True))


class Clock(keras.callbacks.Callback):
    """Notes the time at the end of each batch."""

    def __init__(self):
        super().__init__()
        self.times = []

    def on_train_batch_end(self, batch, logs=None):
        """Takes the time."""
        self.times.append(now())

    @property
    def seconds(self) -> list[Pair]:
        """From each batch's end to the next's."""
        return list(map(_between, self.times, self.times[1:]))


def summary(spent: dict[str, list[Pair]]) -> dict[str, dict]:
    """Medians of each, in seconds."""
    return {
        name: {
            "seconds": statistics.median(wall for wall, _ in pairs),
            "processor_seconds": statistics.median(cpu for _, cpu in pairs),
            "rounds": len(pairs),
        }
        for name, pairs in spent.items()
    }


def gpt2(
    width: int, vocabulary: int, *, layers: int, head: int, length: int, seed: int = 0
) -> keras.Model:
    """A GPT-2, compiled for next tokens."""
    keras.utils.set_random_seed(seed)
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=vocabulary,
        num_layers=layers,
        num_heads=width // head,
        hidden_dim=width,
        intermediate_dim=4 * width,
        dropout=0.0,
        max_sequence_length=length,
    )
    model = keras_hub.models.GPT2CausalLM(backbone, preprocessor=None)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-4), loss)
    return model


def random_tokens(rows: int, length: int, vocabulary: int) -> tuple[dict, np.ndarray]:
    """Inputs and targets; what is learned does not matter here."""
    tokens = np.random.default_rng(0).integers(0, vocabulary, (rows, length))
    tokens = tokens.astype("int32")
    return {"token_ids": tokens, "padding_mask": np.ones_like(tokens)}, tokens
