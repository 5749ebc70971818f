"""The plan of a fusion: its arguments checked, and the parents laid out."""

from collections.abc import Callable, Sequence

import keras

from keras_fusion.architecture import depth
from keras_fusion.architecture.chosen import as_chosen, is_count, kind_of_key, ratios
from keras_fusion.architecture.parents import Parents, resolved
from keras_fusion.models import host
from keras_fusion.operators import arguments, target_size
from keras_fusion.operators.norms import are_block_wise, settled
from keras_fusion.operators.plan import Plan, build_and_lay_out
from keras_fusion.values import new_capacity
from keras_fusion.values.fillers import FusionFiller


def plan_fusion(
    parents: list[keras.Model] | keras.Model,
    *,
    seed: int | None = None,
    factor: float | None = None,
    copies: int | None = None,
    into: keras.Model | Callable[[], keras.Model] | None = None,
    off_diagonal: str | None = None,
    noise_scale: float = 0.25,
    norms: str = "auto",
    probe=None,
    only: str | Sequence[str] | None = None,
    to: dict[str, int] | float | None = None,
) -> Plan:
    """Checks the arguments of `fuse` and lays out the fusion, changing nothing.

    `copies` says how many copies a self-fusion holds, if not as many as fit.
    """
    as_chosen(only, to)
    is_one = isinstance(parents, keras.Model)
    arguments.check_choice(only, to, factor, into, copies=is_one)
    if is_one and is_count(to):
        size = target_size.nearest(parents, to)
        factor, to = (size.factor, None) if size.to is None else (None, size.to)
    chosen = as_chosen(only, to)
    growths = ratios(parents, to) if isinstance(to, dict) and is_one else {}
    if growths:
        factor = min(growths.values())
    models, capacity = resolved(parents, factor, copies)
    if into is None and len({id(model) for model in models}) > 1:
        models = depth.equalized(models)
    matched = Parents.of(models)
    if off_diagonal is None:
        off_diagonal = "paired" if matched.copies else "zeros"
    arguments.check_off_diagonal(off_diagonal, copies=matched.copies)
    arguments.check_noise_scale(noise_scale)
    arguments.check_norms(norms, probe)
    arguments.check_seed(seed)
    seed = arguments.chosen_seed(seed, None)
    draft = build_and_lay_out(
        matched,
        into,
        seed=seed,
        block_norms=are_block_wise(norms, copies=matched.copies),
        capacity=capacity,
        chosen=chosen,
        epsilon_divisor=_stream_capacity(growths, len(models)) if growths else None,
    )
    corrections, keeps = settled(draft, norms, probe)
    filler = FusionFiller(
        off_diagonal=off_diagonal,
        noise_scale=noise_scale,
        seed=seed,
        corrections=corrections,
    )
    if matched.copies:
        with host.assumed((own.target, own.read()) for own in draft.by_parent):
            filler = new_capacity.settled(
                filler, draft.matches, draft.layouts, count=len(models)
            )
    return draft.plan(filler, exact=keeps and off_diagonal != "random")


def _stream_capacity(growths, copies):
    """How much larger than its copies the residual stream becomes."""
    streams = [r for key, r in growths.items() if kind_of_key(key) == "residual"]
    return max(streams, default=copies) / copies
