"""Marks in configs, so that a model with block norms is not taken for a stock one."""

from typing import Any

import keras

# Keras quotes the name of a class that it does not know in its error.
_NAME = "saved with block norms, so import keras_fusion before loading"


class BlockNormsPolicy(keras.DTypePolicy):
    """The dtype policy of a layer or model inside which norms are block-wise.

    It is the policy that it was made from, under another name: a config with it cannot
    be read where keras_fusion is not imported. The model that is made of the config has
    the ordinary policy; its norms become block-wise when it loads its weights.
    """

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> keras.DTypePolicy:
        """The ordinary policy."""
        return keras.DTypePolicy(**config)

    def __eq__(self, other: object) -> bool:
        """Whether it is the same policy, marked or not."""
        return type(other) in _KINDS and self.name == getattr(other, "name", None)

    __hash__ = None


BlockNormsPolicy.__name__ = _NAME
keras.saving.register_keras_serializable("keras_fusion", "BlockNorms")(BlockNormsPolicy)
_KINDS = (keras.DTypePolicy, BlockNormsPolicy)


def mark(layer: Any, marked: bool) -> None:
    """Marks the config of a layer inside which norms are block-wise, or no longer are."""
    policy = layer.dtype_policy
    if type(policy) in _KINDS:
        layer._dtype_policy = _KINDS[marked](policy.name)
