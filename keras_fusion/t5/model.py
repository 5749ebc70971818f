"""The demo's models: keras-hub's T5, small."""

import dataclasses

import keras
import keras_hub


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The sizes of a T5 (encoder and decoder have `num_layers` layers each).

    The first four are widths, which fusion adds up; the others stay.
    """

    hidden_dim: int
    intermediate_dim: int
    num_heads: int
    num_layers: int
    head_size: int
    vocabulary_size: int

    def halved(self) -> "Architecture":
        """The architecture of one of two equal parents."""
        for name in ("hidden_dim", "intermediate_dim", "num_heads"):
            if getattr(self, name) % 2:
                raise ValueError(
                    f"`{name}` must be even, to be halved for the parents. Received: "
                    f"{name}={getattr(self, name)}."
                )
        return dataclasses.replace(
            self,
            hidden_dim=self.hidden_dim // 2,
            intermediate_dim=self.intermediate_dim // 2,
            num_heads=self.num_heads // 2,
        )


def build(architecture: Architecture, *, seed: int) -> keras_hub.models.T5Seq2SeqLM:
    """Builds a T5 with fresh weights.

    Args:
        architecture: `Architecture`.
        seed: int. Seeds Keras and thereby the weights.

    Returns:
        A built model that maps a dict of token ids and padding masks to logits of
        shape `(batch, target_length, vocabulary_size)`.
    """
    keras.utils.set_random_seed(seed)
    backbone = keras_hub.models.T5Backbone(
        vocabulary_size=architecture.vocabulary_size,
        num_layers=architecture.num_layers,
        num_heads=architecture.num_heads,
        hidden_dim=architecture.hidden_dim,
        intermediate_dim=architecture.intermediate_dim,
        key_value_dim=architecture.head_size,
        # A few minutes of training are far from over-fitting.
        dropout=0.0,
        activation="gelu",
        use_gated_activation=True,
    )
    return keras_hub.models.T5Seq2SeqLM(backbone, preprocessor=None)
