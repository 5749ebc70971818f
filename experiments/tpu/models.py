"""The models whose training steps are compiled: small, grown, and of the grown size."""

import dataclasses
from collections.abc import Callable

import keras
import keras_hub

import keras_fusion
from keras_fusion.models import private
from keras_fusion.t5 import model as t5
from keras_fusion.t5 import recipe
from keras_fusion.t5.tree import Node
from keras_fusion.values.fillers import FusionFiller

# Tokens that a T5 of the paper's recipe writes for 512 that it reads.
TARGET_LENGTH = 114


@dataclasses.dataclass(frozen=True)
class Pair:
    """A small model, and the size that a growth makes of it.

    Args:
        small: string. Names the small model in the tables.
        large: string. Names the model of twice its width.
        build: function from `"small"` or `"large"` to a built model.
        rows: function from the number of devices that share the batch to its rows.
        inputs: dict from the name of each input to its length.
        target: int. Tokens in a row of labels.
    """

    small: str
    large: str
    build: Callable[[str], keras.Model]
    rows: Callable[[int], int]
    inputs: dict[str, int]
    target: int

    def untrained(self, size: str) -> keras.Model:
        """A model of one of the two sizes, without values."""
        with private.without_values():
            return self.build(size)

    def growth(self, small: keras.Model) -> keras_fusion.Plan:
        """The self-fusion of the small model, laid out; no variable has a value."""
        plan = keras_fusion.lay_out(small, factor=2)
        filler = FusionFiller(off_diagonal="paired", noise_scale=0.25)
        return dataclasses.replace(plan, filler=filler)


def compiled(model: keras.Model, pair: Pair, rows: int) -> keras.Model:
    """Compiles a model with Adafactor, and builds the state of a training step."""
    with private.without_values():
        model.compile(
            keras.optimizers.Adafactor(1e-2, relative_step=False),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            weighted_metrics=None,
        )
        # What `fit` does with its first batch.
        model._symbolic_build(data_batch=batch(pair, rows))
    return model


def batch(pair: Pair, rows: int) -> tuple[dict[str, keras.KerasTensor], object]:
    """A batch of token ids, as symbols."""
    inputs = {
        name: keras.KerasTensor((rows, length), "int32")
        for name, length in pair.inputs.items()
    }
    return inputs, keras.KerasTensor((rows, pair.target), "int32")


def _t5(small: str, large: str) -> Pair:
    paper, names = recipe.load("paper"), {"small": small, "large": large}
    lengths = {"encoder": 512, "decoder": TARGET_LENGTH}
    inputs = {
        f"{side}_{what}": length
        for side, length in lengths.items()
        for what in ("token_ids", "padding_mask")
    }
    return Pair(
        f"T5-{small}",
        f"T5-{large}",
        lambda size: t5.build(
            paper.architecture(Node(names[size]), paper.text.vocabulary_size), seed=0
        ),
        lambda devices: 128 * max(1, devices // 128),
        inputs,
        TARGET_LENGTH,
    )


def _llama(small: str, large: str, width: int, layers: int) -> Pair:
    def build(size: str) -> keras.Model:
        hidden = width if size == "small" else 2 * width
        backbone = keras_hub.models.LlamaBackbone(
            vocabulary_size=32000,
            num_layers=layers,
            num_query_heads=hidden // 128,
            num_key_value_heads=hidden // 128,
            hidden_dim=hidden,
            intermediate_dim=hidden * 43 // 16,
        )
        return keras_hub.models.LlamaCausalLM(backbone, preprocessor=None)

    inputs = {"token_ids": 1024, "padding_mask": 1024}
    return Pair(small, large, build, lambda devices: devices, inputs, 1024)


def pairs() -> list[Pair]:
    """T5s of the paper's recipe, and Llamas that grow to about 1B and 7B parameters."""
    return [
        _t5("S", "M"),
        _t5("M", "L"),
        _llama("Llama 0.3B", "Llama 1B", 1024, 18),
        _llama("Llama 1.7B", "Llama 7B", 2048, 32),
    ]
