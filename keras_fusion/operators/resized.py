"""The layout of a growth by one size of the config that is no width."""

import dataclasses
from collections.abc import Iterator, Mapping

import keras

from keras_fusion.architecture import build, depth
from keras_fusion.architecture.parents import Match, Parents
from keras_fusion.architecture.widths import Widths
from keras_fusion.errors import FusionError
from keras_fusion.layout.axes import Axis
from keras_fusion.layout.variables import VariableLayout
from keras_fusion.models import exchange, private, tree
from keras_fusion.operators.plan import adopted


def lay_out(
    model: keras.Model,
    overrides: Mapping[int, dict],
    sizes: tuple[int, int],
    axis: Axis,
    *,
    seed: int,
    copies: float = 1.0,
) -> tuple[keras.Model, tuple[VariableLayout, ...]]:
    """Builds a model with other entries in some configs, and lays the old one out in it.

    Args:
        model: a built model.
        overrides: entries of the config, by the id of a layer.
        sizes: `(old, new)`, the one size by which weights may differ.
        axis: the axis of the new size.
        seed: int. Seed of the initial values.
        copies: float. How many copies of each old entry the axis holds.

    Returns:
        The bigger model, without values, and its layouts.

    Raises:
        FusionError: if it cannot be built, or if other sizes differ as well.
    """
    widths, parents = Widths(), Parents.of([model])
    widths.overrides.update(overrides)
    with private.without_values() as initializers:
        grown = _regrown(model, widths)
    matches = parents.matched_with(grown)
    for match in matches:
        depth.follow_norm(match.layers[0], match.grown)
    exchange.mark_owners(grown)
    layouts: dict[int, VariableLayout] = {}
    for match in matches:
        for layout in _layouts(match, sizes, axis):
            made = dataclasses.replace(layout, copies=copies)
            layouts.setdefault(id(layout.target), made)
    pairs = [(match.layers[0], match.grown) for match in matches]
    return grown, adopted(list(layouts.values()), pairs, initializers, seed)


def _regrown(model: keras.Model, widths: Widths) -> keras.Model:
    try:
        return build.regrown(model, widths)
    except FusionError as error:
        text = str(error).partition(", or pass the bigger")[0].partition("; or pass")[0]
        raise FusionError(text) from error
    except Exception as error:
        raise FusionError(
            f"{model.name!r} cannot be built with the other size: {error} Some layer "
            "depends on the old one, and is not among those that grow."
        ) from error


def _layouts(
    match: Match, sizes: tuple[int, int], axis: Axis
) -> Iterator[VariableLayout]:
    """Yields the layouts of a layer's own variables, in which one axis may grow."""
    for source, target in tree.shared_variables([match.layers[0], match.grown]):
        name = f"{match.address}.{target.name}" if match.address else target.name
        pairs = list(zip(source.shape, target.shape, strict=True))
        changed = [i for i, (old, new) in enumerate(pairs) if old != new]
        if any(pairs[i] != sizes for i in changed) or len(changed) > 1:
            raise FusionError(
                f"{name!r} would change from shape {tuple(source.shape)} to "
                f"{tuple(target.shape)}, and only one axis of {sizes[0]} may become "
                f"{sizes[1]}. Name other layers, or register a class that says it."
            )
        axes = tuple(
            axis if i in changed else Axis(new) for i, (_, new) in enumerate(pairs)
        )
        yield VariableLayout(name, (source,), target, axes, (1.0,))
