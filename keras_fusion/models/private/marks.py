"""Marks in configs, so that a model with block norms is not taken for a stock one."""

from typing import Any

import keras

# An argument that Keras's class does not have, and names in its error.
_ADVICE = "saved_with_block_norms_so_import_keras_fusion_before_loading"


class BlockNormsPolicy(keras.DTypePolicy):
    """The dtype policy of a layer or model inside which norms are block-wise.

    It is the policy that it was made from. In a config it has an argument that Keras
    refuses where keras_fusion is not imported. The model that is made of the config has
    the ordinary policy; its norms become block-wise when it loads its weights.
    """

    def get_config(self) -> dict[str, Any]:
        """The name, and what to do for those who cannot read it."""
        return {"name": self.name, _ADVICE: True}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> keras.DTypePolicy:
        """The ordinary policy."""
        return keras.DTypePolicy(config["name"])

    def __eq__(self, other: object) -> bool:
        """Whether it is the same policy, marked or not."""
        return type(other) in _KINDS and self.name == getattr(other, "name", None)

    __hash__ = None


# By this name Keras takes it for its own.
BlockNormsPolicy.__name__ = keras.DTypePolicy.__name__
keras.saving.register_keras_serializable("keras_fusion", "BlockNorms")(BlockNormsPolicy)
_KINDS = (keras.DTypePolicy, BlockNormsPolicy)


def mark(layer: Any, marked: bool) -> None:
    """Marks the config of a layer inside which norms are block-wise, or no longer are."""
    policy = layer.dtype_policy
    if type(policy) in _KINDS:
        layer._dtype_policy = _KINDS[marked](policy.name)
