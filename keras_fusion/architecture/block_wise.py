"""What the bigger model computes block by block: norms, constants of a width, decisions."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras

from keras_fusion.architecture import by_parent
from keras_fusion.architecture.by_parent import ByParent
from keras_fusion.architecture.parents import Match
from keras_fusion.architecture.widths import Widths
from keras_fusion.errors import FusionError
from keras_fusion.models import exchange, host
from keras_fusion.models.block_constants import kind_of
from keras_fusion.models.head_norms import heads_in_rows, vectors
from keras_fusion.models.parent_wise import SHARES, decision_of
from keras_fusion.models.private.constants import Kind
from keras_fusion.models.private.decisions import Decision
from keras_fusion.models.stock import is_block_norm

Heads = Mapping[int, int]  # numbers of heads, by the ids of norms by head


def exchange_norms(
    matches: Sequence[Match], widths: Widths
) -> tuple[dict[str, str], tuple[ByParent, ...]]:
    """Makes norms of the bigger model block-wise: all that grew, or whose parents' are.

    So it does with what decides for all features. Constants of a width that grew become
    the parents' in any case, also for copies.

    Args:
        matches: the corresponding layers of the parents and the bigger model.
        widths: the `Widths` of the bigger model's layers.

    Returns:
        The reasons why layers could not be made block-wise, by their addresses, and the
        values that those which could have of each parent.

    Raises:
        FusionError: if a layer's constants depend on a width whose parts are not known.
    """
    refused, values, heads = {}, [], {}
    for match in matches:
        for layer in (*match.layers, match.grown):
            heads |= heads_in_rows(layer)
        if is_block_norm(match.grown):
            continue
        kind = kind_of(match.layers[0])
        if kind is not None:
            _exchange_constants(match, kind, widths)
        held = [layer for layer in match.layers if is_block_norm(layer)]
        if held and not _are_one(match.layers):
            _refuse_annealed(match.address, held)
        wanted = widths.block_norms or bool(held)
        reason = _exchange_wanted(match, widths, heads) if wanted else None
        if reason is not None:
            refused[match.address] = reason
        if is_block_norm(match.grown):
            values += _by_parent(match)
    exchange.mark_owners(matches[0].grown)
    return refused, tuple(values)


def _refuse_annealed(address: str, layers: Sequence[Any]) -> None:
    """Refuses what is no longer block-wise: beside another parent it has one blend."""
    blends = [float(host.read(layer.blend)) for layer in layers]
    if any(blends):
        raise FusionError(
            f"{type(layers[0]).__name__} {layers[0].name!r} at {address!r} is being turned "
            f"into a stock layer (its blend is {max(blends):.2g}), so that distinct "
            "parents cannot keep their functions. Fuse before AnnealBlockNorms begins, or "
            "when it has ended."
        )


def _exchange_wanted(match: Match, widths: Widths, heads: Heads) -> str | None:
    """Makes a norm or a layer that decides block-wise; the reason if it cannot be."""
    decision = decision_of(match.layers[0])
    if decision is not None:
        return _exchange_decision(match, decision, widths)
    norm = match.weights_rule.norm if match.weights_rule is not None else None
    return _exchange(match, widths, heads) if norm is not None else None


def _exchange_decision(match: Match, decision: Decision, widths: Widths) -> str | None:
    """Makes a layer decide for each parent's features; the reason if it cannot."""
    grown, layers = match.grown, match.layers
    size, sizes = decision.size(grown), [decision.size(layer) for layer in layers]
    placement = widths.entries.get(id(layers[0]))
    if size is None or None in sizes or (placement and not placement.is_contiguous):
        return "it is not known which of its features are whose parent's"
    if all(own == size for own in sizes):
        if is_block_norm(layers[0]):
            exchange.follow(grown, layers[0])
        return None
    deciding = layers[:1] if _are_one(layers) else layers  # Copies decide together.
    groups = sum(x.groups if is_block_norm(x) else 1 for x in deciding)
    exchange.make_parent_wise(grown, _blocks(layers, sizes, size), groups)
    return None


def _by_parent(match: Match) -> list[ByParent]:
    """The values of each parent's that a block-wise layer holds."""
    grown, layers = match.grown, match.layers
    return [
        _values(target, layers, decision_of(layers[0]))
        for target in exchange.values_by_parent(grown)
    ]


def _values(
    target: keras.Variable, layers: Sequence[Any], decision: Decision | None
) -> ByParent:
    """What each parent has of its own in one variable."""
    copies, first = _are_one(layers), layers[0]
    source = getattr(first, target.name) if is_block_norm(first) else None
    if source is not None and source.shape == target.shape:
        return by_parent.same(target, source)
    if decision is None:
        return by_parent.differences(target, layers, vectors)
    if target.name == SHARES:
        new = decision.takes_new
        return by_parent.shares(target, layers, together=copies, takes_new=new)
    deciding = layers[:1] if copies else layers
    return by_parent.differences(target, deciding, decision.shared)


def _are_one(layers: Sequence[keras.Layer]) -> bool:
    """Whether all parents are copies of one."""
    return all(layer is layers[0] for layer in layers)


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


def _exchange(match: Match, widths: Widths, known: Heads) -> str | None:
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
        return _exchange_shared(match, known)
    reason = exchange.reason_against(grown)
    if reason is None:
        exchange.make_block_wise(grown, _blocks(match.layers, sizes, size))
    return reason


def _exchange_shared(match: Match, known: Heads) -> str | None:
    """Makes a norm of single heads one with weights for each parent's heads."""
    grown, layers = match.grown, match.layers
    total = _heads(grown, known)
    heads = [own for x in layers if (own := _heads(x, known)) is not None]
    if total is None or len(heads) < len(layers) or total == heads[0]:
        if is_block_norm(layers[0]):
            exchange.follow(grown, layers[0])
        return None
    reason = exchange.reason_against(grown)
    if reason is None and sum(heads) <= total:
        exchange.make_head_wise(grown, _blocks(layers, heads, total))
    return reason


def _heads(norm: keras.Layer, known: Heads) -> int | None:
    """The number of heads that a norm by head was built for; `None` for another norm."""
    if id(norm) in known:
        return known[id(norm)]
    size = exchange.features(norm)
    shape = (norm.get_build_config() or {}).get("input_shape") or ()
    if len(shape) > 1 and shape[-1] == size:
        return shape[-2]
    return shape[-1] // size if shape and shape[-1] and shape[-1] % size == 0 else None


def _blocks(layers: Sequence[keras.Layer], sizes: Sequence, size: int) -> list[int]:
    """The blocks of a norm: its parents' own, and one for what is new."""
    blocks = []
    for layer, own in zip(layers, sizes, strict=True):
        blocks += layer.blocks if is_block_norm(layer) else (own,)
    return blocks + [size - sum(blocks)] * (size > sum(blocks))
