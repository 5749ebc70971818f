"""Norms of the bigger model that get one statistic a parent, and constants of a width."""

from collections.abc import Sequence

import keras
import numpy as np

from keras_fusion.architecture.parents import Match
from keras_fusion.architecture.widths import Widths
from keras_fusion.errors import FusionError
from keras_fusion.models import exchange, host
from keras_fusion.models.block_constants import kind_of
from keras_fusion.models.private.constants import Kind
from keras_fusion.models.stock import is_block_norm


def exchange_norms(matches: Sequence[Match], widths: Widths) -> dict[str, str]:
    """Makes norms of the bigger model block-wise: all that grew, or whose parents' are.

    Constants of a width that grew become the parents' in any case, also for copies.

    Args:
        matches: the corresponding layers of the parents and the bigger model.
        widths: the `Widths` of the bigger model's layers.

    Returns:
        The reasons why norms could not be made block-wise, by their addresses.

    Raises:
        FusionError: if a layer's constants depend on a width whose parts are not known.
    """
    refused = {}
    for match in matches:
        kind = kind_of(match.layers[0])
        if kind is not None and not is_block_norm(match.grown):
            _exchange_constants(match, kind, widths)
        norm = match.weights_rule.norm if match.weights_rule is not None else None
        wanted = widths.block_norms or any(map(is_block_norm, match.layers))
        if norm is None or not wanted or is_block_norm(match.grown):
            continue
        reason = _exchange(match, widths)
        if reason is not None:
            refused[match.address] = reason
    exchange.mark_owners(matches[0].grown)
    return refused


def _exchange_constants(match: Match, kind: Kind, widths: Widths) -> None:
    """Gives a layer whose constants depend on a width those of its parents, also copies."""
    grown, layers = match.grown, match.layers
    size, sizes = kind.size(grown), [kind.size(layer) for layer in layers]
    placement = widths.entries.get(id(layers[0])) if kind.of == "features" else None
    if size is None or None in sizes or (placement and not placement.is_contiguous):
        raise FusionError(
            f"{type(grown).__name__} {grown.name!r} at {match.address!r} computes with "
            f"constants of its {kind.of}, and it is not known which of these are whose "
            "parent's. Keep it out of the model."
        )
    if any(own != size for own in sizes):
        blocks = _blocks(layers, sizes, size)
        exchange.make_constants_block_wise(grown, blocks)
    elif is_block_norm(layers[0]):
        exchange.follow(grown, layers[0])


def _exchange(match: Match, widths: Widths) -> str | None:
    """Makes one norm block-wise if it grew; the reason if it cannot be."""
    grown, first = match.grown, match.layers[0]
    size = exchange.features(grown)
    found = [exchange.features(layer) for layer in match.layers]
    sizes = [own for own in found if own is not None]
    placement = widths.entries.get(id(first))
    if placement is not None:
        if not placement.is_contiguous:
            return (
                "it reads features of the parents that do not lie side by side (behind a "
                "Flatten or Concatenate)"
            )
        size, sizes = placement.size, [len(block) for block in placement.blocks]
    elif size is None or len(sizes) < len(found):
        return "it does not tell how many features it normalizes"
    elif all(own == size for own in sizes):
        return _exchange_shared(match)
    reason = exchange.reason_against(grown)
    if reason is None:
        exchange.make_block_wise(grown, _blocks(match.layers, sizes, size))
    return reason


def _exchange_shared(match: Match) -> str | None:
    """Makes a norm of single heads one with weights for each parent's heads."""
    grown, layers = match.grown, match.layers
    total = _heads(grown)
    heads = [own for own in map(_heads, layers) if own is not None]
    if total is None or len(heads) < len(layers) or total == heads[0]:
        if is_block_norm(layers[0]):
            exchange.follow(grown, layers[0])
        return None
    reason = exchange.reason_against(grown)
    if reason is None and sum(heads) == total:
        blocks = []
        for layer, own in zip(layers, heads, strict=True):
            blocks += layer.blocks if is_block_norm(layer) else (own,)
        exchange.make_head_wise(grown, blocks, lambda *_, **__: _differences(layers))
    return reason


def _heads(norm: keras.Layer) -> int | None:
    """The number of heads that a norm by head was built for; `None` for another norm."""
    size = exchange.features(norm)
    shape = (norm.get_build_config() or {}).get("input_shape") or ()
    if len(shape) > 1 and shape[-1] == size:
        return shape[-2]
    return shape[-1] // size if shape and shape[-1] and shape[-1] % size == 0 else None


def _differences(layers: Sequence[keras.Layer]) -> np.ndarray:
    """The differences of the parents' weights from their mean, block by block."""
    rows, means = [], []
    for layer in layers:
        stock = [v for v in layer.variables if len(v.shape) == 1]
        own = np.stack([np.array(host.read(v)) for v in stock])
        means.append(own)
        rows += (
            list(own + host.read(layer.differences)) if is_block_norm(layer) else [own]
        )
    return np.stack(rows) - np.mean(means, axis=0)


def _blocks(layers: Sequence[keras.Layer], sizes: Sequence, size: int) -> list[int]:
    """The blocks of a norm: its parents' own, and one for what is new."""
    blocks = []
    for layer, own in zip(layers, sizes, strict=True):
        blocks += layer.blocks if is_block_norm(layer) else (own,)
    return blocks + [size - sum(blocks)] * (size > sum(blocks))
