"""Tied readouts, which have no kernel that could be divided by the number of parents.

The fused logits are the mean of the parents'. An untied readout is divided by K. A
tied one is the embedding itself, which must stay as it is for the inputs, so the
factor goes into the last scalable layer before it: a norm's gamma (and beta).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras

from keras_fusion.architecture.layer_rules import is_reverse
from keras_fusion.architecture.parents import Match
from keras_fusion.errors import FusionError
from keras_fusion.models import graph as graphs
from keras_fusion.models import rules, tree

# K factors by the id of the first parent's layer and the name of a variable.
Scales = Mapping[tuple[int, str], tuple[float, ...]]


def scales(matches: Sequence[Match]) -> Scales:
    """The factors that make tied readouts average the parents' logits.

    Args:
        matches: the corresponding layers of K parents and the bigger model.

    Returns:
        Dict from `(id of the first parent's layer, variable name)` to K factors.

    Raises:
        FusionError: if no layer before a tied readout can carry the factor.
    """
    embeddings = _embedding_scales(matches)
    found = {(key, "embeddings"): scale for key, scale in embeddings.items()}
    for match in matches:
        for layer, embedding in _scaled_layers(match):
            # The embedding's factor applies to its transpose too.
            shared = embeddings.get(id(embedding), (1.0,) * len(match.layers))
            for name in _scalable(layer):
                found[(id(layer), name)] = tuple(
                    f / s for f, s in zip(_factors(match), shared, strict=True)
                )
    return found


def _embedding_scales(matches: Sequence[Match]) -> dict[int, tuple[float, ...]]:
    """Factors, by embedding, that cancel the multipliers' dependence on the width."""
    found = {}
    for match in matches:
        if match.rule is None or match.rule.input_multipliers is None:
            continue
        bigger = match.rule.input_multipliers(match.grown)
        own = [match.rule.input_multipliers(owner) for owner in match.layers]
        for path, value in bigger.items():
            scale = tuple(multipliers[path] / value for multipliers in own)
            found[id(_resolve(match.layers[0], path))] = scale
    return found


def _factors(match: Match) -> tuple[float, ...]:
    """The factors on the parents' last hidden states, for the mean of the logits."""
    owners, rule = match.layers, match.rule
    multiplier = rule.readout_multiplier if rule else None
    if multiplier is None:
        return (1.0 / len(owners),) * len(owners)
    bigger = multiplier(match.grown)
    return tuple(multiplier(owner) / bigger / len(owners) for owner in owners)


def _scaled_layers(match: Match) -> Iterator[tuple[keras.Layer, Any]]:
    """Yields `(layer before a tied readout that grew, its embedding or None)`."""
    layer, grown, rule = match.layers[0], match.grown, match.rule
    if rule is not None and rule.tied_readout is not None:
        if _has_embedding(layer):
            norm = _attribute(layer, rule.tied_readout)
            if _shapes(norm) != _shapes(_attribute(grown, rule.tied_readout)):
                yield norm, getattr(layer, "token_embedding", None)
    elif graphs.is_plain(layer) or (
        graphs.is_graph_model(layer) and rule is not None and rule.nested
    ):
        graph, bigger = graphs.read(layer), graphs.read(grown)
        for call, counterpart in zip(graph.calls, bigger.calls, strict=False):
            if not (is_reverse(call) and call.operation.tie_weights):
                continue
            if call.features[0].shape[-1] != counterpart.features[0].shape[-1]:
                last = _last_scalable(graph, call.features[0], call.name)
                yield last, call.operation


def _has_embedding(layer: Any) -> bool:
    """Whether the readout is tied at all; a head may have a kernel of its own."""
    return getattr(layer, "token_embedding", layer) is not None


def _shapes(layer: keras.Layer) -> list[tuple[int, ...]]:
    return [tuple(v.shape) for v in layer.variables]


def _scalable(layer: keras.Layer) -> tuple[str, ...]:
    """Names of the variables that scale a layer's output."""
    rule = rules.find_for_weights(layer)
    return rule.scalable if rule is not None else ()


def _attribute(layer: keras.Layer, path: str) -> keras.Layer:
    """The sub-layer at a path, which must be able to scale its output."""
    found = _resolve(layer, path)
    if not _scalable(found):
        raise FusionError(
            f"The rule names {path!r}, a {type(found).__name__}, which cannot "
            "scale its output. Name a norm, or register its class with `scalable`."
        )
    return found


def _resolve(layer: Any, path: str) -> Any:
    """The sub-layer at a path of attributes and, in lists, positions."""
    try:
        return tree.at_path(layer, path)
    except LookupError as error:
        raise FusionError(
            f"The rule of {type(layer).__name__} names {path!r}, but there is "
            f"no attribute {error.args[0]!r}. Correct the path."
        ) from error


def _last_scalable(
    graph: graphs.Graph, tensor: graphs.Tensor, readout: str
) -> keras.Layer:
    """The last layer before a tensor that can scale its features."""
    while (call := graph.producer(tensor.key)) is not None:
        if graph.consumers(tensor.key) > 1:
            break
        operation = call.operation
        rule = rules.find(operation) if isinstance(operation, keras.Layer) else None
        if rule is not None and rule.scalable and _is_linear(operation):
            return operation
        if rule is not None and rule.last_norm is not None:
            return _attribute(operation, rule.last_norm)
        if graphs.is_plain(operation):
            inner = graphs.read(operation)
            output = inner.outputs[tensor.key[2]]
            return _last_scalable(inner, output, readout)
        same = [t for t in call.features if t.shape[-1] == tensor.shape[-1]]
        has_weights = isinstance(operation, keras.Layer) and operation.weights
        if has_weights or len(same) != 1:
            break
        tensor = same[0]
    raise FusionError(
        f"The readout {readout!r} is tied to its embedding, and it has no norm or linear "
        "layer before it that could carry the factor of the mean. Put a norm before the "
        "readout, untie it (tie_weights=False), or register the model's class with "
        "`tied_readout`."
    )


def _is_linear(layer: keras.Layer) -> bool:
    activation = getattr(layer, "activation", None)
    return activation is None or activation == keras.activations.linear
