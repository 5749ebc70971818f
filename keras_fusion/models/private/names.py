"""Names and paths, which a bigger model takes over from the model that it grew from."""

import keras

from keras_fusion.models import tree


def keep_names(pairs: list[tuple[keras.Layer, keras.Layer]]) -> None:
    """Gives the fused model's layers and variables the names of a model's.

    Keras numbers unnamed sub-layers anew in each build; patterns that match variables
    by path (a LayoutMap, a weight-decay exclusion) must go on matching.

    Args:
        pairs: list of `(layer of the model, its counterpart)`.
    """
    for old, new in pairs:
        new.name = old.name
        new._path = old._path
        for old_input, new_input in zip(_inputs(old), _inputs(new), strict=True):
            new_input.name = old_input.name
        for old_variable, new_variable in tree.shared_variables([old, new]):
            new_variable._path = old_variable._path
            new_variable._name = old_variable._name
        if keras.config.backend() == "torch" and hasattr(new, "_torch_params"):
            new._track_variables()


def _inputs(layer):
    """A model's input layers, in order; none of another layer."""
    held = layer.layers if isinstance(layer, keras.Model) else []
    return [x for x in held if isinstance(x, keras.layers.InputLayer)]
