"""TensorFlow's checkpoints of block norms, which stock norms must not read.

A checkpoint is restored by names, and what the model does not have is passed over without
a word. So the weights of a block norm have a shape there that no stock norm's have.
"""

import functools
from typing import Any

import keras

from keras_fusion.errors import FusionError

_NAME = "_guarded"


class Guarded:
    """Base of layers whose variables only layers of their kind restore.

    Its methods are asked by TensorFlow alone.
    """

    def _trackable_children(self, save_type: str = "checkpoint", **kwargs: Any) -> dict:
        own: Any = super()
        children = own._trackable_children(save_type, **kwargs)
        if save_type != "checkpoint":
            return children
        return {name: _guarded(self, name, child) for name, child in children.items()}

    def _lookup_dependency(self, name: str, *args: Any) -> Any:
        own: Any = super()
        return _guarded(self, name, own._lookup_dependency(name, *args))


class Unsaved:
    """Base of layers that such a checkpoint cannot hold, since no variable tells of them.

    It comes first among the bases of a class.
    """

    name: str

    def kept(self) -> str:
        """What it cannot hold, as what the layer does."""
        raise NotImplementedError

    def _trackable_children(self, save_type: str = "checkpoint", **kwargs: Any) -> dict:
        if save_type == "checkpoint":
            raise FusionError(
                f"A tf.train.Checkpoint cannot hold that the {type(self).__name__} "
                f"{self.name!r} {self.kept()}: a stock model would restore it without a "
                "word, to another function. Save the model as .keras or .weights.h5."
            )
        own: Any = super()
        return own._trackable_children(save_type, **kwargs)


def forget(layer: Any) -> None:
    """Lets go of what was made for checkpoints of a layer."""
    vars(layer).pop(_NAME, None)


def _guarded(layer: Any, name: str, child: Any) -> Any:
    """What stands for a variable of a layer in a checkpoint, the same each time."""
    if not isinstance(child, keras.Variable) or not len(child.shape):
        return child
    held = vars(layer).setdefault(_NAME, {})
    if name not in held:
        held[name] = _guard_class()(child)
    return held[name]


@functools.cache
def _guard_class() -> type:
    import tensorflow as tf

    class Guard(tf.__internal__.tracking.Trackable):
        """A variable that is saved twice, one below the other."""

        def __init__(self, variable: Any):
            self._variable = variable

        def _serialize_to_tensors(self) -> dict:
            value = tf.convert_to_tensor(self._variable.value)
            return {"VARIABLE_VALUE": tf.stack([value, value])}

        def _restore_from_tensors(self, tensors: dict) -> Any:
            own = {name: value[0] for name, value in tensors.items()}
            return self._variable._restore_from_tensors(own)

    return Guard
