"""The attributes of models and optimizers, written without Keras's tracking of them."""

from typing import Any


def attributes(owner: Any) -> dict[str, Any]:
    """`vars` of a model or an optimizer, typed as the dict that it is."""
    return vars(owner)
