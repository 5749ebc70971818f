"""Sizes of a model that are no widths: its vocabulary, and its classes.

They stand in the configs of tables (embeddings) and of heads, the layers that make the
model's outputs. Which these are is read off the graph of a plain model; a class says it by
the usual keys of its config.
"""

import dataclasses
import fnmatch
from collections.abc import Iterator, Sequence
from typing import Any

import keras

from keras_fusion.architecture.setters import setters, whole_numbers
from keras_fusion.errors import FusionError
from keras_fusion.models import graph as graphs
from keras_fusion.models import rules

_VOCABULARY = (
    "the size of its vocabulary: it is no functional model with embeddings, and its config "
    "has neither vocabulary_size nor vocab_size"
)
_CLASSES = (
    "the number of its classes: it is no functional model that ends in a layer with units, "
    "and its config has no num_classes, num_labels or classes"
)
VOCABULARY_KEYS = ("vocabulary_size", "vocab_size")
CLASS_KEYS = ("num_classes", "num_labels", "classes")


@dataclasses.dataclass(frozen=True)
class Holder:
    """A layer whose config has a size.

    Args:
        layer: the layer.
        key: the key of its config.
        size: int. The size.
    """

    layer: keras.Layer
    key: str
    size: int

    @property
    def text(self) -> str:
        """The layer, the key and the size, for a message."""
        return f"{self.layer.name!r} ({self.key}={self.size})"

    def entry(self, size: int) -> dict[str, Any]:
        """The entry of the config with another size."""
        value = self.layer.get_config()[self.key]
        if isinstance(value, (list, tuple)):
            return {self.key: (*value[:-1], size)}
        return {self.key: size}


def of_vocabulary(model: keras.Model, only: Sequence[str] | None) -> list[Holder]:
    """The layers whose configs have the size of a model's vocabulary.

    Args:
        model: the model.
        only: names of layers or of keys of their configs, or patterns of such; by default
            all embeddings, and the heads of as many units.

    Raises:
        FusionError: if there are none, or if they are of several sizes.
    """
    tables = [*_with_keys(model, VOCABULARY_KEYS), *_embeddings(model)]
    if only is not None:
        return _named(model, [*tables, *heads(model)], only, _VOCABULARY)
    found = _of_one_size(model, tables, _VOCABULARY)
    _check_heads(model, found[0].size)
    return [*found, *(h for h in heads(model) if h.size == found[0].size)]


def of_classes(model: keras.Model, only: Sequence[str] | None) -> list[Holder]:
    """The layers whose configs have the number of a model's classes.

    Args:
        model: the model.
        only: names of layers or of keys of their configs, or patterns of such; by default
            the head, if there is one.

    Raises:
        FusionError: if there is none, or if there are several.
    """
    found = [*_with_keys(model, CLASS_KEYS), *heads(model)]
    if only is not None:
        return _named(model, found, only, _CLASSES)
    if len({id(holder.layer) for holder in found}) > 1:
        listed = ", ".join(holder.text for holder in found)
        raise FusionError(
            f"Model {model.name!r} has several heads: {listed}. Say by `only` which of "
            "them get new classes."
        )
    return _of_one_size(model, found, _CLASSES)


def _check_heads(model: keras.Model, size: int) -> None:
    """Checks that no layer makes as many outputs without telling it.

    Raises:
        FusionError: naming the layer.
    """
    for layer in _last_layers(model):
        shape = getattr(getattr(layer, "output", None), "shape", None) or (None,)
        if shape[-1] == size and not (_as_head(layer) or _is_table(layer)):
            raise FusionError(
                f"{type(layer).__name__} {layer.name!r} makes {size} outputs, as many as "
                "the vocabulary has tokens, and its config does not tell their number, so "
                "that it would stay. End in a layer that does: Dense acts on the last axis "
                "without a TimeDistributed. Or name by `only` what is to grow."
            )


def _of_one_size(model: keras.Model, found: list[Holder], what: str) -> list[Holder]:
    if not found:
        raise FusionError(
            f"{type(model).__name__} {model.name!r} does not tell {what}. Name that key of "
            "its config, or the layer, as `only`; a class must be registered "
            "(keras_fusion.register) to be built anew."
        )
    if len({holder.size for holder in found}) > 1:
        listed = ", ".join(holder.text for holder in found)
        raise FusionError(
            f"Layers of {model.name!r} have several sizes: {listed}. Say by `only` which "
            "of them grow, those that belong together at once."
        )
    return found


def _named(
    model: keras.Model, known: list[Holder], only: Sequence[str], what: str
) -> list[Holder]:
    """Those that `only` names; a name that is there for none is refused."""
    found = [*known, *_with_keys(model, only)]
    found = list({(id(h.layer), h.key): h for h in found}.values())

    def fits(holder, item):
        return any(fnmatch.fnmatch(x, item) for x in (holder.layer.name, holder.key))

    idle = [item for item in only if not any(fits(holder, item) for holder in found)]
    if idle:
        listed = ", ".join(holder.text for holder in found) or "none"
        raise FusionError(f"`only` names {idle}, which is none of these: {listed}.")
    chosen = [holder for holder in found if any(fits(holder, item) for item in only)]
    return _of_one_size(model, chosen, what)


def _with_keys(model: keras.Model, keys: Sequence[str]) -> Iterator[Holder]:
    for layer in setters(model):
        sizes = whole_numbers(layer)
        for key in keys:
            if key in sizes:
                yield Holder(layer, key, sizes[key])


def _embeddings(model: keras.Model) -> Iterator[Holder]:
    for layer in setters(model):
        if isinstance(layer, keras.layers.Embedding):
            yield Holder(layer, "input_dim", layer.input_dim)


def heads(model: keras.Model) -> list[Holder]:
    """The layers with weights that make the outputs of a plain model.

    Raises:
        FusionError: for one whose config does not tell how many outputs it makes.
    """
    return [head for layer in _last_layers(model) for head in _as_head(layer)]


def _last_layers(model: Any) -> Iterator[keras.Layer]:
    """Yields the last layers with weights on the ways to a plain model's outputs."""
    if not graphs.is_plain(model):
        return
    graph, seen = graphs.read(model), set()
    edge = [tensor.key for tensor in graph.outputs]
    while edge:
        call = graph.producer(edge.pop())
        if call is None or call.key in seen:
            continue
        seen.add(call.key)
        if graphs.is_plain(call.operation):
            yield from _last_layers(call.operation)
        elif getattr(call.operation, "weights", None):
            yield call.operation
        else:
            edge += [tensor.key for tensor in call.features]


def _as_head(layer: keras.Layer) -> list[Holder]:
    """The layer as a head; nothing for one that is a table or a model of a class."""
    if _is_table(layer):
        return []
    rule = rules.find(layer)
    key = "output_shape" if isinstance(layer, keras.layers.EinsumDense) else None
    key = key or (rule.output_width if rule is not None else None)
    value = layer.get_config().get(key) if isinstance(key, str) else None
    size = value[-1] if isinstance(value, (list, tuple)) and value else value
    if not isinstance(key, str) or not isinstance(size, int):
        return []
    return [Holder(layer, key, size)]


def _is_table(layer: keras.Layer) -> bool:
    """Whether a layer is a table that is its own head, or says its size by a key."""
    keys = {*VOCABULARY_KEYS, *CLASS_KEYS}
    is_table = isinstance(layer, keras.layers.Embedding)
    return is_table or bool(keys & set(whole_numbers(layer)))
