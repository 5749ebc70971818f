"""keras-hub's T5 at any size."""

import keras
import keras_hub

from keras_fusion.t5.architecture import Architecture as Architecture


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
        # A few minutes of training are far from overfitting.
        dropout=0.0,
        activation="gelu",
        use_gated_activation=True,
    )
    return keras_hub.models.T5Seq2SeqLM(backbone, preprocessor=None)
