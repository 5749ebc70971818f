"""Names and paths, which a bigger model keeps from the model that it grew from."""

from collections.abc import Iterable

import keras

from keras_fusion.models import tree


def keep_names(pairs: Iterable[tuple[keras.Layer, keras.Layer]]) -> None:
    """Gives the layers and variables of a grown model the names of the smaller one's.

    Keras numbers unnamed sub-layers anew in each build; patterns that match variables
    by path (a LayoutMap, a weight-decay exclusion) must continue to match.

    Args:
        pairs: pairs `(layer of the smaller model, its counterpart)`.
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


def _inputs(layer: keras.Layer) -> list[keras.layers.InputLayer]:
    """The input layers of a model, in order; none for other layers."""
    held = layer.layers if isinstance(layer, keras.Model) else []
    return [x for x in held if isinstance(x, keras.layers.InputLayer)]
